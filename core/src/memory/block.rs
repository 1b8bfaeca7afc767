//! Who owns a piece of memory: one word for each, and that word is the only truth.
//!
//! ```text
//!  63            32 31      20 19      8 7     4 3     0
//!  units (runs)     version    process   flags   state
//! ```
//!
//! For a run of units the word stands in the unit table, for a small block in the header of its slab. Free lists, counts
//! and hints are derived from these words and may be lost at any time.

use super::family::{Family, Me};
use super::layout::UNIT;
use super::object;
use super::offset::damaged;
use super::{runs, slabs};
use crate::error::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering};

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Nobody's. A run's pages have gone back to the system; with no length, no run starts here.
    Free = 0,
    /// One process's: it goes when the process goes.
    Private = 1,
    /// Part of an object: something in the arena names it.
    Shared = 2,
    /// An object's header.
    Object = 3,
    /// A message in a process's hands that must not be lost with it: it goes back to its queue.
    Leased = 4,
    /// A run that is a slab of small blocks.
    Slab = 5,
    /// A free run that has kept its pages.
    Warm = 6,
    /// A unit inside a slab; the upper half says how many units before it the slab starts.
    Inside = 7,
    /// A message in a pipe: nobody's until it is received, or its pipe is gone. The pipe's handle stands after its
    /// references.
    Transit = 8,
}

/// The block starts with a list of handles that it keeps alive.
pub(crate) const REFERENCES: u8 = 1;
/// An object that nobody can reach any more and that its owner takes apart.
pub(crate) const TEARDOWN: u8 = 2;

/// An owner word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) state: State,
    pub(crate) flags: u8,
    pub(crate) process: u32,
    /// Counts allocations of this place, so that a late look at an old one is told apart.
    pub(crate) version: u32,
    /// Length of a run, in units; 0 for a small block.
    pub(crate) units: u32,
}

impl Owner {
    pub(crate) fn unpack(word: u64) -> Owner {
        let state = match word & 0xf {
            1 => State::Private,
            2 => State::Shared,
            3 => State::Object,
            4 => State::Leased,
            5 => State::Slab,
            6 => State::Warm,
            7 => State::Inside,
            8 => State::Transit,
            _ => State::Free,
        };
        Owner {
            state,
            flags: (word >> 4) as u8 & 0xf,
            process: (word >> 8) as u32 & 0xfff,
            version: (word >> 20) as u32 & 0xfff,
            units: (word >> 32) as u32,
        }
    }

    pub(crate) fn pack(self) -> u64 {
        self.state as u64
            | u64::from(self.flags & 0xf) << 4
            | u64::from(self.process & 0xfff) << 8
            | u64::from(self.version & 0xfff) << 20
            | u64::from(self.units) << 32
    }
}

/// Memory that the calling process owns: where it starts and how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) offset: u64,
    pub(crate) capacity: u64,
}

/// The largest piece of memory that one allocation can give, in bytes.
pub(crate) const LENGTH_MAX: u64 = 1 << 46;

impl Family {
    /// Takes `length` bytes for the calling process, PRIVATE. Their content is undefined.
    ///
    /// It may be called inside a latch, and so it does not look for memory that dead processes still own:
    /// [`Family::or_sweep`] does, around the whole operation.
    pub(crate) fn allocate(&'static self, me: Me, length: u64) -> Result<Block> {
        self.allocate_for(me, length, slabs::Use::Blocks)
    }

    pub(crate) fn allocate_for(
        &'static self,
        me: Me,
        length: u64,
        used_for: slabs::Use,
    ) -> Result<Block> {
        if length <= slabs::LENGTH_MAX {
            return slabs::allocate(self, me, length, used_for);
        }
        if length > LENGTH_MAX {
            return Err(Error::TooLarge {
                what: "a block",
                length,
                limit: LENGTH_MAX,
            });
        }
        let unit = runs::allocate(self, me, length.div_ceil(UNIT))?;
        Ok(Block {
            offset: self.unit_offset(unit),
            capacity: length.next_multiple_of(UNIT),
        })
    }

    /// Runs an operation that needs memory, and once more, if there was none, after freeing what the dead own and what
    /// this process keeps without need. The caller holds no latch.
    pub(crate) fn or_sweep<R>(
        &'static self,
        me: Me,
        mut operation: impl FnMut() -> Result<R>,
    ) -> Result<R> {
        match operation() {
            Err(Error::Exhausted { .. }) => {
                self.sweep(me);
                slabs::trim(self, me);
                operation()
            }
            answer => answer,
        }
    }

    /// Gives back a block that the calling process owns PRIVATE, with the references in it.
    ///
    /// Objects that were kept alive by the block alone are destroyed.
    pub(crate) fn free(&'static self, me: Me, offset: u64) {
        let mut doomed = Vec::new();
        self.free_into(me, offset, &mut doomed);
        object::destroy_all(self, me, doomed);
    }

    /// [`Family::free`], leaving to the caller the objects that nobody keeps any more.
    pub(crate) fn free_into(&'static self, me: Me, offset: u64, doomed: &mut Vec<u64>) {
        let Ok(word) = self.owner_word(offset) else {
            return;
        };
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        debug_assert_eq!(
            (owner.state, owner.process),
            (State::Private, me.process),
            "freed by its owner"
        );
        if owner.flags & REFERENCES != 0 {
            object::drop_references(self, me, offset, doomed);
        }
        if owner.units > 0 {
            runs::free(self, self.unit_of(offset))
        } else {
            slabs::free(self, me, offset)
        }
    }

    /// The owner word of the block that starts at `offset`.
    #[inline]
    pub(crate) fn owner_word(&self, offset: u64) -> Result<&'static AtomicU64> {
        let (unit, word) = self.unit_word(offset)?;
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        match owner.state {
            State::Slab | State::Inside => slabs::owner_word(self, offset, unit, owner),
            State::Free | State::Warm => Err(damaged(offset, "the block is free")),
            State::Private | State::Shared | State::Object | State::Leased | State::Transit => {
                if self.unit_offset(unit) == offset {
                    Ok(word)
                } else {
                    Err(damaged(offset, "no block starts here"))
                }
            }
        }
    }

    /// The block that starts at `offset`, with its capacity.
    pub(crate) fn block_at(&self, offset: u64) -> Result<(Block, Owner)> {
        let word = self.owner_word(offset)?;
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        let capacity = if owner.units > 0 {
            u64::from(owner.units) * UNIT
        } else {
            let (unit, _) = self.unit_word(offset)?;
            slabs::class_size(self, unit)?
        };
        Ok((Block { offset, capacity }, owner))
    }

    /// Hands a block over: one store. Only the party whose block it is may do that.
    #[inline]
    pub(crate) fn transfer(&self, offset: u64, state: State, process: u32) -> Result<()> {
        let word = self.owner_word(offset)?;
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        word.store(
            Owner {
                state,
                process,
                ..owner
            }
            .pack(),
            Ordering::Release,
        );
        Ok(())
    }

    /// Sets flags of a block that the caller owns.
    pub(crate) fn flag(&self, offset: u64, flags: u8) -> Result<()> {
        let word = self.owner_word(offset)?;
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        word.store(
            Owner {
                flags: owner.flags | flags,
                ..owner
            }
            .pack(),
            Ordering::Release,
        );
        Ok(())
    }

    pub(crate) fn owner_of(&self, offset: u64) -> Result<Owner> {
        Ok(Owner::unpack(
            self.owner_word(offset)?.load(Ordering::Acquire),
        ))
    }

    #[inline]
    pub(crate) fn unit_of(&self, offset: u64) -> u64 {
        offset.wrapping_sub(self.units_start()) / UNIT
    }

    pub(crate) fn unit_offset(&self, unit: u64) -> u64 {
        self.units_start() + unit * UNIT
    }

    pub(crate) fn units_start(&self) -> u64 {
        self.header().units_start.load(Ordering::Relaxed)
    }

    #[inline]
    fn unit_word(&self, offset: u64) -> Result<(u64, &'static AtomicU64)> {
        let unit = self.unit_of(offset);
        let word = usize::try_from(unit)
            .ok()
            .and_then(|unit| self.units().get(unit));
        word.map(|word| (unit, word))
            .ok_or_else(|| damaged(offset, "it lies outside the units"))
    }

    /// How much of the arena is in use, and what it can hold.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage {
            bytes_max: self.header().units_max.load(Ordering::Relaxed) * UNIT,
            bytes_grown: self.header().units.load(Ordering::Acquire) * UNIT,
            bytes_in_use: 0,
            bytes_warm: 0,
        };
        for (_, owner) in runs::walk(self) {
            let bytes = u64::from(owner.units) * UNIT;
            match owner.state {
                State::Free => {}
                State::Warm => usage.bytes_warm += bytes,
                _ => usage.bytes_in_use += bytes,
            }
        }
        usage
    }
}

/// How a family's memory is used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// What the arena may grow to.
    pub bytes_max: u64,
    /// What it has grown to; the system need not have pages behind all of it.
    pub bytes_grown: u64,
    /// What is allocated.
    pub bytes_in_use: u64,
    /// What is free and has kept its pages, for the next allocation.
    pub bytes_warm: u64,
}
