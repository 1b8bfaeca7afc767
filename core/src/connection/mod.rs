//! Pipes between two processes, and waiting for descriptors.
pub(crate) mod locker;
