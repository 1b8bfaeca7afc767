//! Bytes behind a lock, whole whatever dies.
//!
//! ```text
//! latch | which version counts | length
//! version 0: length bytes, rounded up to a line
//! version 1: as many
//! ```
//!
//! The holder writes the version that does not count, then says that it counts: one store. A death before it leaves the
//! bytes as they were, after it as they are meant to be.

use super::check_range;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::latch::{Acquired, Latch};
use crate::memory::layout::{LINE, shared};
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::sync::{HeldBy, OrNobody};
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// This kind's number.
pub(crate) const GUARDED: u32 = 10;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("guarded cell");

shared! {
    /// Before the two versions. One line long, so that they begin on one.
    struct Body: 64 {
        latch: Latch,
        /// The version that counts: bit 0.
        version: AtomicU32,
        reserved32: AtomicU32,
        length: AtomicU64,
        reserved: [AtomicU64; 5],
    }
}

/// Bytes that one thread of the family at a time reads and replaces.
///
/// ```
/// use procession_core::{Deadline, shared::Guarded};
///
/// let family = procession_core::family().create()?;
/// let guarded = Guarded::create(family, 5)?;
/// let mut guard = guarded.lock(Deadline::NEVER)?;
/// guard.commit(b"hello")?;
/// let mut bytes = [0; 5];
/// guard.read(&mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Guarded {
    hold: Attached,
    body: &'static Body,
    length: u64,
}

impl Guarded {
    /// Creates `bytes` zero bytes with a lock. They take their room twice.
    ///
    /// Fails with [`Error::Exhausted`] when the arena has no room for them.
    pub fn create(family: &'static Family, bytes: u64) -> Result<Guarded> {
        let length = bytes
            .checked_next_multiple_of(LINE)
            .and_then(|version| version.checked_mul(2))
            .and_then(|versions| versions.checked_add(size_of::<Body>() as u64))
            .filter(|length| *length <= family.region().reserve())
            .ok_or(Error::Exhausted {
                what: "the arena's memory",
                limit: family.region().reserve(),
            })?;
        let hold = object::create(family, GUARDED, length, |_, body| {
            let body = family.region().view::<Body>(body)?;
            body.length.store(bytes, Ordering::Release);
            Ok(())
        })?;
        Guarded::over(hold)
    }

    /// Attaches to the guarded bytes of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names none that live.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Guarded> {
        Guarded::over(object::attach(family, GUARDED, handle)?)
    }

    fn over(hold: Attached) -> Result<Guarded> {
        let body = hold.view::<Body>()?;
        let length = body.length.load(Ordering::Acquire);
        Ok(Guarded { hold, body, length })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// How many bytes there are.
    #[expect(
        clippy::len_without_is_empty,
        reason = "its length is chosen when it is created"
    )]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Takes the lock, waiting for it until `deadline`. It is free again when the guard is dropped.
    ///
    /// Fails with [`Error::TimedOut`], and with [`Error::Interrupted`] after a signal; then calling again continues.
    pub fn lock(&self, deadline: Deadline) -> Result<GuardedGuard<'_>> {
        let family = self.hold.family();
        let me = family.me()?;
        let acquired = self
            .body
            .latch
            .acquire(family, me, "the guarded bytes", deadline)?;
        family.count_held(1);
        Ok(GuardedGuard {
            guarded: self,
            me,
            acquired,
            of_this_thread: PhantomData,
        })
    }

    /// Where a version begins.
    fn version_at(&self, version: u32) -> u64 {
        let start = self.hold.body() + size_of::<Body>() as u64;
        start + u64::from(version & 1) * self.length.next_multiple_of(LINE)
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holder = HeldBy::of(self.hold.family(), &self.body.latch);
        f.debug_struct("Guarded")
            .field("len", &self.length)
            .field("held by", &OrNobody(holder))
            .field("waiters", &self.body.latch.has_waiters())
            .finish()
    }
}

/// The bytes of a [`Guarded`], in the hands of the calling thread.
#[must_use = "dropping the guard frees the lock"]
pub struct GuardedGuard<'a> {
    guarded: &'a Guarded,
    me: Me,
    acquired: Acquired,
    /// The lock is held by the thread that took it.
    of_this_thread: PhantomData<*const ()>,
}

impl GuardedGuard<'_> {
    /// Whether the holder before died holding the lock. The bytes are whole: those of its last commit, or before.
    pub fn owner_died(&self) -> bool {
        self.acquired == Acquired::OwnerDied
    }

    /// Copies the first bytes out.
    ///
    /// Fails with [`Error::TooLarge`] for more than there are.
    pub fn read(&self, bytes: &mut [u8]) -> Result<()> {
        check_range(
            "the range of the guarded bytes",
            0,
            bytes.len(),
            self.guarded.length,
        )?;
        let version = self.guarded.body.version.load(Ordering::Acquire);
        let region = self.guarded.hold.family().region();
        region.copy_out(self.guarded.version_at(version), bytes)
    }

    /// Replaces the bytes, all or none of them whatever happens; those beyond `bytes` stay as they are.
    ///
    /// Fails with [`Error::TooLarge`] for more than there are, and with [`Error::NotHeld`] in a forked process.
    pub fn commit(&mut self, bytes: &[u8]) -> Result<()> {
        let length = self.guarded.length;
        check_range("the range of the guarded bytes", 0, bytes.len(), length)?;
        if self.guarded.hold.family().me()? != self.me {
            return Err(Error::NotHeld {
                what: "the guarded bytes",
                why: "a forked process has a copy of the guard, not the lock",
            });
        }
        let region = self.guarded.hold.family().region();
        let version = &self.guarded.body.version;
        let counts = version.load(Ordering::Relaxed);
        let (from, to) = (
            self.guarded.version_at(counts),
            self.guarded.version_at(counts ^ 1),
        );
        let rest = bytes.len() as u64;
        region.copy_in(to, bytes)?;
        region.copy_within(from + rest, to + rest, length - rest)?;
        // DEATH: a version half written that does not count; the next commit writes over it.
        fault::point("guarded.written");
        // ORDERING: Release after the bytes; pairs with the Acquire of `read`.
        version.store(counts ^ 1, Ordering::Release);
        Ok(())
    }
}

impl Drop for GuardedGuard<'_> {
    fn drop(&mut self) {
        let family = self.guarded.hold.family();
        // In a forked child it is a copy of another thread's, which holds the lock still.
        if family.me().ok() == Some(self.me) {
            self.guarded.body.latch.release(family, self.me);
            family.count_held(-1);
        }
    }
}

impl fmt::Debug for GuardedGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedGuard")
            .field("len", &self.guarded.length)
            .field("owner_died", &self.owner_died())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_of_a_part_keeps_the_rest() {
        let family = crate::family().threads_max(8).create().unwrap();
        let guarded = Guarded::create(family, 6).unwrap();
        let mut guard = guarded.lock(Deadline::NEVER).unwrap();
        guard.commit(b"abcdef").unwrap();
        guard.commit(b"xy").unwrap();
        let mut bytes = [0; 6];
        guard.read(&mut bytes).unwrap();
        assert_eq!(&bytes, b"xycdef");
        assert!(guard.commit(b"too long").is_err());
    }

    #[test]
    fn a_version_half_written_does_not_count() {
        let family = crate::family().threads_max(8).create().unwrap();
        let guarded = Guarded::create(family, 4).unwrap();
        let mut guard = guarded.lock(Deadline::NEVER).unwrap();
        guard.commit(b"good").unwrap();
        let other = guarded.version_at(guarded.body.version.load(Ordering::Relaxed) ^ 1);
        family.region().copy_in(other, b"ba").unwrap();
        let mut bytes = [0; 4];
        guard.read(&mut bytes).unwrap();
        assert_eq!(&bytes, b"good");
    }
}
