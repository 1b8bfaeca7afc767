//! The engine with real processes and real kills.

mod queue;
mod support;
