//! One call, and what becomes of it.

use super::JobOptions;
use super::desk::{Desk, InboxId};
use crate::codec;
use crate::error::{Error, Result};
use crate::panics::Panic;
use crate::process::Told;
use crate::task::{Call, Report};
use procession_core::pool::{self as engine, JobId, Outcome, OutcomeKind};
use procession_core::process::{Ending, Exit};
use procession_core::{self as core, Deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A call that a worker of a [`Pool`](crate::Pool) makes.
///
/// Dropping it changes nothing for the call, whose result is dropped then.
///
/// ```
/// # procession::init();
/// let pool = procession::Pool::with_workers(2)?;
/// let jobs = [pool.call(|| 1, ())?, pool.call(|| 2, ())?];
/// let sum: i32 = jobs.into_iter().map(|job| job.join().unwrap()).sum();
/// assert_eq!(sum, 3);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct JobHandle<R> {
    desk: Arc<Desk>,
    inbox: InboxId,
    job: JobId,
    task: &'static str,
    joined: bool,
    result: PhantomData<fn() -> R>,
}

impl<R> JobHandle<R> {
    pub(super) fn submit<A: Serialize>(
        desk: &Arc<Desk>,
        options: JobOptions,
        call: Call,
        arguments: &A,
        task: &'static str,
    ) -> Result<JobHandle<R>> {
        let encoded = codec::encode_after(codec::encode(&call)?, arguments)?;
        let inbox = desk.open();
        let submitted = encoded.send(|job| desk.submit(inbox, job, options.engine));
        match submitted {
            Ok(job) => Ok(JobHandle {
                desk: Arc::clone(desk),
                inbox,
                job,
                task,
                joined: false,
                result: PhantomData,
            }),
            Err(error) => {
                desk.close(inbox);
                Err(error.into())
            }
        }
    }

    /// Its number in the pool, from 1 on.
    pub fn id(&self) -> u64 {
        self.job.0
    }

    /// Whether it has ended, so that joining it does not wait.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(1)?;
    /// let job = pool.call(|| 7, ())?;
    /// while !job.is_finished() {}
    /// assert_eq!(job.join()?, 7);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn is_finished(&self) -> bool {
        self.joined || self.desk.has_come(self.inbox)
    }

    /// Drops the call: if it waits it is not made, if it runs its worker is killed. False if it has ended already.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{JobError, Pool};
    ///
    /// let pool = Pool::with_workers(1)?;
    /// let job = pool.call(|| std::thread::sleep(std::time::Duration::from_secs(60)), ())?;
    /// assert!(job.cancel()?);
    /// assert!(matches!(job.join(), Err(JobError::Cancelled)));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn cancel(&self) -> Result<bool> {
        Ok(self.desk.engine().cancel(self.job)?)
    }
}

impl<R: DeserializeOwned> JobHandle<R> {
    /// Waits for the call to end, and gives what the function returned.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{JobError, Pool};
    ///
    /// let pool = Pool::with_workers(1)?;
    /// let job = pool.call(|n: u32| -> u32 { panic!("not {n}") }, (3,))?;
    /// match job.join() {
    ///     Err(JobError::Panicked(panic)) => assert_eq!(panic.message, "not 3"),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn join(mut self) -> Result<R, JobError> {
        loop {
            if let Some(result) = self.join_until(Deadline::NEVER)? {
                return Ok(result);
            }
        }
    }

    /// What the function returned, if the call has ended; `None` if not. After that, there is nothing more to join.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(1)?;
    /// let mut job = pool.call(|| 7, ())?;
    /// let seven = loop {
    ///     if let Some(result) = job.try_join()? {
    ///         break result;
    ///     }
    /// };
    /// assert_eq!(seven, 7);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn try_join(&mut self) -> Result<Option<R>, JobError> {
        self.join_until(Deadline::PASSED)
    }

    /// What the function returned, if the call ends in time; `None` if not.
    ///
    /// ```
    /// # procession::init();
    /// use std::time::Duration;
    ///
    /// let pool = procession::Pool::with_workers(1)?;
    /// let mut job = pool.call(|| std::thread::sleep(Duration::from_secs(60)), ())?;
    /// assert!(job.join_timeout(Duration::from_millis(5))?.is_none());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn join_timeout(&mut self, timeout: Duration) -> Result<Option<R>, JobError> {
        self.join_until(Deadline::after(timeout))
    }

    fn join_until(&mut self, deadline: Deadline) -> Result<Option<R>, JobError> {
        if self.joined {
            let misuse = core::Error::Misuse {
                action: "join a job",
                why: "it was joined already",
            };
            return Err(JobError::Failed(misuse.into()));
        }
        let Some(outcome) = self.desk.wait(self.inbox, deadline)? else {
            return Ok(None);
        };
        self.joined = true;
        let report: Report<R> = answer(outcome, self.task, None)?;
        report_to_result(report).map(Some)
    }
}

impl<R> Drop for JobHandle<R> {
    fn drop(&mut self) {
        self.desk.close(self.inbox);
    }
}

impl<R> fmt::Debug for JobHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobHandle")
            .field("id", &self.job.0)
            .field("task", &self.task)
            .field("finished", &self.is_finished())
            .finish_non_exhaustive()
    }
}

/// What a worker answered, of whatever form that is; or why there is no answer.
pub(super) fn answer<T: DeserializeOwned>(
    outcome: Outcome,
    task: &'static str,
    items: Option<Range<usize>>,
) -> Result<T, JobError> {
    match outcome.kind {
        OutcomeKind::Returned(reply) => Ok(codec::decode_tagged(reply.tag(), reply.bytes())?),
        OutcomeKind::Lost(died) => Err(JobError::WorkerDied(WorkerDied::new(died, task, items))),
        OutcomeKind::TimedOut(died) => Err(JobError::TimedOut(WorkerDied::new(died, task, items))),
        OutcomeKind::Cancelled => Err(JobError::Cancelled),
        OutcomeKind::Terminated => Err(JobError::Terminated),
        OutcomeKind::Broken(why) => Err(JobError::Broken { why }),
    }
}

pub(super) fn report_to_result<R>(report: Report<R>) -> Result<R, JobError> {
    match report {
        Report::Returned(result) => Ok(result),
        Report::Panicked(panic) => Err(JobError::Panicked(panic)),
        Report::Refused(why) => Err(JobError::Refused { why }),
    }
}

/// Why there is no result of a call.
///
/// ```
/// # procession::init();
/// use procession::{JobError, Pool};
///
/// fn fragile(n: u32) -> u32 {
///     if n == 2 {
///         std::process::abort();
///     }
///     n
/// }
///
/// let pool = Pool::with_workers(2)?;
/// for (n, result) in pool.map(fragile, 0..4).enumerate() {
///     match result {
///         Ok(same) => assert_eq!(same, n as u32),
///         Err(JobError::WorkerDied(died)) => assert_eq!((died.signal(), died.items), (Some(6), Some(2..3))),
///         Err(other) => panic!("{other}"),
///     }
/// }
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The function panicked.
    #[error("the task {0}")]
    Panicked(Panic),

    /// The worker died in the call: killed, crashed, or by `exit`.
    #[error("{0}")]
    WorkerDied(WorkerDied),

    /// The call ran longer than it may, and its worker was killed.
    #[error("`{}` ran longer than it may, and its worker was killed after {:.1?}", .0.task, .0.ran)]
    TimedOut(WorkerDied),

    /// It was cancelled.
    #[error("the call was cancelled")]
    Cancelled,

    /// The pool was terminated, or dropped.
    #[error("the pool was terminated")]
    Terminated,

    /// The pool's workers cannot start.
    #[error("the pool is broken: {why}")]
    Broken {
        /// Why the last one could not.
        why: String,
    },

    /// The worker could not read the arguments, or could not send what the function returned.
    #[error("the worker refused the call: {why}")]
    Refused {
        /// What it says.
        why: String,
    },

    /// The call could not be sent, the wait failed, or what came cannot be read.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// A worker that died in a call.
///
/// ```
/// # procession::init();
/// use procession::{JobError, Pool};
///
/// fn exit(code: i32) {
///     std::process::exit(code)
/// }
///
/// let pool = Pool::with_workers(1)?;
/// let Err(JobError::WorkerDied(died)) = pool.call(exit, (3,))?.join() else { unreachable!() };
/// assert_eq!((died.code(), died.signal()), (Some(3), None));
/// assert!(died.task.ends_with("::exit"));
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerDied {
    /// The worker's process.
    pub pid: u32,
    /// All that is known of its end; `None` if nobody could tell.
    pub exit: Option<Exit>,
    /// How long it had run the call.
    pub ran: Duration,
    /// The function.
    pub task: &'static str,
    /// Of a map, the numbers of the items that were in this call.
    pub items: Option<Range<usize>>,
}

impl WorkerDied {
    fn new(
        died: engine::WorkerDied,
        task: &'static str,
        items: Option<Range<usize>>,
    ) -> WorkerDied {
        WorkerDied {
            pid: died.pid,
            exit: died.exit,
            ran: died.ran,
            task,
            items,
        }
    }

    /// The signal that killed it.
    pub fn signal(&self) -> Option<i32> {
        match self.exit?.ending {
            Ending::Signal(signal) => Some(signal),
            Ending::Code(_) | Ending::Unknown => None,
        }
    }

    /// The code that it exited with.
    pub fn code(&self) -> Option<i32> {
        match self.exit?.ending {
            Ending::Code(code) => Some(code),
            Ending::Signal(_) | Ending::Unknown => None,
        }
    }

    /// Whether the system killed it for want of memory, as far as can be seen.
    pub fn is_out_of_memory(&self) -> bool {
        self.exit.and_then(|exit| exit.out_of_memory) == Some(true)
    }

    /// The most memory that it had, in bytes; 0 when not known.
    pub fn peak_memory(&self) -> u64 {
        self.exit.map_or(0, |exit| exit.peak_memory)
    }
}

impl fmt::Display for WorkerDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the worker of `{}`", self.task)?;
        match &self.items {
            None => {}
            Some(items) if items.len() == 1 => write!(f, " for item {}", items.start)?,
            Some(items) => write!(f, " for items {} to {}", items.start, items.end - 1)?,
        }
        match &self.exit {
            Some(exit) => write!(f, " (pid {}) {}", self.pid, Told(exit)),
            None => write!(f, " (pid {}) ended, nobody knows how", self.pid),
        }
    }
}
