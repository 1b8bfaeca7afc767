//! How this face waits: as the standard library does, through signals.

use procession_core::Result;

/// Calls `wait` until its answer is not that a signal handler ran. Its deadline is absolute, so nothing grows longer.
pub(crate) fn through_signals<T>(mut wait: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match wait() {
            Err(error) if error.is_interrupted() => {}
            answer => return answer,
        }
    }
}

/// `None` for a wait that ran out of time.
pub(crate) fn in_time<T>(answer: Result<T>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_timeout() => Ok(None),
        Err(error) => Err(error),
    }
}
