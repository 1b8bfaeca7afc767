//! The engine with real processes and real kills.
#![allow(
    clippy::print_stdout,
    reason = "tests print their seeds and what the storms did"
)]

mod connection;
mod pool;
mod process;
mod queue;
mod support;
mod support_process;
mod support_sync;
mod sync;
