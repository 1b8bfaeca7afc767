//! The Rust face with real processes.

mod pool;
mod process;
mod queue;
mod support;
