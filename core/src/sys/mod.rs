//! The kernel. Nothing else talks to it.
//!
//! What a system must provide to carry procession; Linux provides it in the files named:
//!
//! - `memory`: anonymous memory that several processes map, that grows and never shrinks under them, pages of which can
//!   be given back; a page that reads zero after a fork.
//! - `futex`: wait on a 32-bit word shared between processes until it changes, with an absolute deadline, and on several
//!   words at once. Where the latter is missing, a bounded re-check takes its place.
//! - `token`: a mutex in shared memory of which the kernel tells that its owner died.
//! - `process`: start, watch by descriptor, signal without a race on process numbers.
//! - `socket`: sequenced packets between two processes, with descriptors among them.
//! - `poll`: wait for descriptors.
//! - `machine`: clocks, processors, limits, control groups.
//!
//! Every wait answers a signal by [`Interrupted`](crate::Error::Interrupted).

pub(crate) mod futex;
pub(crate) mod machine;
pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod socket;
pub(crate) mod token;
