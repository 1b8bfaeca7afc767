//! How a descriptor travels inside messages that are plain bytes.

use crate::error::Result;
use crate::memory::Family;
use crate::sys::socket;
use parking_lot::Mutex;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The family's locker: a socket pair that every member holds both ends of.
#[derive(Debug)]
pub(crate) struct Locker {
    put: OwnedFd,
    look: OwnedFd,
}

impl Locker {
    pub(crate) fn put(&self) -> BorrowedFd<'_> {
        self.put.as_fd()
    }

    pub(crate) fn look(&self) -> BorrowedFd<'_> {
        self.look.as_fd()
    }
}

/// The lockers of this process's families. Inherited by forked children.
static LOCKERS: Mutex<Vec<(usize, &'static Locker)>> = Mutex::new(Vec::new());

/// The family's locker, made now if this is the first member to need it.
pub(crate) fn of(family: &'static Family) -> Result<&'static Locker> {
    let mut lockers = LOCKERS.lock();
    let key = std::ptr::from_ref(family) as usize;
    if let Some((_, locker)) = lockers.iter().find(|(of, _)| *of == key) {
        return Ok(locker);
    }
    let (put, look) = socket::pair()?;
    let locker: &'static Locker = Box::leak(Box::new(Locker { put, look }));
    lockers.push((key, locker));
    Ok(locker)
}

/// In a member that was spawned: the locker it was given.
pub(crate) fn join(family: &'static Family, put: OwnedFd, look: OwnedFd) {
    let locker: &'static Locker = Box::leak(Box::new(Locker { put, look }));
    LOCKERS
        .lock()
        .push((std::ptr::from_ref(family) as usize, locker));
}
