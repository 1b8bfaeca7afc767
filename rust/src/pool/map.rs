//! Many calls of one function, a few of them on their way at a time.

use super::desk::InboxId;
use super::job::{JobError, answer, report_to_result};
use super::{JobOptions, Pool};
use crate::codec;
use crate::error::Error;
use crate::task::{Call, Report, Task};
use procession_core::Deadline;
use procession_core::pool::{JobId, Outcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::collections::VecDeque;
use std::fmt;
use std::iter::{Fuse, FusedIterator};
use std::time::Duration;
use std::vec;

/// How many calls are on their way for each worker, if nothing else is said: one that runs, and some so that it finds the
/// next one there.
const WINDOW_FOR_EACH: usize = 4;

/// Items on their way to workers and back, in calls of one or more items.
pub(super) struct Flight<'a, F, I: Iterator> {
    pool: &'a Pool,
    task: F,
    items: Fuse<I>,
    /// How many calls may be on their way.
    window: usize,
    /// How many items are in a call.
    chunk: usize,
    options: JobOptions,
    inbox: InboxId,
    /// Calls on their way or back, in the order of their items; so their numbers rise too.
    calls: VecDeque<Chunk>,
    /// The number of the next item.
    next: usize,
    /// Nothing more can be handed in.
    stopped: bool,
}

/// One call.
struct Chunk {
    /// The number of its first item, and how many there are.
    first: usize,
    count: usize,
    state: ChunkState,
}

enum ChunkState {
    Away(JobId),
    Back(Outcome),
    /// It could not be handed in.
    Refused(Error),
}

/// The results of one call.
type Results<R> = vec::IntoIter<Result<R, JobError>>;

impl<'a, F, I> Flight<'a, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
    I::Item: Serialize + DeserializeOwned,
{
    pub(super) fn new(pool: &'a Pool, task: F, items: I) -> Flight<'a, F, I> {
        Flight {
            pool,
            task,
            items: items.fuse(),
            window: (pool.workers() * WINDOW_FOR_EACH).max(1),
            chunk: 1,
            options: JobOptions::default(),
            inbox: pool.desk.open(),
            calls: VecDeque::new(),
            next: 0,
            stopped: false,
        }
    }

    /// Pulls items and hands them in, as long as there is room in the window.
    fn fill(&mut self) {
        while !self.stopped && self.calls.len() < self.window {
            let items: Vec<_> = self.items.by_ref().take(self.chunk).collect();
            if items.is_empty() {
                return;
            }
            let (first, count) = (self.next, items.len());
            self.next += count;
            let state = match self.submit(&items) {
                Ok(job) => ChunkState::Away(job),
                Err(error) => {
                    // What is wrong with these items need not be wrong with others; a pool that is closed stays so.
                    self.stopped = !matches!(error, Error::Encode { .. });
                    ChunkState::Refused(error)
                }
            };
            self.calls.push_back(Chunk {
                first,
                count,
                state,
            });
        }
    }

    fn submit(&self, items: &[I::Item]) -> Result<JobId, Error> {
        let call = Call::each(self.task)?;
        let encoded = codec::encode_after(codec::encode(&call)?, items)?;
        let desk = &self.pool.desk;
        Ok(encoded.send(|job| desk.submit(self.inbox, job, self.options.engine))?)
    }

    /// Waits until one more call is back.
    fn wait(&mut self) -> Result<(), Error> {
        let Some(outcome) = self.pool.desk.wait(self.inbox, Deadline::NEVER)? else {
            return Ok(());
        };
        let away = self
            .calls
            .iter_mut()
            .find(|call| matches!(call.state, ChunkState::Away(job) if job == outcome.job));
        if let Some(call) = away {
            call.state = ChunkState::Back(outcome);
        }
        Ok(())
    }

    /// The first call in order, once it is back; `None` when all have been.
    fn next_in_order(&mut self) -> Option<Chunk> {
        self.fill();
        while matches!(self.calls.front()?.state, ChunkState::Away(_)) {
            self.wait_or_fail();
        }
        self.calls.pop_front()
    }

    /// A call that is back; `None` when all have been.
    fn next_back(&mut self) -> Option<Chunk> {
        self.fill();
        loop {
            if self.calls.is_empty() {
                return None;
            }
            let back = |call: &Chunk| !matches!(call.state, ChunkState::Away(_));
            match self.calls.iter().position(back) {
                Some(index) => return self.calls.remove(index),
                None => self.wait_or_fail(),
            }
        }
    }

    /// [`Flight::wait`]; an error is that of the first call, and no more are made.
    fn wait_or_fail(&mut self) {
        if let Err(error) = self.wait() {
            self.stopped = true;
            let away = |call: &&mut Chunk| matches!(call.state, ChunkState::Away(_));
            if let Some(call) = self.calls.iter_mut().find(away) {
                call.state = ChunkState::Refused(error);
            }
        }
    }

    /// The results of a call that is back.
    fn open(&self, chunk: Chunk) -> Results<F::Output> {
        let items = chunk.first..chunk.first + chunk.count;
        let task = type_name::<F>();
        let opened: Result<Report<Vec<Report<F::Output>>>, JobError> = match chunk.state {
            ChunkState::Back(outcome) => answer(outcome, task, Some(items)),
            ChunkState::Refused(error) => Err(JobError::Failed(error)),
            ChunkState::Away(_) => unreachable!("only calls that are back are opened"),
        };
        let results: Vec<_> = match opened.and_then(report_to_result) {
            Ok(reports) if reports.len() == chunk.count => {
                reports.into_iter().map(report_to_result).collect()
            }
            Ok(reports) => repeat(
                JobError::Refused {
                    why: format!("{} results came of {} items", reports.len(), chunk.count),
                },
                chunk.count,
            ),
            Err(error) => repeat(error, chunk.count),
        };
        results.into_iter()
    }
}

impl<F, I: Iterator> Drop for Flight<'_, F, I> {
    fn drop(&mut self) {
        let desk = &self.pool.desk;
        desk.close(self.inbox);
        for call in &self.calls {
            if let ChunkState::Away(job) = call.state {
                // What runs goes on to its end, what waits is not begun.
                let _ = desk.engine().forget(job);
            }
        }
    }
}

/// The fate of one call, as that of each of its items.
fn repeat<R>(error: JobError, count: usize) -> Vec<Result<R, JobError>> {
    let again = || match &error {
        JobError::Panicked(panic) => JobError::Panicked(panic.clone()),
        JobError::WorkerDied(died) => JobError::WorkerDied(died.clone()),
        JobError::TimedOut(died) => JobError::TimedOut(died.clone()),
        JobError::Cancelled => JobError::Cancelled,
        JobError::Terminated => JobError::Terminated,
        JobError::Broken { why } => JobError::Broken { why: why.clone() },
        JobError::Refused { why } => JobError::Refused { why: why.clone() },
        JobError::Failed(error) => JobError::Refused {
            why: error.to_string(),
        },
    };
    let mut results: Vec<_> = (1..count).map(|_| Err(again())).collect();
    results.insert(0, Err(error));
    results
}

macro_rules! settings {
    ($name:ident) => {
        impl<F: Task<(I::Item,)>, I: Iterator> $name<'_, F, I> {
            /// Sends so many items in one call, for functions that are so quick that sending is most of the work.
            ///
            /// The items of a call share its fate when the worker dies, and its limit of time.
            pub fn chunk(mut self, items: usize) -> Self {
                self.flight.chunk = items.max(1);
                self
            }

            /// Has at most so many calls on their way: running, waiting for a worker, or back and not yet asked for.
            pub fn window(mut self, calls: usize) -> Self {
                self.flight.window = calls.max(1);
                self
            }

            /// How long one call may run; then its worker is killed.
            pub fn timeout(mut self, timeout: Duration) -> Self {
                self.flight.options = self.flight.options.timeout(timeout);
                self
            }

            /// How often a call is made again after its worker died or was killed.
            pub fn retries(mut self, retries: u32) -> Self {
                self.flight.options = self.flight.options.retries(retries);
                self
            }
        }

        impl<F: Task<(I::Item,)>, I: Iterator> fmt::Debug for $name<'_, F, I> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name))
                    .field("task", &type_name::<F>())
                    .field("pulled", &self.flight.next)
                    .field("on their way", &self.flight.calls.len())
                    .finish_non_exhaustive()
            }
        }
    };
}

/// The results of many calls, in the order of the items; from [`Pool::map`].
///
/// ```
/// # procession::init();
/// use procession::Pool;
/// use std::time::Duration;
///
/// let pool = Pool::with_workers(2)?;
/// let squares = pool
///     .map(|n: u64| n * n, 0..1000)
///     .chunk(100)
///     .window(4)
///     .timeout(Duration::from_secs(60))
///     .retries(1);
/// assert_eq!(squares.sum::<Result<u64, _>>()?, 332_833_500);
/// # Ok::<(), procession::Error>(())
/// ```
#[must_use = "items are pulled as results are asked for"]
pub struct Map<'a, F: Task<(I::Item,)>, I: Iterator> {
    flight: Flight<'a, F, I>,
    results: Results<F::Output>,
}

impl<'a, F, I> Map<'a, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
{
    pub(super) fn new(flight: Flight<'a, F, I>) -> Map<'a, F, I> {
        Map {
            flight,
            results: Vec::new().into_iter(),
        }
    }
}

impl<F, I> Iterator for Map<'_, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
    I::Item: Serialize + DeserializeOwned,
{
    type Item = Result<F::Output, JobError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(result) = self.results.next() {
                return Some(result);
            }
            let back = self.flight.next_in_order()?;
            self.results = self.flight.open(back);
        }
    }
}

impl<F, I> FusedIterator for Map<'_, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
    I::Item: Serialize + DeserializeOwned,
{
}

/// The results of many calls as they come, each with the number of its item; from [`Pool::map_unordered`].
///
/// ```
/// # procession::init();
/// let pool = procession::Pool::with_workers(2)?;
/// let results = pool.map_unordered(|n: u64| n * n, 0..100).window(10);
/// let sum: u64 = results.map(|(_, square)| square.unwrap()).sum();
/// assert_eq!(sum, 328_350);
/// # Ok::<(), procession::Error>(())
/// ```
#[must_use = "items are pulled as results are asked for"]
pub struct MapUnordered<'a, F: Task<(I::Item,)>, I: Iterator> {
    flight: Flight<'a, F, I>,
    results: Results<F::Output>,
    /// The number of the item that the next result is of.
    index: usize,
}

impl<'a, F, I> MapUnordered<'a, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
{
    pub(super) fn new(flight: Flight<'a, F, I>) -> MapUnordered<'a, F, I> {
        MapUnordered {
            flight,
            results: Vec::new().into_iter(),
            index: 0,
        }
    }
}

impl<F, I> Iterator for MapUnordered<'_, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
    I::Item: Serialize + DeserializeOwned,
{
    type Item = (usize, Result<F::Output, JobError>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(result) = self.results.next() {
                let index = self.index;
                self.index += 1;
                return Some((index, result));
            }
            let back = self.flight.next_back()?;
            self.index = back.first;
            self.results = self.flight.open(back);
        }
    }
}

impl<F, I> FusedIterator for MapUnordered<'_, F, I>
where
    F: Task<(I::Item,)>,
    I: Iterator,
    I::Item: Serialize + DeserializeOwned,
{
}

settings! { Map }
settings! { MapUnordered }
