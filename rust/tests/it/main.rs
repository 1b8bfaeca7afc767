//! The Rust face with real processes.

mod process;
mod queue;
