//! The engine with real processes.

mod process;
mod support_process;
