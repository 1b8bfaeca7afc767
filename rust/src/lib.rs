//! Process-based parallelism: processes, a pool, queues, pipes, locks and shared data, across processes, typed.
//!
//! ```
//! use procession::{Process, Queue};
//!
//! fn count_words(texts: Queue<String>, counts: Queue<usize>) {
//!     for text in &texts {
//!         counts.put(text.unwrap().split_whitespace().count()).unwrap();
//!     }
//! }
//!
//! #[procession::main]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let (texts, counts) = (Queue::unbounded()?, Queue::unbounded()?);
//!     let child = Process::spawn(count_words, (texts.clone(), counts.clone()))?;
//!     texts.put("one two three".to_string())?;
//!     assert_eq!(counts.get()?, 3);
//!     texts.close()?;
//!     child.join()?;
//!     Ok(())
//! }
//! ```
//!
//! A program and all that it starts are a *family*, which shares memory that nothing outside has a name for. `kill -9`
//! of any of its processes leaves the others running: no lock is held for ever, no message of another is lost, nothing
//! stays behind.
//!
//! # How to read the names
//!
//! What one knows of threads and channels is right here too. Throughout, `foo` waits for as long as it takes; `try_foo`
//! and `foo_timeout` answer `None`, or `false`, for what could not be had in time. What takes a value gives it back in
//! its error. Signals end no wait.
//!
//! # What travels
//!
//! Values travel by serde, as postcard. All that is shared here (queues, locks, pipes, cells) can be in such a value: an
//! argument, a message, a result. A function travels by its place in the program, see [`Task`].

mod barrier;
mod child;
mod codec;
mod condvar;
mod connection;
mod error;
mod event;
mod image;
mod joinable;
mod mutex;
mod panics;
mod pool;
mod process;
mod program;
mod queue;
mod semaphore;
mod shared;
mod task;
mod waiting;

pub use barrier::{Barrier, BarrierWaitResult};
pub use condvar::Condvar;
pub use connection::{
    Connection, Received, Receiver, SendError, Sender, channel, pipe, wait, wait_timeout,
};
pub use error::{Error, Result};
pub use event::Event;
pub use joinable::{Deliveries, Delivery, JoinableQueue, JoinableQueueBuilder};
pub use mutex::{LockError, Mutex, MutexGuard, Repair};
pub use panics::Panic;
pub use pool::{JobError, JobHandle, JobOptions, Map, MapUnordered, Pool, PoolBuilder, WorkerDied};
pub use process::{Builder, Death, JoinError, Process, StartMethod, Stdio};
pub use procession_core::pool::WorkerStats;
pub use procession_core::process::{Current, Ending, Exit, Parent, parent};
pub use program::{configure, current, finish, init};
pub use queue::{Iter, PutError, Queue};
pub use semaphore::{Permit, Semaphore, SemaphoreBuilder};
pub use shared::{Number, SharedSlice, SharedValue, Word};
pub use task::{Registered, Task, tasks};

pub use bytemuck::{self, Pod, Zeroable};
pub use procession_macros::{main, task, test};

/// For the attributes.
#[doc(hidden)]
pub mod __private {
    pub use crate::program::{enter_test, run_main};
    pub use crate::task::{assert_task, registered};
    pub use inventory;
}

/// The programs on the front page run too.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct FrontPage;
