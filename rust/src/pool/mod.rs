//! Workers that call functions, one of whom may die at any moment.
//!
//! `worker` runs in the worker's process, everything else in the pool's. `desk` is where outcomes are handed out to those
//! who wait for them; `job` is one call, `map` many.

mod desk;
mod job;
mod map;
mod worker;

pub use job::{JobError, JobHandle, WorkerDied};
pub use map::{Map, MapUnordered};

use crate::error::{Error, Result};
use crate::process::{Builder, StartMethod};
use crate::program;
use crate::task::{Call, Task};
use desk::Desk;
use map::Flight;
use procession_core::pool::{Options, Place, Pool as Engine, WorkerStats};
use procession_core::process::Child;
use procession_core::{self as core, Deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use worker::Post;

/// A number of worker processes that call functions.
///
/// A worker that dies takes with it the one call that it was in, and is replaced: that call fails with
/// [`JobError::WorkerDied`], or is made again if it [may be](JobOptions::retries). The others do not notice.
///
/// Dropping the pool ends the workers, whatever they do; [`join`](Pool::join) lets them finish.
///
/// ```
/// use procession::Pool;
///
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// #[procession::main]
/// fn main() -> procession::Result<()> {
///     let pool = Pool::with_workers(2)?;
///     let one = pool.call(square, (12,))?;
///     let many: Vec<u64> = pool.map(square, 0..5).collect::<Result<_, _>>()?;
///     assert_eq!(many, [0, 1, 4, 9, 16]);
///     assert_eq!(one.join()?, 144);
///     Ok(())
/// }
/// ```
pub struct Pool {
    desk: Arc<Desk>,
    keeper: Option<thread::JoinHandle<()>>,
}

impl Pool {
    /// Starts a pool with as many workers as this process may use processors.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::new()?;
    /// assert_eq!(pool.call(|| 7, ())?.join()?, 7);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new() -> Result<Pool> {
        Pool::builder().create()
    }

    /// Starts a pool with so many workers; at least one.
    pub fn with_workers(workers: usize) -> Result<Pool> {
        Pool::builder().workers(workers).create()
    }

    /// Begins a pool that is not as usual.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::builder().workers(2).jobs_per_worker(10).create()?;
    /// assert_eq!(pool.workers(), 2);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn builder() -> PoolBuilder {
        PoolBuilder {
            options: Options::default(),
            method: StartMethod::default(),
            post: None,
        }
    }

    /// Has a worker call `task` with the arguments.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(1)?;
    /// let job = pool.call(|a: String, b: String| a + &b, ("o".to_string(), "k".to_string()))?;
    /// assert_eq!(job.join()?, "ok");
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn call<F, A>(&self, task: F, arguments: A) -> Result<JobHandle<F::Output>>
    where
        F: Task<A>,
        A: Serialize + DeserializeOwned,
    {
        self.call_with(JobOptions::default(), task, arguments)
    }

    /// [`call`](Pool::call) with a limit of time, or more than one try.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{JobError, JobOptions, Pool};
    /// use std::time::Duration;
    ///
    /// let pool = Pool::with_workers(1)?;
    /// let options = JobOptions::new().timeout(Duration::from_millis(50));
    /// let job = pool.call_with(options, || std::thread::sleep(Duration::from_secs(60)), ())?;
    /// assert!(matches!(job.join(), Err(JobError::TimedOut(_))));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn call_with<F, A>(
        &self,
        options: JobOptions,
        task: F,
        arguments: A,
    ) -> Result<JobHandle<F::Output>>
    where
        F: Task<A>,
        A: Serialize + DeserializeOwned,
    {
        JobHandle::submit(
            &self.desk,
            options,
            Call::once(task)?,
            &arguments,
            type_name::<F>(),
        )
    }

    /// Has the workers call `task` with each of the items; the results come in the order of the items.
    ///
    /// The items are pulled as results are: a few for each worker are on their way at a time, so that they may come from
    /// a source without end. See [`Map`] for how to set this, and limits of time.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(2)?;
    /// let lengths = pool.map(|word: String| word.len(), ["one", "three"].map(String::from));
    /// assert_eq!(lengths.collect::<Result<Vec<_>, _>>()?, [3, 5]);
    ///
    /// let without_end = pool.map(|n: u64| n * n, 1..);
    /// let first = without_end.map(Result::unwrap).find(|square| *square > 1000);
    /// assert_eq!(first, Some(1024));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn map<F, I>(&self, task: F, items: I) -> Map<'_, F, I::IntoIter>
    where
        F: Task<(I::Item,)>,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
    {
        Map::new(Flight::new(self, task, items.into_iter()))
    }

    /// [`map`](Pool::map), with the results as they come: each with the number of its item.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(2)?;
    /// let mut doubled = [0; 10];
    /// for (index, result) in pool.map_unordered(|n: usize| 2 * n, 0..10) {
    ///     doubled[index] = result?;
    /// }
    /// assert_eq!(doubled, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn map_unordered<F, I>(&self, task: F, items: I) -> MapUnordered<'_, F, I::IntoIter>
    where
        F: Task<(I::Item,)>,
        I: IntoIterator,
        I::Item: Serialize + DeserializeOwned,
    {
        MapUnordered::new(Flight::new(self, task, items.into_iter()))
    }

    /// How many workers it has.
    pub fn workers(&self) -> usize {
        self.desk.workers()
    }

    /// How many calls have no result yet.
    pub fn pending(&self) -> usize {
        self.desk.engine().pending()
    }

    /// What each worker has done so far, and does now.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(2)?;
    /// pool.call(|| (), ())?.join()?;
    /// let pids: Vec<u32> = pool.stats().iter().map(|worker| worker.pid).collect();
    /// assert_eq!(pids.len(), 2);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn stats(&self) -> Vec<WorkerStats> {
        self.desk.engine().stats()
    }

    /// Refuses further calls. The workers end when they are done with those that were made.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(1)?;
    /// let job = pool.call(|| 7, ())?;
    /// pool.close()?;
    /// assert!(pool.call(|| 8, ()).is_err());
    /// assert_eq!(job.join()?, 7);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn close(&self) -> Result<()> {
        Ok(self.desk.engine().close()?)
    }

    /// Ends the workers now. Calls without a result fail with [`JobError::Terminated`].
    ///
    /// ```
    /// # procession::init();
    /// use procession::{JobError, Pool};
    ///
    /// let pool = Pool::with_workers(1)?;
    /// let job = pool.call(|| std::thread::sleep(std::time::Duration::from_secs(60)), ())?;
    /// pool.terminate()?;
    /// assert!(matches!(job.join(), Err(JobError::Terminated)));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn terminate(&self) -> Result<()> {
        Ok(self.desk.engine().terminate()?)
    }

    /// Refuses further calls, and waits until those that were made are done and the workers have ended.
    ///
    /// ```
    /// # procession::init();
    /// let pool = procession::Pool::with_workers(1)?;
    /// let job = pool.call(|| 7, ())?;
    /// pool.join()?;
    /// assert_eq!(job.join()?, 7);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn join(&self) -> Result<()> {
        self.close()?;
        self.desk.wait_until_over(Deadline::NEVER).map(|_| ())
    }

    /// [`join`](Pool::join) for at most so long; whether the workers have ended.
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        let deadline = Deadline::after(timeout);
        self.close()?;
        self.desk.wait_until_over(deadline)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Fails only in a forked child, whose the pool is not; nor is there a keeper.
        if self.terminate().is_ok()
            && let Some(keeper) = self.keeper.take()
        {
            let _ = keeper.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.desk.engine().fmt(f)
    }
}

/// The keeper: replaces workers that end. It sleeps until one does, or a call runs too long.
fn keep(desk: &Desk) {
    loop {
        match desk.engine().tend(Deadline::NEVER) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) if error.is_interrupted() => {}
            // The system has no more of something, for the moment.
            Err(_) => thread::park_timeout(Duration::from_millis(100)),
        }
    }
    desk.note_over();
}

/// How a call is to be made.
///
/// ```
/// # procession::init();
/// use procession::{JobOptions, Pool, SharedValue};
///
/// fn die_twice(tries: SharedValue<u32>) -> u32 {
///     match tries.fetch_add(1) {
///         before @ 0..2 => std::process::abort(),
///         before => before,
///     }
/// }
///
/// let (pool, tries) = (Pool::with_workers(1)?, SharedValue::new(0)?);
/// let job = pool.call_with(JobOptions::new().retries(2), die_twice, (tries.clone(),))?;
/// assert_eq!(job.join()?, 2);
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobOptions {
    engine: core::pool::JobOptions,
}

impl JobOptions {
    /// As usual: one try, for as long as it takes.
    pub fn new() -> JobOptions {
        JobOptions::default()
    }

    /// How long it may run; then its worker is killed. The time it waits for a worker does not count.
    pub fn timeout(mut self, timeout: Duration) -> JobOptions {
        self.engine.timeout = Some(timeout);
        self
    }

    /// How often the call is made again after its worker died, or was killed for running too long. A panic is a result,
    /// and not tried again.
    pub fn retries(mut self, retries: u32) -> JobOptions {
        self.engine.retries = retries;
        self
    }
}

/// How a pool is to be; from [`Pool::builder`].
#[must_use = "a builder does nothing until `create`"]
pub struct PoolBuilder {
    options: Options,
    method: StartMethod,
    post: Option<Box<Launch>>,
}

/// Starts a worker in its place.
type Launch = dyn Fn(&Builder, Place) -> Result<Child> + Send + Sync;

impl PoolBuilder {
    /// How many workers; at least one. As many as this process may use processors, if it is not set.
    pub fn workers(mut self, workers: usize) -> PoolBuilder {
        self.options.workers = workers.max(1);
        self
    }

    /// After how many calls a worker is replaced by a new one.
    ///
    /// ```
    /// # procession::init();
    /// use std::collections::HashSet;
    ///
    /// let pool = procession::Pool::builder().workers(1).jobs_per_worker(1).create()?;
    /// let pids = pool.map(|_: u8| std::process::id(), 0..3).collect::<Result<HashSet<_>, _>>()?;
    /// assert_eq!(pids.len(), 3);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn jobs_per_worker(mut self, jobs: u64) -> PoolBuilder {
        self.options.jobs_per_worker = Some(jobs.max(1));
        self
    }

    /// How workers come to be.
    pub fn method(mut self, method: StartMethod) -> PoolBuilder {
        self.method = method;
        self
    }

    /// After how many workers in a row that end before their first call the pool is broken, rather than try for ever.
    pub fn start_failures_max(mut self, failures: u32) -> PoolBuilder {
        self.options.start_failures_max = failures.max(1);
        self
    }

    /// Has each worker call this first, with the arguments. A worker that panics in it has failed to start.
    ///
    /// ```
    /// # procession::init();
    /// use std::sync::OnceLock;
    ///
    /// static GREETING: OnceLock<String> = OnceLock::new();
    ///
    /// let remember = |greeting: String| GREETING.set(greeting).unwrap();
    /// let pool = procession::Pool::builder().workers(1).initializer(remember, ("hello".to_string(),)).create()?;
    /// assert_eq!(pool.call(|| GREETING.get().cloned(), ())?.join()?.unwrap(), "hello");
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn initializer<F, A>(mut self, task: F, arguments: A) -> PoolBuilder
    where
        F: Task<A, Output = ()>,
        A: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
    {
        self.post = Some(post(task, arguments));
        self
    }

    /// Starts the pool.
    pub fn create(self) -> Result<Pool> {
        program::check_initialized()?;
        let method = self.method;
        let post = self.post.unwrap_or_else(|| post(|| (), ()));
        let launch = move |place: Place| {
            let builder = Builder::new()
                .name(format!("worker-{}", place.index))
                .method(method)
                .daemon(true);
            post(&builder, place).map_err(|error| match error {
                Error::Engine(error) => error,
                other => core::Error::StartFailed {
                    method: "a pool",
                    why: other.to_string(),
                },
            })
        };
        let engine = Engine::create(program::family()?, self.options, launch)?;
        let desk = Arc::new(Desk::new(engine, self.options.workers));
        let keeper = {
            let desk = Arc::clone(&desk);
            thread::Builder::new()
                .name("procession-keeper".into())
                .spawn(move || keep(&desk))
        };
        let keeper = keeper.map_err(|source| core::Error::Os {
            action: "start the pool's keeper",
            source,
        })?;
        Ok(Pool {
            desk,
            keeper: Some(keeper),
        })
    }
}

/// How workers are started that call `task` first.
fn post<F, A>(task: F, arguments: A) -> Box<Launch>
where
    F: Task<A, Output = ()>,
    A: Serialize + DeserializeOwned + Clone + Send + Sync + 'static,
{
    let _ = task;
    Box::new(move |builder, place| {
        let call = Call::once(worker::work::<F, A>)?;
        let arguments = (Post::new(place), arguments.clone());
        builder.start(call, &arguments, None, "worker")
    })
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("options", &self.options)
            .field("method", &self.method)
            .field("initializer", &self.post.is_some())
            .finish()
    }
}
