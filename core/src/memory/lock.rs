//! A lock between the threads of one process, which a fork copies whole.
//!
//! Why the standard library's, and not parking_lot's? That one keeps a table of sleepers beside the lock; a fork may
//! copy the table half-changed, and the child then hangs at its first contended lock.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A lock that a panic does not poison: what it guards is changed in single steps.
#[derive(Debug, Default)]
pub(crate) struct Lock<T> {
    mutex: Mutex<T>,
}

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Lock<T> {
        Lock {
            mutex: Mutex::new(value),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.mutex.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}
