//! What crosses between a pool and its workers: a job with its number one way, its result with the same number back.

use crate::error::{Error, Result};
use crate::process::Exit;
use crate::queue::Message;
use crate::tag::Tag;
use std::time::Duration;

/// The number of a job in its pool, from 1 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// Stands before the bytes of a job and of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) job: u64,
    /// In a job: how often it may still be tried after a death. In a result: what it is.
    pub(super) detail: u64,
}

pub(super) const HEADER: usize = 16;

/// A result of a job that ran to its end.
pub(super) const RETURNED: u64 = 0;
/// No result: wakes the one who waits for results, to look at what the keeper has for him.
pub(super) const NUDGE: u64 = 1;
/// In the dead letters: a worker could not start, and says why.
pub(super) const START_FAILED: u64 = 2;

impl Header {
    pub(super) fn pack(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&self.job.to_le_bytes());
        bytes[8..].copy_from_slice(&self.detail.to_le_bytes());
        bytes
    }

    pub(super) fn unpack(bytes: &[u8]) -> Result<Header> {
        let malformed = Error::Malformed {
            what: "pool message",
            why: "it is shorter than its header",
        };
        let (Some(job), Some(detail)) = (
            bytes.first_chunk::<8>(),
            bytes[8.min(bytes.len())..].first_chunk::<8>(),
        ) else {
            return Err(malformed);
        };
        Ok(Header {
            job: u64::from_le_bytes(*job),
            detail: u64::from_le_bytes(*detail),
        })
    }
}

/// A job in a worker's hands.
#[derive(Debug)]
pub struct Job {
    pub(super) id: JobId,
    pub(super) message: Message,
}

impl Job {
    /// Its number.
    pub fn id(&self) -> JobId {
        self.id
    }

    /// What it was submitted with.
    pub fn bytes(&self) -> &[u8] {
        &self.message.bytes()[HEADER..]
    }

    /// What the bytes are.
    pub fn tag(&self) -> Tag {
        self.message.tag()
    }

    /// The message it came in, for its handles.
    pub fn message(&self) -> &Message {
        &self.message
    }
}

/// What is known of a worker that died with a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerDied {
    /// Its process.
    pub pid: u32,
    /// How it ended; `None` if nobody could tell.
    pub exit: Option<Exit>,
    /// How long it had run the job.
    pub ran: Duration,
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub job: JobId,
    /// How.
    pub kind: Kind,
}

/// The ways in which a job ends.
#[derive(Debug)]
pub enum Kind {
    /// It ran to its end; what the worker answered.
    Returned(Reply),
    /// Its worker died, and it may not be tried again.
    Lost(WorkerDied),
    /// It ran longer than it may, and its worker was killed for it.
    TimedOut(WorkerDied),
    /// [`cancel`](super::Pool::cancel) was quicker.
    Cancelled,
    /// The pool was terminated.
    Terminated,
    /// Workers cannot start; why the last one could not.
    Broken(String),
}

/// A worker's answer.
#[derive(Debug)]
pub struct Reply {
    pub(super) message: Message,
}

impl Reply {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.message.bytes()[HEADER..]
    }

    /// What the bytes are.
    pub fn tag(&self) -> Tag {
        self.message.tag()
    }

    /// The message it came in, for its handles.
    pub fn message(&self) -> &Message {
        &self.message
    }
}
