//! Anonymous memory that several processes map and that only grows.
#![allow(unsafe_code, reason = "maps memory")]

use crate::error::{Error, Result};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

/// Creates a nameless file of `length` zero bytes that can grow and that nobody can shrink.
///
/// The seal matters: without it any process of the family could truncate the file and have the others die by SIGBUS.
pub(crate) fn create(name: &str, length: u64) -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|e| Error::os("create the arena's memory", e))?;
    grow(fd.as_fd(), length)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK)
        .map_err(|e| Error::os("seal the arena's memory", e))?;
    Ok(fd)
}

/// Whether the file is one that [`create`] made: memory, sealed against shrinking.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

/// The file's length in bytes.
pub(crate) fn length(fd: BorrowedFd<'_>) -> Result<u64> {
    let stat = rustix::fs::fstat(fd).map_err(|e| Error::os("read the arena's length", e))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Makes the file at least so long. It may be longer already: who grew it for more may have died before saying so, and
/// the seal forbids to shrink it.
pub(crate) fn grow(fd: BorrowedFd<'_>, length: u64) -> Result<()> {
    if self::length(fd)? >= length {
        return Ok(());
    }
    rustix::fs::ftruncate(fd, length).map_err(|e| Error::os("grow the arena", e))
}

/// Backs a range with real pages, so that want of memory is an error here and not a SIGBUS at a store.
pub(crate) fn back(fd: BorrowedFd<'_>, offset: u64, length: u64) -> Result<()> {
    loop {
        match rustix::fs::fallocate(fd, FallocateFlags::empty(), offset, length) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => continue,
            // Some sandboxes have no fallocate on memory files: pages then come at the first store.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => return Ok(()),
            Err(e) => return Err(Error::os("back the arena with memory", e)),
        }
    }
}

/// Gives the pages of a range back to the system; the range reads zero afterwards. Best effort.
pub(crate) fn give_back(fd: BorrowedFd<'_>, offset: u64, length: u64) -> bool {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(fd, flags, offset, length).is_ok()
}

/// A range of addresses that shows the whole file, also the part it has not grown to yet.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: a mapping is an address and a length; what may be done at the addresses is the business of `memory::region`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes of the file, shared, outside core dumps.
    ///
    /// Bytes beyond the file's end must not be touched until the file has grown to them.
    pub(crate) fn new(fd: BorrowedFd<'_>, length: usize, writable: bool) -> Result<Mapping> {
        let access = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                access,
                MapFlags::SHARED | MapFlags::NORESERVE,
                fd,
                0,
            )
        }
        .map_err(|e| Error::os("map the arena", e))?;
        // A dying process keeps its locks while it dumps core: leave gigabytes of arena out of it. Advisory.
        // SAFETY: the range was mapped just now.
        let _ = unsafe { rustix::mm::madvise(base, length, Advice::LinuxDontDump) };
        let base = NonNull::new(base.cast()).expect("mmap does not return null");
        Ok(Mapping { base, length })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours, and whoever holds a mapping's addresses keeps the mapping.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// A word that every fork sets to zero in the child, however the fork was made.
///
/// `None` where the kernel has no `MADV_WIPEONFORK` (before 4.14); the atfork handler alone tells forks then.
pub(crate) fn word_wiped_on_fork() -> Option<&'static AtomicU32> {
    let length = super::machine::page_size();
    // SAFETY: a fresh private mapping, never unmapped, so that the reference may be 'static.
    unsafe {
        let page = rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
        .ok()?;
        if rustix::mm::madvise(page, length, Advice::LinuxWipeOnFork).is_err() {
            let _ = rustix::mm::munmap(page, length);
            return None;
        }
        Some(&*page.cast::<AtomicU32>())
    }
}
