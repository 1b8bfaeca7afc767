//! Bytes in this process's hands: a message that came, or one that is about to go.

use super::block::{self, State};
use super::epoch;
use super::family::{Family, Me};
use super::object::{self, Handle};
use crate::error::{Error, Result};
use std::fmt;
use std::ops::Deref;

/// Bytes that came from another process, readable where they lie.
///
/// Short ones are this process's own memory. Longer ones stay in the family's arena, without a copy, until the parcel
/// is dropped; so do the objects whose handles came with them.
pub struct Parcel {
    contents: Contents,
}

enum Contents {
    Own(Vec<u8>),
    Block(Held),
}

/// A block that this process owns PRIVATE: references first, then what a room puts there, then the bytes.
struct Held {
    family: &'static Family,
    block: u64,
    /// Where the bytes start, from the block's start.
    start: u64,
    length: u64,
    references: bool,
    epoch: u32,
}

impl Parcel {
    /// Lays bytes and the handles that they speak of into a new block, with room for `front` bytes before them.
    ///
    /// The caller holds no latch.
    pub(crate) fn pack(
        family: &'static Family,
        me: Me,
        front: u64,
        parts: &[&[u8]],
        handles: &[Handle],
    ) -> Result<Parcel> {
        let start = object::references_length(handles.len()) + front;
        let length = parts.iter().map(|part| part.len() as u64).sum::<u64>();
        let size = start.saturating_add(length).max(1);
        let block = family.or_sweep(me, || family.allocate(me, size))?;
        // DEATH: a private block of ours, until it is handed over by one store.
        let parcel = Parcel {
            contents: Contents::Block(Held {
                family,
                block: block.offset,
                start,
                length,
                references: !handles.is_empty(),
                epoch: epoch::current(),
            }),
        };
        object::add_references(family, me, block.offset, handles)?;
        let mut at = block.offset + start;
        for part in parts {
            family.region().copy_in(at, part)?;
            at += part.len() as u64;
        }
        Ok(parcel)
    }

    /// Takes up a block that this process owns by now; refuses one that cannot hold what is said of it.
    pub(crate) fn unpack(
        family: &'static Family,
        me: Me,
        block: u64,
        start: u64,
        length: u64,
    ) -> Result<Parcel> {
        let (found, owner) = family.block_at(block)?;
        let fits = start
            .checked_add(length)
            .is_some_and(|end| end <= found.capacity);
        if owner.state != State::Private || owner.process != me.process || !fits {
            return Err(Error::Malformed {
                what: "a message",
                why: "its block is not this process's",
            });
        }
        Ok(Parcel {
            contents: Contents::Block(Held {
                family,
                block,
                start,
                length,
                references: owner.flags & block::REFERENCES != 0,
                epoch: epoch::current(),
            }),
        })
    }

    /// The handles that came with the bytes; their objects live at least as long as the parcel.
    pub fn handles(&self) -> Vec<Handle> {
        match &self.contents {
            Contents::Block(held) if held.references => {
                let found = held.family.block_at(held.block);
                found.map_or_else(
                    |_| Vec::new(),
                    |(found, _)| object::references(held.family, held.block, found.capacity),
                )
            }
            _ => Vec::new(),
        }
    }

    /// The bytes in this process's own memory; those in the arena are copied out of it.
    pub fn into_vec(mut self) -> Vec<u8> {
        match &mut self.contents {
            Contents::Own(bytes) => std::mem::take(bytes),
            Contents::Block(_) => self.to_vec(),
        }
    }

    /// Whether the bytes lie in the arena.
    pub fn is_in_arena(&self) -> bool {
        matches!(self.contents, Contents::Block(_))
    }

    /// Gives up the block: (offset, start, length). It stays this process's until it is handed over or freed.
    pub(crate) fn release(self) -> Option<(u64, u64, u64)> {
        match self.contents {
            Contents::Own(_) => None,
            Contents::Block(held) => {
                let held = std::mem::ManuallyDrop::new(held);
                Some((held.block, held.start, held.length))
            }
        }
    }

    /// Leaves out the first `length` bytes.
    pub(crate) fn cut_front(&mut self, length: u64) {
        match &mut self.contents {
            Contents::Own(bytes) => drop(bytes.drain(..(length as usize).min(bytes.len()))),
            Contents::Block(held) => {
                let length = length.min(held.length);
                held.start += length;
                held.length -= length;
            }
        }
    }
}

impl From<Vec<u8>> for Parcel {
    fn from(bytes: Vec<u8>) -> Parcel {
        Parcel {
            contents: Contents::Own(bytes),
        }
    }
}

impl Deref for Parcel {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.contents {
            Contents::Own(bytes) => bytes,
            Contents::Block(held) => held
                .family
                .region()
                .bytes(held.block + held.start, held.length)
                .expect("checked when the block was taken up, and an arena never shrinks"),
        }
    }
}

impl AsRef<[u8]> for Parcel {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // In a forked child it is only a copy: the block is the parent's.
        if self.epoch == epoch::current()
            && let Ok(me) = self.family.me()
        {
            self.family.free(me, self.block);
        }
    }
}

impl fmt::Debug for Parcel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parcel")
            .field("length", &self.len())
            .field("in_arena", &self.is_in_arena())
            .finish()
    }
}
