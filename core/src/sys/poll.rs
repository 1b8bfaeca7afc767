//! Waiting for descriptors.

use crate::deadline::Deadline;
use crate::error::{Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::os::fd::BorrowedFd;

/// What to wait for at a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Readable,
    Writable,
}

/// Waits until some of the descriptors are ready (or hung up), and tells which, in their order.
///
/// An empty answer means that the deadline passed.
pub(crate) fn wait(fds: &[(BorrowedFd<'_>, Interest)], deadline: Deadline) -> Result<Vec<usize>> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|(fd, interest)| {
            let flags = match interest {
                Interest::Readable => PollFlags::IN,
                Interest::Writable => PollFlags::OUT,
            };
            PollFd::from_borrowed_fd(*fd, flags)
        })
        .collect();
    let timeout = deadline.remaining().map(|left| Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos() as _,
    });
    match rustix::event::poll(&mut polled, timeout.as_ref()) {
        Ok(0) => Ok(Vec::new()),
        Ok(_) => Ok(polled
            .iter()
            .enumerate()
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(i, _)| i)
            .collect()),
        Err(Errno::INTR) => Err(Error::Interrupted {
            what: "a descriptor",
        }),
        Err(e) => Err(Error::os("wait for descriptors", e)),
    }
}

/// Waits for one descriptor; false when the deadline passed first.
pub(crate) fn wait_one(fd: BorrowedFd<'_>, interest: Interest, deadline: Deadline) -> Result<bool> {
    Ok(!wait(&[(fd, interest)], deadline)?.is_empty())
}

/// [`wait_one`] for a wait that no signal cuts: a short one.
pub(crate) fn wait_one_calmly(
    fd: BorrowedFd<'_>,
    interest: Interest,
    deadline: Deadline,
) -> Result<bool> {
    loop {
        match wait_one(fd, interest, deadline) {
            Err(Error::Interrupted { .. }) => continue,
            answer => return answer,
        }
    }
}

/// Whether the other end of a pipe is closed.
pub(crate) fn has_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    loop {
        match rustix::event::poll(&mut polled, Some(&now)) {
            Err(Errno::INTR) => continue,
            Ok(_) => {
                return polled[0]
                    .revents()
                    .intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
            }
            Err(_) => return false,
        }
    }
}
