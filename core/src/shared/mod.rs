//! Bytes that several processes read and write in place.
//!
//! A [`Cell`] is plain memory with atomic numbers in it: who needs more than one number at a time brings a lock. A
//! [`Guarded`] brings the lock, and two versions of its bytes, so that no death leaves them torn. Start with
//! [`Cell::create`]. This room knows nothing of what the bytes mean.

pub(crate) mod cell;
pub(crate) mod guarded;

pub use cell::Cell;
pub use guarded::{Guarded, GuardedGuard};

use crate::error::{Error, Result};

/// Refuses a range that does not lie in `length` bytes.
fn check_range(what: &'static str, offset: u64, bytes: usize, length: u64) -> Result<()> {
    let end = offset.saturating_add(bytes as u64);
    if end > length {
        return Err(Error::TooLarge {
            what,
            length: end,
            limit: length,
        });
    }
    Ok(())
}
