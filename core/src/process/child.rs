//! A child as its parent sees it.

use super::embryo;
use super::household;
use super::kept::Kept;
use super::start::{Method, Start};
use super::zygote;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::memory::lock::Lock;
use crate::memory::slots::{ProcState, ProcWord};
use crate::memory::{Family, epoch};
use crate::sys::poll::Interest;
use crate::sys::process::Ended;
use crate::sys::{poll, process};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// A child as its parent sees it. Clones are the same child.
///
/// Dropping it changes nothing for the child, which goes on and is collected when it ends.
///
/// ```
/// use procession_core::{Deadline, process::{self, Ending, Method, Start}};
///
/// let family = procession_core::family().create()?;
/// # #[expect(unsafe_code, reason = "the child only ends")]
/// // SAFETY: the child touches nothing that another thread may have locked.
/// let child = unsafe { process::fork(family, &Start::new(Method::Fork), || 7) }?;
/// assert_eq!(child.join(Deadline::NEVER)?.ending, Ending::Code(7));
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Child {
    entry: Arc<Entry>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It ended, and who could have told how is gone: its zygote was killed, or someone else collected it.
    Unknown,
}

/// What is known of a process that ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Exit {
    /// How it ended.
    pub ending: Ending,
    /// Whether it took up its work: false for a program that never came as far as [`bootstrap`](super::bootstrap).
    pub began: bool,
    /// The most memory it had resident, in bytes; 0 when not known.
    pub peak_memory: u64,
    /// For one killed by SIGKILL: whether the out-of-memory killer of its control group took a process since it
    /// started. `None` when that cannot be seen, or it ended otherwise.
    pub out_of_memory: Option<bool>,
}

impl Exit {
    /// The exit code, or the negative number of the signal; `None` when it is not known.
    pub fn code(&self) -> Option<i32> {
        match self.ending {
            Ending::Code(code) => Some(code),
            Ending::Signal(signal) => Some(-signal),
            Ending::Unknown => None,
        }
    }

    /// Whether it exited with code 0.
    pub fn is_success(&self) -> bool {
        self.ending == Ending::Code(0)
    }
}

/// What this process keeps of one child until nobody asks for it any more.
#[derive(Debug)]
pub(super) struct Entry {
    family: &'static Family,
    slot: u32,
    generation: u32,
    pid: u32,
    name: String,
    daemon: bool,
    detached: bool,
    method: Method,
    pidfd: Kept,
    /// Open for as long as the child may live.
    lifeline: Lock<Option<Kept>>,
    /// Where its zygote tells how it ended.
    line: Option<Kept>,
    oom_kills: Option<u64>,
    exit: OnceLock<Exit>,
    /// One thread at a time asks how it ended: the system answers once.
    collecting: Lock<()>,
    epoch: u32,
}

impl Entry {
    #[expect(
        clippy::too_many_arguments,
        reason = "called in one place, by name of its parts"
    )]
    pub(super) fn new(
        family: &'static Family,
        (slot, generation): (u32, u32),
        pid: u32,
        pidfd: Kept,
        lifeline: Option<Kept>,
        line: Option<Kept>,
        start: &Start<'_>,
        oom_kills: Option<u64>,
    ) -> Entry {
        Entry {
            family,
            slot,
            generation,
            pid,
            name: embryo::name_of(family.process(slot)),
            daemon: start.daemon,
            detached: start.detached,
            method: start.method,
            pidfd,
            lifeline: Lock::new(lifeline),
            line,
            oom_kills,
            exit: OnceLock::new(),
            collecting: Lock::new(()),
            epoch: epoch::current(),
        }
    }

    pub(super) fn pidfd(&self) -> &Kept {
        &self.pidfd
    }

    /// Whether it is a zygote: the engine's child, not the program's.
    pub(super) fn is_zygote(&self) -> bool {
        self.method == Method::Zygote && self.line.is_none()
    }

    /// What is to be told of its end.
    fn judge(&self, ended: Option<Ended>) -> Exit {
        let state = self.family.process(self.slot).state.load(Ordering::Acquire);
        let left = ProcWord::unpack(state);
        // An embryo that nobody moved into. Another generation: it was there, and someone has freed the slot by now.
        let began = left.generation != self.generation || left.state != ProcState::Embryo;
        let ending = match ended.map(|ended| ended.code) {
            None => Ending::Unknown,
            Some(code) if code < 0 => Ending::Signal(-code),
            Some(code) => Ending::Code(code),
        };
        let rose = || Some(embryo::oom_kills()? > self.oom_kills?);
        Exit {
            ending,
            began,
            peak_memory: ended.map_or(0, |ended| ended.peak_memory),
            out_of_memory: if ending == Ending::Signal(9) {
                rose()
            } else {
                None
            },
        }
    }
}

impl Child {
    pub(super) fn of(entry: Arc<Entry>) -> Child {
        Child { entry }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.entry.pid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.entry.name
    }

    /// Its slot in the family.
    pub fn slot(&self) -> u32 {
        self.entry.slot
    }

    /// How it was started.
    pub fn method(&self) -> Method {
        self.entry.method
    }

    /// Whether [`finish`](super::finish) ends it instead of waiting for it.
    pub fn is_daemon(&self) -> bool {
        self.entry.daemon
    }

    /// Whether it outlives this process.
    pub fn is_detached(&self) -> bool {
        self.entry.detached
    }

    /// A descriptor that is readable once the child ended; for [`connection::wait`](crate::connection::wait).
    pub fn sentinel(&self) -> Result<BorrowedFd<'_>> {
        self.check_parent()?;
        Ok(self.entry.pidfd.as_fd())
    }

    /// How it ended; `None` while it runs.
    pub fn poll(&self) -> Result<Option<Exit>> {
        if let Some(exit) = self.entry.exit.get() {
            return Ok(Some(*exit));
        }
        self.check_parent()?;
        if !poll::wait_one_calmly(
            self.entry.pidfd.as_fd(),
            Interest::Readable,
            Deadline::PASSED,
        )? {
            return Ok(None);
        }
        self.collect()
    }

    /// Waits until it ended.
    pub fn join(&self, deadline: Deadline) -> Result<Exit> {
        let timed_out = Error::TimedOut { what: "a process" };
        loop {
            if let Some(exit) = self.poll()? {
                return Ok(exit);
            }
            let pidfd = self.entry.pidfd.as_fd();
            if !poll::wait_one(pidfd, Interest::Readable, deadline)? && deadline.has_passed() {
                return Err(timed_out);
            }
        }
    }

    /// Asks it to end: SIGTERM. False if it had ended already.
    pub fn terminate(&self) -> Result<bool> {
        self.signal(15)
    }

    /// Ends it: SIGKILL. False if it had ended already.
    pub fn kill(&self) -> Result<bool> {
        self.signal(9)
    }

    /// Sends a signal. False if it had ended already.
    pub fn signal(&self, number: i32) -> Result<bool> {
        self.check_parent()?;
        if self.entry.exit.get().is_some() {
            return Ok(false);
        }
        process::signal(self.entry.pidfd.as_fd(), number)
    }

    /// Lets go of a child that ended; refused while it runs.
    pub fn close(self) -> Result<()> {
        match self.poll()? {
            Some(_) => Ok(()),
            None => Err(Error::Misuse {
                action: "close a process",
                why: "it is still running",
            }),
        }
    }

    fn check_parent(&self) -> Result<()> {
        if self.entry.epoch == epoch::current() {
            return Ok(());
        }
        Err(Error::Misuse {
            action: "ask for a process",
            why: "another process is its parent",
        })
    }

    /// Asks how the child ended, which has, and frees what it owned.
    fn collect(&self) -> Result<Option<Exit>> {
        let entry = &self.entry;
        let guard = entry.collecting.lock();
        if let Some(exit) = entry.exit.get() {
            return Ok(Some(*exit));
        }
        let ended = match &entry.line {
            Some(line) => zygote::ending(line.as_fd())?,
            None => match process::collect(entry.pidfd.as_fd()) {
                Ok(Some(ended)) => Some(ended),
                // A tracer looks at it first.
                Ok(None) => return Ok(None),
                Err(e) if process::is_no_child(&e) => None,
                Err(e) => return Err(e),
            },
        };
        let exit = entry.judge(ended);
        *entry.lifeline.lock() = None;
        household::forget(entry);
        // The family learns of it at once; without a seat, somebody's sweep will find it.
        if let Ok(me) = entry.family.me() {
            entry.family.bury(me, entry.slot, entry.generation);
        }
        // Said last: who hears that it ended finds what it held back where it belongs.
        let exit = *entry.exit.get_or_init(|| exit);
        drop(guard);
        Ok(Some(exit))
    }
}
