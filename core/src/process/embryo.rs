//! What a parent prepares for a child before there is one. Dropped, it leaves nothing.

use super::child::{Child, Entry};
use super::household;
use super::kept::Kept;
use super::start::{Start, Stdio};
use crate::error::{Error, Result};
use crate::memory::layout::ProcSlot;
use crate::memory::slots::{ProcState, ProcWord};
use crate::memory::{Family, Parcel, block, epoch};
use crate::sys::{machine, process};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// In `ProcSlot::flags`: `daemon | detached << 1 | method << 8`.
const DAEMON: u32 = 1;
const DETACHED: u32 = 2;

/// A child's slot, lifeline and payload, before the child.
#[derive(Debug)]
pub(super) struct Embryo {
    pub(super) family: &'static Family,
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// Read end, for the child; write end, for this process. None for a detached child.
    pub(super) lifeline: Option<(Kept, Kept)>,
    /// The block, where the bytes start in it, and their length.
    pub(super) payload: Option<(u64, u64, u64)>,
    epoch: u32,
    /// Whether the child is there: then the slot is its business.
    born: bool,
}

impl Embryo {
    /// Takes a slot and fills it. DEATH: all of it is an embryo's, which goes with its parent.
    pub(super) fn prepare(
        family: &'static Family,
        start: &Start<'_>,
        payload: &[&[u8]],
    ) -> Result<Embryo> {
        let me = family.me()?;
        let slot = family.or_sweep(me, || {
            family.claim_process(ProcState::Embryo, Some(me.process))
        })?;
        let state = family.process(slot).state.load(Ordering::Acquire);
        let mut embryo = Embryo {
            family,
            slot,
            generation: ProcWord::unpack(state).generation,
            lifeline: None,
            payload: None,
            epoch: epoch::current(),
            born: false,
        };
        describe(family.process(slot), start);
        if !start.detached {
            embryo.lifeline = Some(Kept::make_pair(process::pipe)?);
        }
        if payload.iter().any(|part| !part.is_empty()) || !start.handles.is_empty() {
            let parcel = Parcel::pack(family, me, 0, payload, start.handles)?;
            let packed = parcel.release().expect("a packed parcel lies in a block");
            // DEATH: from here on the block goes with the embryo.
            family.transfer(packed.0, block::State::Private, slot)?;
            embryo.payload = Some(packed);
        }
        Ok(embryo)
    }

    /// The child is there, under this number. It is ours to collect.
    pub(super) fn born(self, pid: u32, start: &Start<'_>, oom_kills: Option<u64>) -> Result<Child> {
        match Kept::make(|| process::pidfd(pid)) {
            Ok(pidfd) => Ok(self.born_as(pid, pidfd, None, start, oom_kills)),
            Err(error) => {
                process::abandon(pid);
                if let Ok(me) = self.family.me() {
                    self.family.bury(me, self.slot, self.generation);
                }
                Err(error)
            }
        }
    }

    /// The child is there; `line` is where its zygote will tell how it ended.
    pub(super) fn born_as(
        mut self,
        pid: u32,
        pidfd: Kept,
        line: Option<Kept>,
        start: &Start<'_>,
        oom_kills: Option<u64>,
    ) -> Child {
        self.born = true;
        let entry = Arc::new(Entry::new(
            self.family,
            (self.slot, self.generation),
            pid,
            pidfd,
            self.lifeline.take().map(|(_, write)| write),
            line,
            start,
            oom_kills,
        ));
        household::adopt(&entry);
        Child::of(entry)
    }

    /// Gives the embryo up; false if a child has moved in all the same.
    pub(super) fn give_up(mut self) -> bool {
        self.lifeline = None;
        self.born = true;
        self.family
            .me()
            .is_ok_and(|me| self.family.give_up(me, self.slot, self.generation))
    }
}

impl Drop for Embryo {
    fn drop(&mut self) {
        // In a forked child it is only a copy.
        if !self.born
            && self.epoch == epoch::current()
            && let Ok(me) = self.family.me()
        {
            self.family.give_up(me, self.slot, self.generation);
        }
    }
}

/// The count of out-of-memory kills before a child starts, to compare with when it was killed.
pub(super) fn oom_kills() -> Option<u64> {
    machine::oom_kills()
}

fn describe(slot: &ProcSlot, start: &Start<'_>) {
    let mut cut = start.name.len().min(47);
    while !start.name.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut bytes = [0u8; 48];
    bytes[..cut].copy_from_slice(&start.name.as_bytes()[..cut]);
    for (word, part) in slot.name.iter().zip(bytes.chunks_exact(8)) {
        let word_bytes = part.try_into().expect("eight bytes");
        word.store(u64::from_ne_bytes(word_bytes), Ordering::Release);
    }
    let daemon = if start.daemon { DAEMON } else { 0 };
    let detached = if start.detached { DETACHED } else { 0 };
    slot.flags.store(
        daemon | detached | start.method.bits() << 8,
        Ordering::Release,
    );
}

/// The name in a slot.
pub(super) fn name_of(slot: &ProcSlot) -> String {
    let words = slot.name.iter().map(|word| word.load(Ordering::Acquire));
    let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What a slot says of its process: (daemon, method).
pub(super) fn flags_of(slot: &ProcSlot) -> (bool, u32) {
    let flags = slot.flags.load(Ordering::Acquire);
    (flags & DAEMON != 0, flags >> 8)
}

/// Copies of what a child's standard streams are to be; `None` where they are the parent's.
pub(super) fn streams(stdio: &[Stdio<'_>; 3]) -> Result<[Option<OwnedFd>; 3]> {
    let mut streams = [None, None, None];
    for (place, stream) in streams.iter_mut().zip(stdio) {
        *place = match stream {
            Stdio::Inherit => None,
            Stdio::Null => Some(process::null_device()?),
            Stdio::Fd(fd) => Some(process::duplicate(*fd)?),
        };
    }
    Ok(streams)
}

/// In a child that is a copy: makes its standard streams and its directory what they should be.
pub(super) fn redirect(streams: &[Option<OwnedFd>; 3], directory: Option<&Path>) -> Result<()> {
    for (number, fd) in streams.iter().enumerate() {
        if let Some(fd) = fd {
            process::redirect(fd.as_fd(), number as i32)?;
        }
    }
    match directory {
        Some(directory) => std::env::set_current_dir(directory)
            .map_err(|e| Error::os("change to the child's directory", e)),
        None => Ok(()),
    }
}
