//! The engine with real processes and real kills.

mod pool;
mod process;
mod queue;
mod support;
mod support_process;
