//! A lock that its holder may take again.

use super::{Acquired, HeldBy, OrNobody};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::memory::family::Family;
use crate::memory::latch::Latch;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use std::fmt;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, Ordering};

/// This kind's number.
pub(crate) const RECURSIVE: u32 = 2;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("recursive mutex");

shared! {
    /// The lock beside how often its holder took it.
    struct Body: 16 {
        latch: Latch,
        /// Meant only while the latch is held; written by the holder alone. What a dead one left is overwritten.
        depth: AtomicU32,
        reserved: AtomicU32,
    }
}

/// A [`Mutex`](super::Mutex) that its holder may acquire again, and must release as often. Only the holder may.
///
/// ```
/// use procession_core::{Deadline, sync::RecursiveMutex};
///
/// let family = procession_core::family().create()?;
/// let mutex = RecursiveMutex::create(family)?;
/// let _ = mutex.acquire(Deadline::NEVER)?;
/// let _ = mutex.acquire(Deadline::NEVER)?;
/// mutex.release()?;
/// assert!(mutex.is_mine());
/// mutex.release()?;
/// assert!(mutex.release().is_err());
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct RecursiveMutex {
    hold: Attached,
    body: &'static Body,
}

impl RecursiveMutex {
    /// Creates a free lock.
    ///
    /// Fails with [`Error::Exhausted`] when the arena is full.
    pub fn create(family: &'static Family) -> Result<RecursiveMutex> {
        let length = size_of::<Body>() as u64;
        RecursiveMutex::over(object::create(family, RECURSIVE, length, |_, _| Ok(()))?)
    }

    /// Attaches to the lock of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living lock of this kind.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<RecursiveMutex> {
        RecursiveMutex::over(object::attach(family, RECURSIVE, handle)?)
    }

    fn over(hold: Attached) -> Result<RecursiveMutex> {
        let body = hold.view()?;
        Ok(RecursiveMutex { hold, body })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// Takes the lock once more, waiting until `deadline` when another thread has it.
    ///
    /// Fails with [`Error::TimedOut`], and with [`Error::Interrupted`] after a signal; then calling again continues.
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        let family = self.hold.family();
        let me = family.me()?;
        if self.body.latch.is_held_by(me) {
            return self.deepen();
        }
        let acquired = self.body.latch.acquire(family, me, "the lock", deadline)?;
        self.begin(family);
        Ok(acquired)
    }

    /// Takes the lock once more if that can be done at once; `None` while another living thread holds it.
    pub fn try_acquire(&self) -> Result<Option<Acquired>> {
        let family = self.hold.family();
        let me = family.me()?;
        if self.body.latch.is_held_by(me) {
            return self.deepen().map(Some);
        }
        let acquired = self.body.latch.try_acquire(family, me);
        if acquired.is_some() {
            self.begin(family);
        }
        Ok(acquired)
    }

    fn begin(&self, family: &'static Family) {
        // DEATH: taken, the depth still a dead holder's or an old one: the next holder begins with 1 as we do.
        self.body.depth.store(1, Ordering::Release);
        family.count_held(1);
    }

    fn deepen(&self) -> Result<Acquired> {
        let depth = self.body.depth.load(Ordering::Relaxed);
        let deeper = depth.checked_add(1).ok_or(Error::TooLarge {
            what: "the depth of the lock",
            length: u64::from(depth) + 1,
            limit: u32::MAX.into(),
        })?;
        self.body.depth.store(deeper, Ordering::Release);
        Ok(Acquired::Clean)
    }

    /// Gives the lock back once; the last time frees it.
    ///
    /// Fails with [`Error::NotHeld`] when the calling thread does not hold it.
    pub fn release(&self) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        if !self.body.latch.is_held_by(me) {
            return Err(Error::NotHeld {
                what: "the lock",
                why: "the calling thread does not hold it",
            });
        }
        let depth = self.body.depth.load(Ordering::Relaxed);
        if depth > 1 {
            self.body.depth.store(depth - 1, Ordering::Release);
        } else {
            self.body.latch.release(family, me);
            family.count_held(-1);
        }
        Ok(())
    }

    /// How often the calling thread has taken it without giving it back.
    pub fn depth(&self) -> u32 {
        if self.is_mine() {
            self.body.depth.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// Whether somebody living holds it.
    pub fn is_locked(&self) -> bool {
        HeldBy::of(self.hold.family(), &self.body.latch).is_some()
    }

    /// Whether the calling thread holds it.
    pub fn is_mine(&self) -> bool {
        let me = self.hold.family().me();
        me.is_ok_and(|me| self.body.latch.is_held_by(me))
    }

    /// The number of the process that holds it, if it lives.
    pub fn holder(&self) -> Option<u32> {
        HeldBy::of(self.hold.family(), &self.body.latch).map(|holder| holder.pid)
    }
}

impl fmt::Debug for RecursiveMutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = HeldBy::of(self.hold.family(), &self.body.latch);
        f.debug_struct("RecursiveMutex")
            .field("held by", &OrNobody(holder))
            .field("depth", &self.body.depth.load(Ordering::Relaxed))
            .field("waiters", &self.body.latch.has_waiters())
            .finish()
    }
}
