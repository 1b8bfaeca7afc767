//! A message: bytes, what they are, and the handles that travel with them.

use super::Outgoing;
use crate::error::{Error, Result};
use crate::memory::block::{self, Block};
use crate::memory::family::{Family, Me};
use crate::memory::layout::shared;
use crate::memory::object::{self, Handle};
use crate::tag::Tag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes that fit into a queue's entry; longer ones lie in a block of their own.
pub(crate) const INLINE_MAX: usize = 48;

/// The longest message, in bytes: 16 TiB, more than any arena.
pub(crate) const LENGTH_MAX: u64 = 1 << 44;

shared! {
    /// Stands before the bytes of a message that is leased, so that it can find back to its queue.
    pub(crate) struct Lease: 32 {
        /// The handle of the queue it belongs to.
        pub(crate) queue: AtomicU64,
        /// The process that died with it, 0 if none did.
        pub(crate) victim: AtomicU64,
        /// The entry's header when it was put.
        pub(crate) header: AtomicU64,
        pub(crate) reserved: AtomicU64,
    }
}

/// How long, of what kind, and how it lies: the second word of an entry.
///
/// ```text
///  63     56 55    48 47        0
///  flags     tag      length
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) length: u64,
    pub(crate) tag: Tag,
    /// The block begins with a [`Lease`], after its list of handles.
    pub(crate) leased: bool,
}

impl Header {
    pub(crate) fn pack(self) -> u64 {
        self.length | u64::from(self.tag.0) << 48 | u64::from(self.leased) << 56
    }

    pub(crate) fn unpack(word: u64) -> Header {
        Header {
            length: word & ((1 << 48) - 1),
            tag: Tag((word >> 48) as u8),
            leased: word >> 56 & 1 == 1,
        }
    }
}

/// A message on its way in: prepared outside of every latch, so that putting it is short.
#[derive(Debug)]
pub(crate) enum Prepared {
    Inline { header: Header, words: [u64; 6] },
    Block { header: Header, offset: u64 },
}

/// A message as it lies in an entry; `None` if it does not fit into one.
#[inline]
pub(crate) fn inline(message: &Outgoing<'_>) -> Option<(Header, [u64; 6])> {
    let length: u64 = message.parts.iter().map(|part| part.len() as u64).sum();
    if length > INLINE_MAX as u64 || !message.handles.is_empty() {
        return None;
    }
    let header = Header {
        length,
        tag: message.tag,
        leased: false,
    };
    Some((header, inline_words(message.parts)))
}

impl Prepared {
    /// Copies the parts to where the message will be read.
    pub(crate) fn new(
        family: &'static Family,
        me: Me,
        message: Outgoing<'_>,
        leased_by: Option<Handle>,
    ) -> Result<Prepared> {
        if leased_by.is_none()
            && let Some((header, words)) = inline(&message)
        {
            return Ok(Prepared::Inline { header, words });
        }
        let Outgoing {
            tag,
            parts,
            handles,
        } = message;
        let length = parts.iter().map(|part| part.len() as u64).sum();
        if length > LENGTH_MAX {
            return Err(Error::TooLarge {
                what: "a message",
                length,
                limit: LENGTH_MAX,
            });
        }
        let header = Header {
            length,
            tag,
            leased: leased_by.is_some(),
        };
        let start =
            object::references_length(handles.len()) + if header.leased { LEASE } else { 0 };
        let offset = family
            .or_sweep(me, || family.allocate(me, start + length))?
            .offset;
        // From here on an error frees the block, and a death leaves it to reclaim.
        let filled = fill(family, me, offset, parts, handles, header, leased_by);
        if let Err(error) = filled {
            family.free(me, offset);
            return Err(error);
        }
        Ok(Prepared::Block { header, offset })
    }

    /// Takes it back.
    pub(crate) fn discard(self, family: &'static Family, me: Me) {
        match self {
            Prepared::Inline { .. } => {}
            Prepared::Block { offset, .. } => family.free(me, offset),
        }
    }
}

/// The size of a lease, in bytes.
pub(crate) const LEASE: u64 = size_of::<Lease>() as u64;

fn fill(
    family: &'static Family,
    me: Me,
    offset: u64,
    parts: &[&[u8]],
    handles: &[Handle],
    header: Header,
    leased_by: Option<Handle>,
) -> Result<()> {
    let mut place = offset + object::references_length(handles.len());
    if let Some(queue) = leased_by {
        let lease = family.region().view::<Lease>(place)?;
        lease.queue.store(queue.to_bits(), Ordering::Release);
        lease.victim.store(0, Ordering::Release);
        lease.header.store(header.pack(), Ordering::Release);
        lease.reserved.store(0, Ordering::Release);
        place += LEASE;
    }
    for part in parts {
        family.region().copy_in(place, part)?;
        place += part.len() as u64;
    }
    object::add_references(family, me, offset, handles)
}

#[inline]
fn inline_words(parts: &[&[u8]]) -> [u64; 6] {
    let mut bytes = [0; INLINE_MAX];
    let mut at = 0;
    for part in parts {
        bytes[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    std::array::from_fn(|i| {
        u64::from_ne_bytes(bytes[i * 8..i * 8 + 8].try_into().expect("eight bytes"))
    })
}

/// A message that was got. It owns its bytes until it is dropped.
pub struct Message {
    tag: Tag,
    body: Body,
}

enum Body {
    Inline { bytes: [u8; INLINE_MAX], length: u8 },
    Block(Held),
    Leased(Arc<Held>),
}

/// A block in this process's hands.
pub(crate) struct Held {
    family: &'static Family,
    offset: u64,
    start: u64,
    length: u64,
    handles: Vec<Handle>,
    /// The process that holds it: a forked child's copy of a message is not the child's.
    process: u32,
    /// The process that died with it before, if one did.
    victim: Option<u32>,
    /// On loan: the block is not this process's to free until the queue was told what became of the message.
    on_loan: AtomicBool,
}

impl Message {
    #[inline]
    pub(crate) fn inline(header: Header, words: [u64; 6]) -> Result<Message> {
        if header.length > INLINE_MAX as u64 {
            return Err(Error::Malformed {
                what: "queue entry",
                why: "its length is more than an entry holds",
            });
        }
        let mut bytes = [0; INLINE_MAX];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        Ok(Message {
            tag: header.tag,
            body: Body::Inline {
                bytes,
                length: header.length as u8,
            },
        })
    }

    /// The message in a block that this process was given.
    pub(crate) fn block(
        family: &'static Family,
        me: Me,
        header: Header,
        offset: u64,
        leased: bool,
    ) -> Result<Message> {
        let (Block { capacity, .. }, owner) = family.block_at(offset)?;
        let mut start = offset;
        let mut handles = Vec::new();
        if owner.flags & block::REFERENCES != 0 {
            handles = object::references(family, offset, capacity);
            start +=
                object::references_length(object::read_count(family, offset, capacity) as usize);
        }
        let mut victim = None;
        if header.leased {
            let lease = family.region().view::<Lease>(start)?;
            victim = Some(lease.victim.load(Ordering::Acquire) as u32).filter(|pid| *pid != 0);
            start += LEASE;
        }
        if header.length > (offset + capacity).saturating_sub(start) {
            return Err(Error::Malformed {
                what: "queue entry",
                why: "its length is more than its block holds",
            });
        }
        let on_loan = AtomicBool::new(leased);
        let held = Held {
            family,
            offset,
            start,
            length: header.length,
            handles,
            process: me.process,
            victim,
            on_loan,
        };
        let body = if leased {
            Body::Leased(Arc::new(held))
        } else {
            Body::Block(held)
        };
        Ok(Message {
            tag: header.tag,
            body,
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match (&self.body, self.held()) {
            (Body::Inline { bytes, length }, _) => &bytes[..usize::from(*length)],
            (_, Some(held)) => held
                .family
                .region()
                .bytes(held.start, held.length)
                .unwrap_or(&[]),
            (_, None) => &[],
        }
    }

    fn held(&self) -> Option<&Held> {
        match &self.body {
            Body::Inline { .. } => None,
            Body::Block(held) => Some(held),
            Body::Leased(held) => Some(held),
        }
    }

    /// What the bytes are.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// The handles that travel with the message. Their objects live at least as long as it does.
    pub fn handles(&self) -> &[Handle] {
        self.held().map_or(&[], |held| &held.handles)
    }

    /// The number of the process that died with this message in its hands, if one did.
    pub fn victim(&self) -> Option<u32> {
        self.held().and_then(|held| held.victim)
    }

    /// The loan, for the queue that must be told what became of it.
    pub(crate) fn loan(&self) -> Option<&Arc<Held>> {
        match &self.body {
            Body::Leased(held) => Some(held),
            Body::Inline { .. } | Body::Block(_) => None,
        }
    }
}

impl Held {
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The loan is over: true once, for the one who ends it.
    pub(crate) fn end_loan(&self) -> bool {
        self.on_loan.swap(false, Ordering::AcqRel)
    }

    /// The block went elsewhere: it is not this process's to free.
    pub(crate) fn forget(&self) {
        self.on_loan.store(true, Ordering::Release);
    }

    /// Whether the loan is the calling process's, not the copy of its parent's.
    pub(crate) fn is_of(&self, me: Me) -> bool {
        self.process == me.process
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if *self.on_loan.get_mut() {
            return;
        }
        // Without a seat the block stays until the process ends.
        if let Ok(me) = self.family.me()
            && self.is_of(me)
        {
            self.family.free(me, self.offset);
        }
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("tag", &self.tag)
            .field("length", &self.bytes().len())
            .field("handles", &self.handles().len())
            .finish()
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// The process number of a slot, for people.
pub(crate) fn pid_of(family: &Family, process: u32) -> u32 {
    family
        .processes()
        .get(process as usize)
        .map_or(0, |slot| slot.pid.load(Ordering::Acquire))
}
