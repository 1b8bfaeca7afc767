//! How a descriptor travels in a message of plain bytes: it is left in the family's locker, and a ticket is sent.
//!
//! The locker is one socket pair of which every member of the family holds both ends. What was put into it lies there
//! with its descriptor; looking does not take it out (`MSG_PEEK` gives copies of descriptors, `SO_PEEK_OFF` says of
//! which packet). A ticket is an object: while it lives, its descriptor can be withdrawn, any number of times.
//!
//! ```text
//! packet   mark, the ticket's handle: 16 bytes, and the descriptor
//! ```
//!
//! Descriptors of tickets that died are taken out when a ticket dies. Those before them are put in again at the back
//! first and taken out after: a kill in between leaves one twice, never none. Who reads holds the locker's latch.

use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::fsck::Fsck;
use crate::memory::latch::Acquired;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::sys::socket::{self, Received};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// The kind of tickets, in the table of kinds.
pub(crate) const TICKET: u32 = 11;

/// This room's line for tickets.
pub(crate) const KIND: Kind = Kind {
    name: "ticket",
    destroy,
    check,
    ..object::KIND
};

shared! {
    /// What a ticket is for.
    struct Body: 64 {
        /// The handle of an object that the ticket keeps alive; 0 none.
        kept: AtomicU64,
        /// What the descriptor's owner says of it.
        note: AtomicU64,
        reserved: [AtomicU64; 6],
    }
}

/// A descriptor in the family's locker. It can be withdrawn for as long as the ticket lives: until every copy is
/// dropped and every message that carries its handle is gone.
#[derive(Clone, Debug)]
pub struct Ticket {
    attached: Attached,
}

impl Ticket {
    /// The handle to send.
    pub fn handle(&self) -> Handle {
        self.attached.handle()
    }
}

/// The most descriptors that lie in the locker. Its socket holds about twice as many, so that there is room to turn.
const COUNT_MAX: u64 = 256;

/// Puts a copy of a descriptor into the family's locker.
///
/// Fails with [`Error::Exhausted`] when 256 lie there already.
///
/// ```
/// use procession_core::connection::{deposit, withdraw};
/// use std::{fs::File, os::fd::AsFd};
///
/// let family = procession_core::family().create()?;
/// let file = File::open("/dev/null").expect("it exists");
/// let ticket = deposit(family, file.as_fd())?;
/// let _copy = withdraw(family, ticket.handle())?;
/// # Ok::<(), procession_core::Error>(())
/// ```
pub fn deposit(family: &'static Family, fd: BorrowedFd<'_>) -> Result<Ticket> {
    deposit_with(family, fd, None, 0)
}

/// A copy of the descriptor that lies in the locker under the ticket of this handle.
pub fn withdraw(family: &'static Family, ticket: Handle) -> Result<OwnedFd> {
    Ok(withdraw_with(family, ticket)?.fd)
}

/// [`deposit`], with an object to keep alive and a note.
pub(super) fn deposit_with(
    family: &'static Family,
    fd: BorrowedFd<'_>,
    kept: Option<Handle>,
    note: u64,
) -> Result<Ticket> {
    let length = size_of::<Body>() as u64;
    let attached = object::create(family, TICKET, length, |_, body| {
        let body: &Body = family.region().view(body)?;
        body.note.store(note, Ordering::Release);
        Ok(())
    })?;
    let me = family.me()?;
    if let Some(kept) = kept {
        object::keep(family, me, attached.body(), kept)?;
    }
    // DEATH: a ticket without a descriptor, which goes with its process.
    fault::point("locker.ticket");
    let locker = Locker::of(family)?;
    let packet = write_packet(attached.handle());
    let room = locker.within(me, || {
        if locker.count()? >= COUNT_MAX {
            locker.clean()?;
        }
        Ok(locker.count()? < COUNT_MAX && socket::send(locker.put, &[&packet], &[fd])?)
    })?;
    if !room {
        return Err(Error::Exhausted {
            what: "the locker of descriptors",
            limit: COUNT_MAX,
        });
    }
    Ok(Ticket { attached })
}

/// What was found under a ticket. It keeps the ticket alive.
pub(super) struct Withdrawn {
    pub(super) fd: OwnedFd,
    pub(super) kept: Option<Handle>,
    pub(super) note: u64,
    _ticket: Attached,
}

/// [`withdraw`], with the note and the kept object's handle.
pub(super) fn withdraw_with(family: &'static Family, ticket: Handle) -> Result<Withdrawn> {
    let attached = object::attach(family, TICKET, ticket)?;
    let body: &Body = attached.view()?;
    let locker = Locker::of(family)?;
    let fd = locker.within(family.me()?, || locker.find(ticket))?;
    let kept = body.kept.load(Ordering::Acquire);
    Ok(Withdrawn {
        fd: fd.ok_or(Error::BadHandle {
            what: "ticket",
            handle: ticket.to_bits(),
            why: "its descriptor is not in the locker",
        })?,
        kept: (kept != 0).then(|| Handle::from_bits(kept)),
        note: body.note.load(Ordering::Acquire),
        _ticket: attached,
    })
}

/// The two ends of the family's locker.
struct Locker {
    family: &'static Family,
    put: BorrowedFd<'static>,
    look: BorrowedFd<'static>,
}

impl Locker {
    fn of(family: &'static Family) -> Result<Locker> {
        let (put, look) = family.locker().ok_or(Error::Misuse {
            action: "use the family's locker",
            why: "this process is no member of the family",
        })?;
        Ok(Locker { family, put, look })
    }

    /// Runs `work` as the only one who reads. Inside, no object may be dropped.
    fn within<R>(&self, me: Me, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let latch = &self.family.header().locker;
        match latch.enter(self.family, me) {
            // Each packet is in its place or twice, and every reader says where it looks.
            Acquired::Clean | Acquired::OwnerDied => {}
        }
        let answer = work();
        latch.release(self.family, me);
        answer
    }

    /// The ticket of the `index`-th packet; `None` after the last.
    fn ticket_at(&self, index: u64) -> Result<Option<Handle>> {
        let mut packet = [0; PACKET];
        match socket::look(self.look, index * PACKET as u64, &mut packet)? {
            Received::Packet(PACKET) => Ok(Some(read_packet(packet))),
            Received::Packet(_) => Err(Error::Malformed {
                what: "packet in the locker",
                why: "it has another length",
            }),
            Received::End | Received::Nothing => Ok(None),
        }
    }

    fn find(&self, ticket: Handle) -> Result<Option<OwnedFd>> {
        let mut index = 0;
        while let Some(found) = self.ticket_at(index)? {
            if found == ticket {
                return self.copy_at(index);
            }
            index += 1;
        }
        Ok(None)
    }

    fn copy_at(&self, index: u64) -> Result<Option<OwnedFd>> {
        let mut fds = Vec::new();
        socket::look_with_fds(self.look, index * PACKET as u64, &mut [0; PACKET], &mut fds)?;
        fds.pop().map_or_else(
            || {
                Err(Error::Os {
                    action: "take a descriptor out of the locker",
                    // The packet has one; it was lost because this process has no number free for it.
                    source: rustix::io::Errno::MFILE.into(),
                })
            },
            |fd| crate::sys::process::above_stdio(fd).map(Some),
        )
    }

    fn count(&self) -> Result<u64> {
        Ok(socket::bytes_unread(self.look)? / PACKET as u64)
    }

    fn is_dead(&self, ticket: Handle) -> bool {
        object::kind_of(self.family, ticket).is_none()
    }

    /// Takes out what belongs to dead tickets, as far back as there are any.
    fn clean(&self) -> Result<()> {
        let mut dead = 0;
        let mut last_dead = 0;
        let mut index = 0;
        while let Some(ticket) = self.ticket_at(index)? {
            index += 1;
            if self.is_dead(ticket) {
                dead += 1;
                last_dead = index;
            }
        }
        for _ in 0..last_dead {
            let Some(front) = self.ticket_at(0)? else {
                return Ok(());
            };
            if self.is_dead(front) {
                dead -= 1;
            } else if dead > 0 && !self.put_to_the_back(front)? {
                // No room to turn it: the dead behind it wait until it goes.
                return Ok(());
            }
            // DEATH: the front is dead, or a second time at the back.
            fault::point("locker.turned");
            let mut fds = Vec::new();
            socket::recv(self.look, &mut [0; PACKET], &mut fds, false)?;
        }
        Ok(())
    }

    fn put_to_the_back(&self, front: Handle) -> Result<bool> {
        match self.copy_at(0)? {
            Some(fd) => socket::send(self.put, &[&write_packet(front)], &[fd.as_fd()]),
            None => Ok(false),
        }
    }
}

/// Takes a dead ticket's descriptor out, so that the other side of a pipe sees its end.
fn destroy(family: &'static Family, me: Me, body: u64) {
    if let Ok(locker) = Locker::of(family) {
        // What cannot be cleaned now is cleaned with the next ticket.
        let _ = locker.within(me, || locker.clean());
    }
    object::let_go(family, me, body);
}

fn check(family: &'static Family, body: u64, fsck: &mut Fsck) {
    if let Ok(body) = family.region().view::<Body>(body) {
        let kept = body.kept.load(Ordering::Acquire);
        if kept != 0 {
            fsck.refers(Handle::from_bits(kept));
        }
    }
}

const PACKET: usize = 16;
const MARK: [u8; 8] = *b"ticket\0\x01";

fn write_packet(ticket: Handle) -> [u8; PACKET] {
    let mut bytes = [0; PACKET];
    bytes[..8].copy_from_slice(&MARK);
    bytes[8..].copy_from_slice(&ticket.to_bits().to_ne_bytes());
    bytes
}

/// A packet without the mark names nothing, and so is as good as dead.
fn read_packet(bytes: [u8; PACKET]) -> Handle {
    let (mark, ticket) = bytes.split_at(8);
    let bits = u64::from_ne_bytes(ticket.try_into().expect("eight bytes"));
    Handle::from_bits(if mark == MARK { bits } else { 0 })
}
