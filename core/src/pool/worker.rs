//! The side that runs jobs: claim, run, answer, and only then let go of the claim.

use super::board::{Place, PlaceLine, Shared};
use super::job::{HEADER, Header, Job, JobId, RETURNED, START_FAILED};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::Family;
use crate::queue::Outgoing;
use crate::sys::{machine, process};
use crate::tag::Tag;
use std::sync::atomic::Ordering;

/// One worker of a pool, in its own process.
pub struct Worker {
    shared: Shared,
    line: &'static PlaceLine,
}

impl Worker {
    /// Takes the place that the pool gave to this process.
    pub fn attach(family: &'static Family, place: Place) -> Result<Worker> {
        let shared = Shared::attach(family, place.pool)?;
        let line = shared.place(place.index)?;
        line.pid.store(process::pid(), Ordering::Release);
        Ok(Worker { shared, line })
    }

    /// Says that this worker can take jobs: what goes wrong from now on is a job's fault, not the start's.
    pub fn ready(&self) {
        self.line
            .ready
            .store(machine::monotonic_nanos(), Ordering::Release);
    }

    /// Says why this worker cannot take jobs. The process should end then.
    pub fn failed_to_start(&self, why: &str) -> Result<()> {
        let header = Header {
            job: 0,
            detail: START_FAILED,
        }
        .pack();
        self.shared
            .letters
            .put(Tag::RAW, &[&header, why.as_bytes()], Deadline::NEVER)
    }

    /// Claims the next job, waiting for one until `deadline`; `None` when this worker has done its part and should end.
    pub fn next(&self, deadline: Deadline) -> Result<Option<Job>> {
        loop {
            let limit = self.shared.jobs_per_worker();
            if limit > 0 && self.line.done.load(Ordering::Relaxed) >= limit {
                return Ok(None);
            }
            let message = match self.shared.jobs.get(deadline) {
                Ok(message) => message,
                Err(Error::Closed { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            // DEATH: the job is on loan to the dead process: reclaim sends it to the dead letters.
            fault::point("pool.claimed");
            let id = Header::unpack(message.bytes())?.job;
            if self.shared.is_cancelled(id) {
                self.shared.jobs.done(&message)?;
                continue;
            }
            self.line
                .started
                .store(machine::monotonic_nanos(), Ordering::Release);
            self.line.job.store(id, Ordering::Release);
            return Ok(Some(Job {
                id: JobId(id),
                message,
            }));
        }
    }

    /// Answers a job and lets go of it. If the answer cannot be put, the job is still this worker's.
    pub fn finish(&self, job: &Job, answer: Outgoing<'_>) -> Result<()> {
        let header = Header {
            job: job.id.0,
            detail: RETURNED,
        }
        .pack();
        let mut parts = Vec::with_capacity(answer.parts.len() + 1);
        parts.push(&header[..]);
        parts.extend_from_slice(answer.parts);
        let answer = Outgoing {
            parts: &parts,
            ..answer
        };
        self.shared.results.put_message(answer, Deadline::NEVER)?;
        // DEATH: answered and still claimed: the dead letter that follows names a job that has its outcome, and is
        // dropped.
        fault::point("pool.answered");
        self.shared.jobs.done(&job.message)?;
        let ran =
            machine::monotonic_nanos().saturating_sub(self.line.started.load(Ordering::Relaxed));
        self.line.job.store(0, Ordering::Release);
        self.line.busy.fetch_add(ran, Ordering::Release);
        self.line.done.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let job = Some(self.line.job.load(Ordering::Relaxed)).filter(|job| *job != 0);
        f.debug_struct("Worker")
            .field("done", &self.line.done)
            .field("job", &job)
            .finish_non_exhaustive()
    }
}

const _: () = assert!(HEADER == 16);
