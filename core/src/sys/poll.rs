//! Waiting for descriptors.

use crate::deadline::Deadline;
use crate::error::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

/// A descriptor that one thread makes readable to wake another from [`wait`].
#[derive(Debug)]
pub(crate) struct Alarm {
    fd: OwnedFd,
}

impl Alarm {
    pub(crate) fn new() -> Result<Alarm> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = rustix::event::eventfd(0, flags).map_err(|e| Error::os("make an eventfd", e))?;
        Ok(Alarm {
            fd: super::process::above_stdio(fd)?,
        })
    }

    /// One that another process made.
    pub(crate) fn adopt(fd: OwnedFd) -> Alarm {
        Alarm { fd }
    }

    /// Makes it readable.
    pub(crate) fn ring(&self) {
        // EAGAIN: it is readable already, 2^64 times over.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable until it rings again.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8][..]);
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
