//! Descriptors of this process alone: a forked child closes its copies at once, whoever forked.
//!
//! A lifeline works because one process only holds its write end; a stray copy in a sibling would keep children of a
//! dead parent alive. Closing on exec does for programs, this does for forks.

use crate::error::Result;
use crate::memory::epoch;
use crate::sys::process;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The numbers to close in a forked child. Locked around every fork, so that no fork sees one open and not listed.
static NUMBERS: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

thread_local! {
    /// What the fork that this thread makes just now leaves open for the child.
    static SPARED: Cell<[RawFd; 2]> = const { Cell::new([-1; 2]) };
    /// Held by the thread that forks, from before the fork until after it, on both sides.
    static HELD: RefCell<Option<MutexGuard<'static, Vec<RawFd>>>> = const { RefCell::new(None) };
}

fn lock() -> MutexGuard<'static, Vec<RawFd>> {
    NUMBERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor that forked children do not inherit.
#[derive(Debug)]
pub(crate) struct Kept {
    /// `None` only while it is dropped.
    fd: Option<OwnedFd>,
    epoch: u32,
}

impl Kept {
    /// Keeps a descriptor that exists already.
    pub(crate) fn new(fd: OwnedFd) -> Kept {
        let mut numbers = lock();
        Kept::list(&mut numbers, fd)
    }

    /// Makes a descriptor and keeps it, with no fork in between.
    pub(crate) fn make(make: impl FnOnce() -> Result<OwnedFd>) -> Result<Kept> {
        let mut numbers = lock();
        Ok(Kept::list(&mut numbers, make()?))
    }

    /// [`Kept::make`] for a pair.
    pub(crate) fn make_pair(
        make: impl FnOnce() -> Result<(OwnedFd, OwnedFd)>,
    ) -> Result<(Kept, Kept)> {
        let mut numbers = lock();
        let (a, b) = make()?;
        Ok((Kept::list(&mut numbers, a), Kept::list(&mut numbers, b)))
    }

    fn list(numbers: &mut Vec<RawFd>, fd: OwnedFd) -> Kept {
        numbers.push(fd.as_raw_fd());
        Kept {
            fd: Some(fd),
            epoch: epoch::current(),
        }
    }

    pub(crate) fn number(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for Kept {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("there until it is dropped").as_fd()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if self.epoch != epoch::current() {
            // A copy in a forked child: closed already, and the number may be another's.
            let _ = fd.into_raw_fd();
            return;
        }
        let mut numbers = lock();
        if let Some(index) = numbers.iter().position(|n| *n == fd.as_raw_fd()) {
            numbers.swap_remove(index);
        }
        drop(fd);
    }
}

/// Runs a fork whose child has the given descriptors left; it adopts them by number.
pub(crate) fn sparing<R>(numbers: [RawFd; 2], fork: impl FnOnce() -> R) -> R {
    SPARED.set(numbers);
    let answer = fork();
    SPARED.set([-1; 2]);
    answer
}

/// Locks the list for a fork.
pub(super) fn before_fork() {
    let guard = lock();
    let _ = HELD.try_with(|held| held.replace(Some(guard)));
}

/// Unlocks it in the parent.
pub(super) fn after_fork() {
    let _ = HELD.try_with(|held| held.replace(None));
}

/// Closes in a forked child what is its parent's.
pub(super) fn close_copies() {
    let spared = SPARED.get();
    let Ok(Some(mut numbers)) = HELD.try_with(RefCell::take) else {
        return;
    };
    for number in numbers.drain(..) {
        if !spared.contains(&number) {
            process::close_number(number);
        }
    }
}
