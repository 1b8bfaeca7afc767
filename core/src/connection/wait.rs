//! Waiting for several descriptors.

use crate::deadline::Deadline;
use crate::error::Result;
use crate::sys::poll::{self, Interest};
use std::os::fd::BorrowedFd;

/// Waits until some of the descriptors are readable or closed, and tells which; none when the deadline passed.
///
/// ```
/// use procession_core::{Deadline, Tag, connection};
/// use std::os::fd::AsFd;
///
/// let family = procession_core::family().create()?;
/// let (near, far) = connection::pair(family)?;
/// let (other, _far) = connection::pair(family)?;
/// far.send(Tag::RAW, &[b"hello"], Deadline::NEVER)?;
/// assert_eq!(connection::wait(&[other.as_fd(), near.as_fd()], Deadline::NEVER)?, [1]);
/// # Ok::<(), procession_core::Error>(())
/// ```
pub fn wait(descriptors: &[BorrowedFd<'_>], deadline: Deadline) -> Result<Vec<usize>> {
    let watched: Vec<_> = descriptors
        .iter()
        .map(|fd| (*fd, Interest::Readable))
        .collect();
    loop {
        let ready = poll::wait(&watched, deadline)?;
        if !ready.is_empty() || deadline.has_passed() {
            return Ok(ready);
        }
    }
}
