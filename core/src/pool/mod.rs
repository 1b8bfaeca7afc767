//! Workers that take jobs, one of whom may die at any moment.
//!
//! Jobs wait in a queue whose messages are leased: taking a job is a claim in the arena, so that a death is a fact with
//! a name. What a dead worker had in its hands comes out of the queue of dead letters, with the number of the process
//! that died; the keeper ([`Pool::tend`]) makes an outcome of it and starts another worker. Nobody else notices.
//!
//! `job` is what crosses between the two sides; `worker` is the side that runs jobs; `roster` is the side that hands them
//! out; `board` is what both look at. This room starts processes by a function that it is given, and starts no thread:
//! a face calls [`Pool::tend`] in one.

pub(crate) mod board;
mod job;
mod roster;
mod worker;

pub use board::{PLACES_MAX, Place, WorkerStats};
pub use job::{Job, JobId, Kind as OutcomeKind, Outcome, WorkerDied};
pub use roster::{JobOptions, Options, Pool};
pub use worker::Worker;
