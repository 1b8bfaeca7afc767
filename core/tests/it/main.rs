//! The engine with real processes and real kills.

mod connection;
mod pool;
mod process;
mod queue;
mod support;
mod support_process;
mod support_sync;
mod sync;
