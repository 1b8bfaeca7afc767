//! A pipe: two ends, whole messages.
//!
//! ```text
//! packet   header 16 bytes: mark, tag, flags, descriptors, length
//!          the bytes, up to 4 KiB; or, for longer messages and those with handles, 16 bytes: block, version
//! block    its handles · the pipe's handle, the length · the bytes
//! ```
//!
//! A block on its way is in the state TRANSIT: it belongs to its pipe. The receiver makes it its own by one
//! compare-and-swap, for which block, version and pipe must be right; so what is in a packet is never trusted, and no
//! packet can be received twice. A message whose sender dies before the packet is sent, or whose receiver dies before
//! the block is its own, is lost; its block is freed with the pipe at the latest.

use super::locker::{self, Ticket};
use crate::Tag;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::block::{Owner, State};
use crate::memory::family::{Family, Me};
use crate::memory::fsck::Fsck;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::memory::{Parcel, reclaim};
use crate::sys::poll::{self, Interest};
use crate::sys::socket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The kind of pipes, in the table of kinds.
pub(crate) const PIPE: u32 = 8;

/// This room's line for pipes.
pub(crate) const KIND: Kind = Kind {
    name: "pipe",
    destroy,
    check: |_, _, _: &mut Fsck| {},
    ..object::KIND
};

/// The most descriptors that a message can carry.
pub const FDS_MAX: usize = socket::FDS_MAX;

/// The longest message that goes through the socket, in bytes.
const INLINE_MAX: usize = 4096;

/// The longest message, in bytes: 16 TiB, more than any arena.
const LENGTH_MAX: u64 = 1 << 44;

shared! {
    /// What a pipe is beside its socket.
    struct Body: 64 {
        /// Blocks in the state TRANSIT that name this pipe. Never less than there are; deaths may leave it higher.
        in_transit: AtomicU32,
        padding: AtomicU32,
        reserved: [AtomicU64; 7],
    }
}

shared! {
    /// What stands in a block before the bytes.
    struct Front: 16 {
        /// The handle of the pipe.
        pipe: AtomicU64,
        length: AtomicU64,
    }
}

/// One end of a pipe.
///
/// ```
/// use procession_core::{Deadline, Error, Tag, connection};
///
/// let family = procession_core::family().create()?;
/// let (near, far) = connection::pair(family)?;
/// near.send(Tag::RAW, &[b"hello, ", b"world"], Deadline::NEVER)?;
/// assert_eq!(&*far.recv(Deadline::NEVER)?.bytes, b"hello, world");
/// drop(near);
/// assert!(matches!(far.recv(Deadline::NEVER), Err(Error::EndOfFile { .. })));
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Connection {
    pipe: Attached,
    socket: OwnedFd,
    readable: bool,
    writable: bool,
}

/// A message on its way out: its bytes in parts, what they are, and what travels with them.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// What the bytes are.
    pub tag: Tag,
    /// The bytes, in as many pieces as they come.
    pub parts: &'a [&'a [u8]],
    /// Objects that the message names. They live at least until the receiver drops its bytes.
    pub handles: &'a [Handle],
    /// Descriptors of which the receiver gets copies, at most [`FDS_MAX`].
    pub fds: &'a [BorrowedFd<'a>],
}

/// A message that came.
#[derive(Debug)]
#[non_exhaustive]
pub struct Received {
    /// The bytes, with the handles that came along.
    pub bytes: Parcel,
    /// What the bytes are.
    pub tag: Tag,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// Creates a pipe of which both ends send and receive.
pub fn pair(family: &'static Family) -> Result<(Connection, Connection)> {
    let pipe = object::create(family, PIPE, size_of::<Body>() as u64, |_, _| Ok(()))?;
    let (a, b) = socket::pair()?;
    let end = |pipe, socket| Connection {
        pipe,
        socket,
        readable: true,
        writable: true,
    };
    Ok((end(pipe.clone(), a), end(pipe, b)))
}

/// Creates a pipe of which the first end receives what the second sends.
pub fn one_way(family: &'static Family) -> Result<(Connection, Connection)> {
    let (mut receiver, mut sender) = pair(family)?;
    receiver.writable = false;
    sender.readable = false;
    Ok((receiver, sender))
}

impl Connection {
    /// The family it belongs to.
    pub fn family(&self) -> &'static Family {
        self.pipe.family()
    }

    /// Whether this end can receive.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether this end can send.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Sends bytes, joined to one message. Waits for room in the pipe until the deadline.
    pub fn send(&self, tag: Tag, parts: &[&[u8]], deadline: Deadline) -> Result<()> {
        let message = Outgoing {
            tag,
            parts,
            handles: &[],
            fds: &[],
        };
        self.send_message(&message, deadline)
    }

    /// Sends a message, whole or not at all.
    ///
    /// Fails with [`Error::EndOfFile`] if every copy of the other end is closed, [`Error::Exhausted`] if the arena has no
    /// room for the bytes, and [`Error::TimedOut`]; then nothing was sent and nothing is left.
    pub fn send_message(&self, message: &Outgoing<'_>, deadline: Deadline) -> Result<()> {
        if !self.writable {
            return Err(Error::Misuse {
                action: "send through a connection",
                why: "this end only receives",
            });
        }
        too_large("a message", length_of(message.parts), LENGTH_MAX)?;
        too_large(
            "a list of descriptors",
            message.fds.len() as u64,
            FDS_MAX as u64,
        )?;
        if length_of(message.parts) <= INLINE_MAX as u64 && message.handles.is_empty() {
            self.send_inline(message, deadline)
        } else {
            self.send_block(message, deadline)
        }
    }

    fn send_inline(&self, message: &Outgoing<'_>, deadline: Deadline) -> Result<()> {
        let header = Header::of(message, false).write();
        match message.parts {
            [] => self.push(&[&header], message.fds, deadline),
            [one] => self.push(&[&header, one], message.fds, deadline),
            [a, b] => self.push(&[&header, a, b], message.fds, deadline),
            many => self.push(&[&header, &many.concat()], message.fds, deadline),
        }
    }

    fn send_block(&self, message: &Outgoing<'_>, deadline: Deadline) -> Result<()> {
        let family = self.family();
        let me = family.me()?;
        let body: &Body = self.pipe.view()?;
        let front = size_of::<Front>() as u64;
        let parcel = Parcel::pack(family, me, front, message.parts, message.handles)?;
        let (block, start, length) = parcel.release().expect("a packed parcel lies in a block");
        let descriptor = (|| {
            let before: &Front = family.region().view(block + start - front)?;
            before
                .pipe
                .store(self.pipe.handle().to_bits(), Ordering::Release);
            before.length.store(length, Ordering::Release);
            Ok(Descriptor {
                block,
                version: family.owner_of(block)?.version,
            })
        })()
        .inspect_err(|_: &Error| family.free(me, block))?;
        // DEATH: the count is one too high: whoever destroys the pipe looks for blocks that are not there.
        body.in_transit.fetch_add(1, Ordering::AcqRel);
        fault::point("pipe.counted");
        family.transfer(block, State::Transit, me.process)?;
        // DEATH: the block is the pipe's and nobody was told: it is freed with the pipe.
        fault::point("pipe.in_transit");
        let header = Header::of(message, true).write();
        let sent = self.push(&[&header, &descriptor.write()], message.fds, deadline);
        if sent.is_err() {
            // The packet was not sent, so that nobody else can have taken the block.
            family.transfer(block, State::Private, me.process)?;
            body.in_transit.fetch_sub(1, Ordering::AcqRel);
            family.free(me, block);
        }
        sent
    }

    /// Sends one packet, waiting for room.
    fn push(&self, packet: &[&[u8]], fds: &[BorrowedFd<'_>], deadline: Deadline) -> Result<()> {
        loop {
            if socket::send(self.socket.as_fd(), packet, fds)? {
                return Ok(());
            }
            let there_is_room = poll::wait_one(self.socket.as_fd(), Interest::Writable, deadline)?;
            if !there_is_room && deadline.has_passed() {
                return Err(Error::TimedOut {
                    what: "room in a connection",
                });
            }
        }
    }

    /// Receives the next message, waiting until the deadline.
    ///
    /// Fails with [`Error::EndOfFile`] if every copy of the other end is closed and all it sent was received.
    pub fn recv(&self, deadline: Deadline) -> Result<Received> {
        if !self.readable {
            return Err(Error::Misuse {
                action: "receive from a connection",
                why: "this end only sends",
            });
        }
        let mut packet = [0; HEADER + INLINE_MAX];
        let mut fds = Vec::new();
        loop {
            match socket::recv(self.socket.as_fd(), &mut packet, &mut fds, false)? {
                socket::Received::Packet(length) => {
                    // DEATH: received and not taken: the block stays the pipe's, and is freed with it.
                    fault::point("pipe.received");
                    let packet = packet.get(..length).ok_or(malformed("it is too long"))?;
                    return self.open(packet, fds);
                }
                socket::Received::End => return Err(Error::EndOfFile { what: "connection" }),
                socket::Received::Nothing => {
                    if !self.poll(deadline)? {
                        return Err(Error::TimedOut {
                            what: "a message in a connection",
                        });
                    }
                }
            }
        }
    }

    fn open(&self, packet: &[u8], fds: Vec<OwnedFd>) -> Result<Received> {
        let (header, rest) = packet
            .split_at_checked(HEADER)
            .ok_or(malformed("it is shorter than a header"))?;
        let header = Header::read(header).ok_or(malformed("its header is none"))?;
        if usize::from(header.fds) != fds.len() {
            return Err(malformed(
                "descriptors of it were lost, because this process has too many",
            ));
        }
        let bytes = if header.in_block {
            let descriptor = Descriptor::read(rest).ok_or(malformed("it names no block"))?;
            self.take(descriptor, header.length)?
        } else if header.length == rest.len() as u64 {
            Parcel::from(rest.to_vec())
        } else {
            return Err(malformed("its length is another than it says"));
        };
        Ok(Received {
            bytes,
            tag: header.tag,
            fds,
        })
    }

    /// Makes a block on its way this process's own.
    fn take(&self, descriptor: Descriptor, length: u64) -> Result<Parcel> {
        let family = self.family();
        let me = family.me()?;
        let wrong = |_| malformed("it names no block");
        let word = family.owner_word(descriptor.block).map_err(wrong)?;
        let seen = word.load(Ordering::Acquire);
        let owner = Owner::unpack(seen);
        let (block, _) = family.block_at(descriptor.block).map_err(wrong)?;
        let place = reclaim::lease_place(family, descriptor.block, owner, block.capacity);
        let front = size_of::<Front>() as u64;
        let start = place - descriptor.block + front;
        let fits = start
            .checked_add(length)
            .is_some_and(|end| end <= block.capacity);
        if owner.state != State::Transit || owner.version != descriptor.version || !fits {
            return Err(malformed("its block is not on the way"));
        }
        let before: &Front = family.region().view(place)?;
        if before.pipe.load(Ordering::Acquire) != self.pipe.handle().to_bits()
            || before.length.load(Ordering::Acquire) != length
        {
            return Err(malformed("its block is another's"));
        }
        if !seize(word, seen, me) {
            return Err(malformed("its block was received already"));
        }
        // DEATH: our private block; the pipe's count is one too high.
        fault::point("pipe.taken");
        let body: &Body = self.pipe.view()?;
        body.in_transit.fetch_sub(1, Ordering::AcqRel);
        Parcel::unpack(family, me, descriptor.block, start, length)
    }

    /// Whether there is something to receive, a message or the end of file; waits for it until the deadline.
    pub fn poll(&self, deadline: Deadline) -> Result<bool> {
        loop {
            if poll::wait_one(self.socket.as_fd(), Interest::Readable, deadline)? {
                return Ok(true);
            }
            if deadline.has_passed() {
                return Ok(false);
            }
        }
    }

    /// Closes this copy of this end.
    pub fn close(self) {}

    /// Puts a copy of this end into the family's locker, so that it can travel in any message: the ticket's handle names
    /// it, and whoever receives that calls [`Connection::from_deposit`].
    pub fn deposit(&self) -> Result<Ticket> {
        let note = u64::from(self.readable) | u64::from(self.writable) << 1;
        locker::deposit_with(
            self.family(),
            self.socket.as_fd(),
            Some(self.pipe.handle()),
            note,
        )
    }

    /// A copy of the end that lies in the locker under the ticket of this handle.
    pub fn from_deposit(family: &'static Family, ticket: Handle) -> Result<Connection> {
        let found = locker::withdraw_with(family, ticket)?;
        let pipe = found.kept.ok_or(Error::BadHandle {
            what: "connection",
            handle: ticket.to_bits(),
            why: "its ticket is for another descriptor",
        })?;
        Ok(Connection {
            // The ticket is still held: it keeps the pipe alive until we do.
            pipe: object::attach(family, PIPE, pipe)?,
            socket: found.fd,
            readable: found.note & 1 != 0,
            writable: found.note & 2 != 0,
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes a block in transit a private one of the caller's.
fn seize(word: &AtomicU64, seen: u64, me: Me) -> bool {
    let owned = Owner {
        state: State::Private,
        process: me.process,
        ..Owner::unpack(seen)
    };
    word.compare_exchange(seen, owned.pack(), Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
}

/// Frees the messages that nobody will receive.
fn destroy(family: &'static Family, me: Me, body: u64) {
    let Ok(found) = family.region().view::<Body>(body) else {
        return;
    };
    if found.in_transit.load(Ordering::Acquire) == 0 {
        return;
    }
    let pipe = object::header(family, body - object::BODY)
        .map(|header| object::handle_of(body - object::BODY, header));
    for (block, word) in reclaim::in_state(family, State::Transit) {
        let seen = word.load(Ordering::Acquire);
        if pipe
            .as_ref()
            .is_ok_and(|pipe| reclaim::named_after(family, block) == *pipe)
            && Owner::unpack(seen).state == State::Transit
            && seize(word, seen, me)
        {
            // DEATH: our private block, freed with us; the others are found by whoever destroys the pipe again.
            fault::point("pipe.seized");
            family.free(me, block);
        }
    }
}

fn length_of(parts: &[&[u8]]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

fn too_large(what: &'static str, length: u64, limit: u64) -> Result<()> {
    if length > limit {
        return Err(Error::TooLarge {
            what,
            length,
            limit,
        });
    }
    Ok(())
}

fn malformed(why: &'static str) -> Error {
    Error::Malformed {
        what: "packet in a connection",
        why,
    }
}

const HEADER: usize = 16;
const MARK: [u8; 4] = *b"pcn\x01";
const IN_BLOCK: u8 = 1;

/// How every packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    tag: Tag,
    in_block: bool,
    fds: u8,
    length: u64,
}

impl Header {
    fn of(message: &Outgoing<'_>, in_block: bool) -> Header {
        Header {
            tag: message.tag,
            in_block,
            fds: message.fds.len() as u8,
            length: length_of(message.parts),
        }
    }

    fn write(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MARK);
        bytes[4] = self.tag.0;
        bytes[5] = if self.in_block { IN_BLOCK } else { 0 };
        bytes[6] = self.fds;
        bytes[8..].copy_from_slice(&self.length.to_ne_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Header> {
        let bytes: &[u8; HEADER] = bytes.try_into().ok()?;
        if bytes[..4] != MARK || bytes[5] > IN_BLOCK || bytes[7] != 0 {
            return None;
        }
        Some(Header {
            tag: Tag(bytes[4]),
            in_block: bytes[5] == IN_BLOCK,
            fds: bytes[6],
            length: u64::from_ne_bytes(bytes[8..].try_into().expect("eight bytes")),
        })
    }
}

/// Which block a packet stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    block: u64,
    version: u32,
}

impl Descriptor {
    fn write(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.block.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.version.to_ne_bytes());
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Descriptor> {
        let bytes: &[u8; 16] = bytes.try_into().ok()?;
        Some(Descriptor {
            block: u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes")),
            version: u32::from_ne_bytes(bytes[8..12].try_into().expect("four bytes")),
        })
    }
}
