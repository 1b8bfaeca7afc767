//! Runs of whole units: large blocks, and the ground under slabs.
//!
//! The unit table is the only truth. The word of a run's first unit tells its length and state, and the next run starts
//! after it: one walks by hops. What stands in the words between is left over and means nothing.
//!
//! Taking a run is one store, the head's word; before it, a longer run was split by writing the rest's head into a place
//! that no walk reaches yet. Giving a run back is one store too and takes no latch. Free neighbours are joined by whoever
//! walks over them with the latch in hand. So there is nothing half done that anybody would have to repair.

use super::block::{Owner, State};
use super::family::{Family, Me};
use super::latch::Acquired;
use super::layout::UNIT;
use crate::error::{Error, Result};
use crate::fault;
use crate::sys::memory;
use std::sync::atomic::Ordering;

/// The arena grows by at least this many units, and by a quarter of what it has.
const GROWTH_MIN: u64 = 64;

/// Takes a run of `units` for the calling process; returns its first unit.
pub(crate) fn allocate(family: &'static Family, me: Me, units: u64) -> Result<u64> {
    let most = family.header().units_max.load(Ordering::Relaxed);
    if units > most {
        return Err(Error::Exhausted {
            what: "the arena's memory",
            limit: most * UNIT,
        });
    }
    let header = family.header();
    enter(family, me);
    let found = search(family, units).map_or_else(|| grow(family, units), Ok);
    let answer = found.map(|(unit, owner)| {
        let cold = owner.state == State::Free;
        split(family, me, unit, owner, units);
        (unit, cold)
    });
    header.runs.release(family, me);
    let (unit, cold) = answer?;
    if cold {
        let backed = memory::back(family.region().fd(), family.unit_offset(unit), units * UNIT);
        if let Err(error) = backed {
            set(family, unit, State::Free);
            return Err(out_of_memory(family, error));
        }
    }
    Ok(unit)
}

/// Enters the runs' latch. A death inside leaves nothing half done, only the two hints may be wrong.
fn enter(family: &'static Family, me: Me) {
    match family.header().runs.enter(family, me) {
        Acquired::Clean => {}
        Acquired::OwnerDied => {
            count_warm(family);
            family.header().run_hint.store(0, Ordering::Relaxed);
        }
    }
}

/// First fit, from where the last search ended and then from the start, joining free neighbours on the way.
fn search(family: &Family, units: u64) -> Option<(u64, Owner)> {
    let total = family.header().units.load(Ordering::Acquire);
    let hint = family.header().run_hint.load(Ordering::Relaxed).min(total);
    search_range(family, units, hint, total).or_else(|| search_range(family, units, 0, hint))
}

fn search_range(family: &Family, units: u64, from: u64, to: u64) -> Option<(u64, Owner)> {
    let mut unit = from;
    while unit < to {
        let owner = join(family, unit);
        if owner.units == 0 {
            return None;
        }
        if is_free(owner) && units <= u64::from(owner.units) {
            family.header().run_hint.store(unit, Ordering::Relaxed);
            return Some((unit, owner));
        }
        unit += u64::from(owner.units);
    }
    None
}

/// The run at `unit`, after joining to it whatever free runs follow it if it is free itself.
fn join(family: &Family, unit: u64) -> Owner {
    let total = family.header().units.load(Ordering::Acquire);
    let mut owner = read(family, unit);
    if !is_free(owner) {
        return owner;
    }
    loop {
        let next = unit + u64::from(owner.units);
        if next >= total {
            return owner;
        }
        let follower = read(family, next);
        if !is_free(follower) || follower.units == 0 {
            return owner;
        }
        if owner.state != follower.state {
            // Joined, they count as cold: backing pages that exist already costs little.
            let warm = if owner.state == State::Warm {
                owner.units
            } else {
                follower.units
            };
            cool(family, u64::from(warm));
            owner.state = State::Free;
        }
        owner.units += follower.units;
        if family.header().run_hint.load(Ordering::Relaxed) == next {
            // The hint names the first unit of a run, always: a walk may start there.
            family.header().run_hint.store(unit, Ordering::Relaxed);
        }
        // DEATH: one store; before it two runs, after it one.
        write(family, unit, owner);
    }
}

/// Cuts `units` out of the free run at `unit`, whose first unit then is the allocation's.
fn split(family: &Family, me: Me, unit: u64, owner: Owner, units: u64) {
    let rest = u64::from(owner.units) - units;
    if rest > 0 {
        write(
            family,
            unit + units,
            Owner {
                units: rest as u32,
                ..owner
            },
        );
    }
    // DEATH: the rest's head is written where no walk comes by yet; the run is still one and free.
    fault::point("runs.split");
    if owner.state == State::Warm {
        cool(family, units);
    }
    let taken = Owner {
        state: State::Private,
        flags: 0,
        process: me.process,
        version: owner.version.wrapping_add(1) & 0xfff,
        units: units as u32,
    };
    write(family, unit, taken);
}

/// Makes the arena longer, by one free run at its end.
fn grow(family: &'static Family, units: u64) -> Result<(u64, Owner)> {
    let header = family.header();
    let (total, most) = (
        header.units.load(Ordering::Acquire),
        header.units_max.load(Ordering::Relaxed),
    );
    let exhausted = || Error::Exhausted {
        what: "the arena's memory",
        limit: most * UNIT,
    };
    let room = most.saturating_sub(total);
    // A free run at the end counts too; how long it is, the search after growing finds out.
    let wanted = units.max(GROWTH_MIN).max(total / 4).min(room);
    if wanted == 0 {
        return Err(exhausted());
    }
    let length = family.unit_offset(total + wanted);
    memory::grow(family.region().fd(), length).map_err(|error| out_of_memory(family, error))?;
    header.committed.fetch_max(length, Ordering::AcqRel);
    // DEATH: the file is longer and `units` does not say so; the next to grow uses what is there.
    fault::point("runs.grown");
    let fresh = Owner {
        state: State::Free,
        flags: 0,
        process: 0,
        version: 0,
        units: wanted as u32,
    };
    write(family, total, fresh);
    header.units.store(total + wanted, Ordering::Release);
    search(family, units).ok_or_else(exhausted)
}

/// Gives a run back. The caller owns it.
pub(crate) fn free(family: &Family, unit: u64) {
    let owner = read(family, unit);
    let length = u64::from(owner.units);
    if warm(family, length) {
        set(family, unit, State::Warm);
        return;
    }
    cool(family, length);
    // DEATH: the pages are gone and the run is still the dead process's; reclaim gives it back.
    memory::give_back(
        family.region().fd(),
        family.unit_offset(unit),
        length * UNIT,
    );
    fault::point("runs.given_back");
    set(family, unit, State::Free);
}

/// Counts units as warm; says whether so many may stay so.
pub(crate) fn warm(family: &Family, units: u64) -> bool {
    let header = family.header();
    let before = header.warm.fetch_add(units, Ordering::Relaxed);
    before.saturating_add(units) <= header.keep_warm.load(Ordering::Relaxed)
}

/// Counts units as warm no more. The count is a hint that may have drifted: it stops at zero.
pub(crate) fn cool(family: &Family, units: u64) {
    let warm = &family.header().warm;
    let _ = warm.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |warm| {
        Some(warm.saturating_sub(units))
    });
}

/// Counts the warm units anew, free runs and idle slabs: deaths between two stores make the count drift.
pub(crate) fn count_warm(family: &Family) {
    let warm = walk(family)
        .filter(|(unit, owner)| match owner.state {
            State::Warm => true,
            State::Slab => super::slabs::is_idle(family, *unit),
            _ => false,
        })
        .map(|(_, owner)| u64::from(owner.units));
    family.header().warm.store(warm.sum(), Ordering::Relaxed);
}

/// All runs with their first units, in order. Without the latch it is a picture that may be a little old.
pub(crate) fn walk(family: &Family) -> impl Iterator<Item = (u64, Owner)> {
    let total = family
        .header()
        .units
        .load(Ordering::Acquire)
        .min(family.units().len() as u64);
    let mut unit = 0;
    std::iter::from_fn(move || {
        if unit >= total {
            return None;
        }
        let (first, owner) = (unit, read(family, unit));
        if owner.units == 0 {
            unit = total;
            return None;
        }
        unit += u64::from(owner.units);
        Some((first, owner))
    })
}

pub(crate) fn read(family: &Family, unit: u64) -> Owner {
    family
        .units()
        .get(unit as usize)
        .map_or(NO_RUN, |word| Owner::unpack(word.load(Ordering::Acquire)))
}

const NO_RUN: Owner = Owner {
    state: State::Free,
    flags: 0,
    process: 0,
    version: 0,
    units: 0,
};

pub(crate) fn write(family: &Family, unit: u64, owner: Owner) {
    if let Some(word) = family.units().get(unit as usize) {
        word.store(owner.pack(), Ordering::Release);
    }
}

/// Changes the state of a run, keeping its length.
fn set(family: &Family, unit: u64, state: State) {
    write(
        family,
        unit,
        Owner {
            state,
            flags: 0,
            process: 0,
            ..read(family, unit)
        },
    );
}

fn is_free(owner: Owner) -> bool {
    matches!(owner.state, State::Free | State::Warm)
}

fn out_of_memory(family: &Family, error: Error) -> Error {
    use rustix::io::Errno;
    match &error {
        Error::Os { source, .. }
            if [Errno::NOMEM, Errno::NOSPC, Errno::FBIG]
                .iter()
                .any(|e| source.raw_os_error() == Some(e.raw_os_error())) =>
        {
            Error::Exhausted {
                what: "the machine's memory",
                limit: family.header().units.load(Ordering::Relaxed) * UNIT,
            }
        }
        _ => error,
    }
}
