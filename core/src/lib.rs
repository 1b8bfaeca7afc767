//! Bytes between processes: the engine of procession.
//!
//! Rooms, from the ground up; each uses those before it:
//!
//! - `sys`: the kernel, and nothing else talks to it.
//! - `memory`: what a [`Family`] of processes shares, and what becomes of it when one of them dies.
//! - [`sync`]: waiting for one another: locks, permits, conditions, events, barriers.
//! - [`queue`]: messages in order, many writers and many readers.
//! - [`connection`]: pipes between two processes, and waiting for descriptors.
//! - [`shared`]: bytes that several processes read and write in place.
//! - [`process`]: starting processes, and what becomes of them.
//! - [`pool`]: workers that take jobs, one of whom may die at any moment.
//!
//! The engine starts no thread, installs no signal handler and prints nothing. It moves bytes and never asks what they
//! mean; a face (the crate `procession`, the Python package) gives them meaning.

pub mod connection;
pub mod deadline;
pub mod error;
mod fault;
mod memory;
pub mod pool;
pub mod process;
pub mod queue;
pub mod shared;
pub mod sync;
mod sys;
mod tag;
#[doc(hidden)]
pub mod testing;

pub use deadline::Deadline;
pub use error::{Error, Result};
pub use memory::{Builder, Family, Findings, Handle, Parcel, Usage};
pub use queue::{Message, OnDeath, Options, Outgoing, Queue};
pub use sys::machine::processors;
pub use tag::Tag;

use memory::object::Kind;

/// The kinds of objects, by number. The order is part of the arena's layout.
static KINDS: [Kind; 13] = [
    memory::object::KIND,
    sync::mutex::KIND,
    sync::recursive::KIND,
    sync::semaphore::KIND,
    sync::condition::KIND,
    sync::event::KIND,
    sync::barrier::KIND,
    queue::ring::KIND,
    connection::pipe::KIND,
    shared::cell::KIND,
    shared::guarded::KIND,
    connection::locker::KIND,
    pool::board::KIND,
];

/// Begins a new family, with the calling process as its root.
pub fn family() -> Builder {
    Builder::new(&KINDS)
}
