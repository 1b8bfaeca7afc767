//! A lock that its holder's death frees. The word is `memory::latch`; this is its door.

use super::{Acquired, HeldBy, OrNobody};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::memory::family::Family;
use crate::memory::latch::Latch;
use crate::memory::object::{self, Attached, Handle, Kind};
use std::fmt;
use std::mem::size_of;

/// This kind's number.
pub(crate) const MUTEX: u32 = 1;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("mutex");

/// A lock that one thread of the family holds at a time.
///
/// When its holder dies, whatever it was doing, the next to acquire it has it and is told so once. Anyone may release it,
/// in any thread and process: whether only the holder should is for a face to say, and [`Mutex::is_mine`] tells.
///
/// ```
/// use procession_core::{Deadline, sync::{Acquired, Mutex}};
///
/// let family = procession_core::family().create()?;
/// let mutex = Mutex::create(family)?;
/// assert_eq!(mutex.acquire(Deadline::NEVER)?, Acquired::Clean);
/// assert!(mutex.is_mine());
/// assert_eq!(mutex.try_acquire()?, None);
/// mutex.release()?;
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Mutex {
    hold: Attached,
    latch: &'static Latch,
}

impl Mutex {
    /// Creates a free lock.
    ///
    /// Fails with [`Error::Exhausted`] when the arena is full.
    pub fn create(family: &'static Family) -> Result<Mutex> {
        let length = size_of::<Latch>() as u64;
        Mutex::over(object::create(family, MUTEX, length, |_, _| Ok(()))?)
    }

    /// Attaches to the lock of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living lock of this kind.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Mutex> {
        Mutex::over(object::attach(family, MUTEX, handle)?)
    }

    fn over(hold: Attached) -> Result<Mutex> {
        let latch = hold.view()?;
        Ok(Mutex { hold, latch })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// Takes the lock, waiting for it until `deadline`.
    ///
    /// Fails with [`Error::TimedOut`], and with [`Error::Interrupted`] after a signal; then calling again continues.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        let family = self.hold.family();
        let acquired = self
            .latch
            .acquire(family, family.me()?, "the lock", deadline)?;
        family.count_held(1);
        Ok(acquired)
    }

    /// Takes the lock if that can be done at once; `None` while somebody living holds it.
    pub fn try_acquire(&self) -> Result<Option<Acquired>> {
        let family = self.hold.family();
        let acquired = self.latch.try_acquire(family, family.me()?);
        if acquired.is_some() {
            family.count_held(1);
        }
        Ok(acquired)
    }

    /// Frees the lock, whoever holds it, and wakes one who waits for it.
    ///
    /// Fails with [`Error::NotHeld`] when nobody does.
    #[inline]
    pub fn release(&self) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        let mine = self.latch.is_held_by(me);
        if !self.latch.release_if_held(family, me) {
            return Err(Error::NotHeld {
                what: "the lock",
                why: "nobody holds it",
            });
        }
        // The count may stay too high in a thread for which others release: it keeps its slot longer, nothing else.
        if mine {
            family.count_held(-1);
        }
        Ok(())
    }

    /// Whether somebody living holds it.
    pub fn is_locked(&self) -> bool {
        HeldBy::of(self.hold.family(), self.latch).is_some()
    }

    /// Whether the calling thread holds it.
    pub fn is_mine(&self) -> bool {
        let me = self.hold.family().me();
        me.is_ok_and(|me| self.latch.is_held_by(me))
    }

    /// The number of the process that holds it, if it lives.
    pub fn holder(&self) -> Option<u32> {
        HeldBy::of(self.hold.family(), self.latch).map(|holder| holder.pid)
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = HeldBy::of(self.hold.family(), self.latch);
        f.debug_struct("Mutex")
            .field("held by", &OrNobody(holder))
            .field("waiters", &self.latch.has_waiters())
            .finish()
    }
}
