//! Doors for the harness in `tests/faults`, which kills at every store, and for nobody else: nothing here is promised.

use crate::error::Result;
use crate::memory::Family;
use crate::memory::block::State;
use crate::memory::slots::{ProcState, ProcWord};
use crate::memory::{runs, slabs};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

pub use crate::fault::passed;

/// Opens an arena without taking a seat in it; the first operation takes one.
pub fn open(fd: OwnedFd) -> Result<&'static Family> {
    Family::open_for_child(fd, &crate::KINDS)
}

/// Takes the calling thread's seat.
pub fn enter(family: &'static Family) -> Result<()> {
    family.me().map(|_| ())
}

/// Gives up the calling thread's seat, as its end does.
pub fn leave(family: &'static Family) {
    family.give_up_seat();
}

/// Recovers and reclaims the dead.
pub fn sweep(family: &'static Family) -> Result<()> {
    family.sweep(family.me()?);
    Ok(())
}

/// Takes a block and tells its offset.
pub fn allocate(family: &'static Family, length: u64) -> Result<u64> {
    let me = family.me()?;
    let block = family.or_sweep(me, || family.allocate(me, length))?;
    Ok(block.offset)
}

/// Gives back a block of [`allocate`].
pub fn free(family: &'static Family, offset: u64) -> Result<()> {
    family.free(family.me()?, offset);
    Ok(())
}

/// Makes a block of [`allocate`] that of the process in another slot, as a message does.
pub fn hand_over(family: &'static Family, offset: u64, process: u32) -> Result<()> {
    family.transfer(offset, State::Private, process)
}

/// The calling process's slot.
pub fn process_slot(family: &'static Family) -> Result<u32> {
    family.process_slot()
}

/// Gives back what the calling process keeps without need.
pub fn trim(family: &'static Family) -> Result<()> {
    slabs::trim(family, family.me()?);
    Ok(())
}

/// Makes a single-threaded process look dead in a copy of an arena, as the kernel would have left it.
pub fn strike(family: &Family, pid: u32) {
    const TID: u32 = 0x3fff_ffff;
    const OWNER_DIED: u32 = 0x4000_0000;
    for thread in family.threads() {
        let word = thread.token.word();
        let seen = word.load(Ordering::Acquire);
        if seen & TID == pid {
            word.store(seen & !(TID | OWNER_DIED) | OWNER_DIED, Ordering::Release);
        }
    }
    for process in family.processes() {
        if process.pid.load(Ordering::Acquire) == pid {
            process.ended.store(1, Ordering::Release);
        }
    }
}

/// The numbers of all processes that have a slot.
pub fn pids(family: &Family) -> Vec<u32> {
    let taken = family.processes().iter().filter(|process| {
        ProcWord::unpack(process.state.load(Ordering::Acquire)).state != ProcState::Free
    });
    let numbers = taken.map(|process| process.pid.load(Ordering::Acquire));
    numbers.filter(|pid| *pid != 0).collect()
}

/// What of the arena can matter: (offset, length) of all before the units, and of each run that is not free.
pub fn used(family: &Family) -> Vec<(u64, u64)> {
    let runs =
        runs::walk(family).filter(|(_, owner)| !matches!(owner.state, State::Free | State::Warm));
    let runs = runs.map(|(unit, owner)| {
        let start = family.unit_offset(unit);
        (
            start,
            family.unit_offset(unit + u64::from(owner.units)) - start,
        )
    });
    std::iter::once((0, family.units_start()))
        .chain(runs)
        .collect()
}

/// The bytes of an arena that nobody writes just now: its processes are stopped.
pub fn bytes(family: &Family, offset: u64, length: u64) -> Result<&[u8]> {
    family.region().bytes(offset, length)
}

/// Bytes that may be touched.
pub fn committed(family: &Family) -> u64 {
    family.header().committed.load(Ordering::Acquire)
}
