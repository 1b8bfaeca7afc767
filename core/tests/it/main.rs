//! The engine with real processes and real kills.

mod connection;
mod process;
mod queue;
mod support;
mod support_process;
