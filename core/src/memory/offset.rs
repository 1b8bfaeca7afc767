//! The arena's addresses, and the one place where they become references.
#![allow(
    unsafe_code,
    reason = "turns offsets into references, after checking them"
)]

use super::layout::{Header, MAGIC, Shared, UNIT};
use crate::error::{Error, Result};
use crate::sys::memory::{self, Mapping};
use std::mem::{align_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The arena as this process sees it: a file of memory and the addresses where it lies.
///
/// Every offset is compared with what exists before it becomes a reference: nothing read from the arena is trusted.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Mapping,
    fd: OwnedFd,
    /// Bytes known to exist; the header knows better once this is not enough.
    known: AtomicU64,
}

impl Region {
    /// Maps `reserve` bytes of the file, of which `length` exist.
    pub(crate) fn new(fd: OwnedFd, length: u64, reserve: u64) -> Result<Region> {
        let reserve = usize::try_from(reserve).map_err(|_| Error::ForeignArena {
            why: "it is larger than this machine's address space",
        })?;
        let mapping = Mapping::new(fd.as_fd(), reserve, true)?;
        Ok(Region {
            mapping,
            fd,
            known: AtomicU64::new(length),
        })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The bytes that are mapped, whether they exist yet or not.
    pub(crate) fn reserve(&self) -> u64 {
        self.mapping.length() as u64
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: a region has at least its header's page, by `new`; `Header` is `Shared`.
        unsafe { self.mapping.base().cast::<Header>().as_ref() }
    }

    /// The `T` at `offset`.
    #[inline]
    pub(crate) fn view<T: Shared>(&self, offset: u64) -> Result<&T> {
        let address = self.address(offset, size_of::<T>() as u64, align_of::<T>() as u64)?;
        // SAFETY: inside the arena and aligned, by `address`; `T` is `Shared`, so that any content and any change of it
        // is fine.
        Ok(unsafe { &*address.cast::<T>() })
    }

    /// The `count` values of `T` from `offset` on.
    pub(crate) fn views<T: Shared>(&self, offset: u64, count: u64) -> Result<&[T]> {
        let bytes = count
            .checked_mul(size_of::<T>() as u64)
            .ok_or_else(|| damaged(offset, "a length overflows"))?;
        let address = self.address(offset, bytes, align_of::<T>() as u64)?;
        // SAFETY: as in `view`.
        Ok(unsafe { std::slice::from_raw_parts(address.cast::<T>(), count as usize) })
    }

    /// Copies bytes into the arena, to a place that the caller owns.
    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let to = self.address(offset, bytes.len() as u64, 1)?;
        // SAFETY: the target lies in the arena and cannot overlap a slice of this process's memory; it is owned by the
        // caller, so that nobody reads it before it is published by a `Release` store.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies bytes out of the arena. What another process writes meanwhile may be mixed in, byte by byte.
    pub(crate) fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let from = self.address(offset, bytes.len() as u64, 1)?;
        // SAFETY: the source lies in the arena and cannot overlap a slice of this process's memory.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies bytes from one place of the arena to another that does not overlap it.
    pub(crate) fn copy_within(&self, from: u64, to: u64, length: u64) -> Result<()> {
        debug_assert!(from + length <= to || to + length <= from);
        let from = self.address(from, length, 1)?;
        let to = self.address(to, length, 1)?;
        // SAFETY: both lie in the arena.
        unsafe { std::ptr::copy(from, to, length as usize) };
        Ok(())
    }

    /// Fills with zeros a place that the caller owns.
    pub(crate) fn zero(&self, offset: u64, length: u64) -> Result<()> {
        let to = self.address(offset, length, 1)?;
        // SAFETY: the target lies in the arena and is owned by the caller.
        unsafe { std::ptr::write_bytes(to, 0, length as usize) };
        Ok(())
    }

    /// The bytes of a block that this process owns.
    ///
    /// They are plain memory, because ownership keeps them so: a block in the state PRIVATE is written by no other
    /// process of the family, and a family is one domain of trust.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Result<&[u8]> {
        let address = self.address(offset, length, 1)?;
        // SAFETY: inside the arena; nobody writes it while its owner reads, by the ownership of blocks.
        Ok(unsafe { std::slice::from_raw_parts(address, length as usize) })
    }

    /// Where the bytes of an owned block lie, for who fills it in place.
    pub(crate) fn pointer(&self, offset: u64, length: u64) -> Result<*mut u8> {
        self.address(offset, length, 1)
    }

    /// The offset of a word that lies in this arena.
    pub(crate) fn offset_of(&self, word: &AtomicU32) -> u64 {
        let offset =
            (word.as_ptr() as usize).wrapping_sub(self.mapping.base().as_ptr() as usize) as u64;
        debug_assert!(offset < self.reserve(), "the word lies in another arena");
        offset
    }

    #[inline]
    fn address(&self, offset: u64, length: u64, align: u64) -> Result<*mut u8> {
        let end = offset
            .checked_add(length)
            .ok_or_else(|| damaged(offset, "an offset overflows"))?;
        if end > self.known.load(Ordering::Relaxed) {
            self.learn(offset, end)?;
        }
        if offset & (align - 1) != 0 {
            return Err(damaged(offset, "an offset is not aligned"));
        }
        // SAFETY: `end` is within what exists, which is within what is mapped.
        Ok(unsafe { self.mapping.base().as_ptr().add(offset as usize) })
    }

    /// Looks whether the arena has grown to `end`.
    #[cold]
    fn learn(&self, offset: u64, end: u64) -> Result<()> {
        // ORDERING: Acquire pairs with the Release of `grow` in `runs`: who sees the length sees the file grown.
        let committed = self
            .header()
            .committed
            .load(Ordering::Acquire)
            .min(self.reserve());
        self.known.store(committed, Ordering::Relaxed);
        if end > committed {
            return Err(damaged(offset, "an offset lies beyond the arena's end"));
        }
        Ok(())
    }
}

/// What a descriptor's arena says of itself, read without mapping it.
pub(crate) fn inspect(fd: BorrowedFd<'_>) -> Result<(u64, u64)> {
    if !memory::is_sealed(fd) {
        return Err(Error::ForeignArena {
            why: "the descriptor is not sealed shared memory",
        });
    }
    let length = memory::length(fd)?;
    let mut words = [0u8; size_of::<Header>()];
    let read = rustix::io::pread(fd, &mut words[..], 0)
        .map_err(|e| Error::os("read the arena's header", e))?;
    if read < words.len() {
        return Err(Error::ForeignArena {
            why: "it is shorter than a header",
        });
    }
    let word = |at: usize| u64::from_ne_bytes(words[at..at + 8].try_into().expect("eight bytes"));
    if word(std::mem::offset_of!(Header, magic)) != MAGIC {
        return Err(Error::ForeignArena {
            why: "it was made by another version of procession, or by something else",
        });
    }
    let committed = word(std::mem::offset_of!(Header, committed));
    let units_start = word(std::mem::offset_of!(Header, units_start));
    let units_max = word(std::mem::offset_of!(Header, units_max));
    let reserve = units_max
        .checked_mul(UNIT)
        .and_then(|bytes| bytes.checked_add(units_start));
    match reserve {
        Some(reserve)
            if units_start <= committed && committed <= length && committed <= reserve =>
        {
            Ok((committed, reserve))
        }
        _ => Err(Error::ForeignArena {
            why: "its header contradicts itself",
        }),
    }
}

#[cold]
pub(crate) fn damaged(offset: u64, why: &'static str) -> Error {
    Error::Damaged { offset, why }
}
