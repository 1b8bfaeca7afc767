//! The Rust face with real processes.

mod connection;
mod pool;
mod process;
mod queue;
mod support;
mod sync;
