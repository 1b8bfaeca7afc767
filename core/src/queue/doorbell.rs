//! A descriptor that is readable while a queue has messages, for those who poll.
//!
//! It is made when somebody first asks for it, an eventfd that waits in the family's locker; only from then on do puts
//! cost a system call. Each process takes its own copy out of the locker when it first needs it.
//!
//! It may be readable with nothing inside, never the other way round for long: whoever finds the queue empty makes it
//! unreadable and looks once more. Should a process die between a message and its ring, its reclaim rings again.

use super::ring::Body;
use crate::connection::locker;
use crate::deadline::Deadline;
use crate::error::Result;
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::latch::Latch;
use crate::memory::object::{self, Handle};
use crate::sys::poll::Alarm;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// This process's copy of a queue's doorbell.
#[derive(Debug, Default)]
pub(crate) struct Doorbell {
    alarm: OnceLock<Alarm>,
}

impl Doorbell {
    /// The descriptor, made for the whole family if nobody has asked before.
    pub(crate) fn fd(
        &self,
        family: &'static Family,
        me: Me,
        body: &Body,
        offset: u64,
    ) -> Result<BorrowedFd<'_>> {
        if body.doorbell.load(Ordering::Acquire) == 0 {
            install(family, me, &body.head_latch, &body.doorbell, offset)?;
        }
        let alarm = self.copy(family, body)?;
        if body.length() > 0 {
            alarm.ring();
        }
        Ok(alarm.as_fd())
    }

    /// A message was put, or the queue was closed.
    #[inline]
    pub(crate) fn ring(&self, family: &'static Family, body: &Body) {
        if body.doorbell.load(Ordering::Acquire) != 0 {
            self.ring_loud(family, body);
        }
    }

    #[cold]
    fn ring_loud(&self, family: &'static Family, body: &Body) {
        // Without a free descriptor for the copy, those who poll learn of the message with the next one.
        if let Ok(alarm) = self.copy(family, body) {
            alarm.ring();
        }
    }

    /// The queue was found empty, or emptied.
    #[inline]
    pub(crate) fn hush(&self, family: &'static Family, body: &Body) {
        if body.doorbell.load(Ordering::Acquire) != 0 && body.length() == 0 {
            self.hush_empty(family, body);
        }
    }

    #[cold]
    fn hush_empty(&self, family: &'static Family, body: &Body) {
        let Ok(alarm) = self.copy(family, body) else {
            return;
        };
        alarm.clear();
        // DEATH: unreadable with a message that came just now; reclaim rings again.
        fault::point("doorbell.hushed");
        if body.length() > 0 || body.is_closed() {
            alarm.ring();
        }
    }

    fn copy(&self, family: &'static Family, body: &Body) -> Result<&Alarm> {
        if let Some(alarm) = self.alarm.get() {
            return Ok(alarm);
        }
        let ticket = Handle::from_bits(body.doorbell.load(Ordering::Acquire));
        let alarm = Alarm::adopt(locker::withdraw(family, ticket)?);
        Ok(self.alarm.get_or_init(|| alarm))
    }
}

/// Makes the queue's doorbell, once: under its head latch.
fn install(
    family: &'static Family,
    me: Me,
    latch: &Latch,
    place: &AtomicU64,
    offset: u64,
) -> Result<()> {
    let alarm = Alarm::new()?;
    let ticket = locker::deposit(family, alarm.as_fd())?;
    // What a dead holder had begun was finished by its recovery.
    let _ = latch.acquire(family, me, "a queue", Deadline::NEVER)?;
    let answer = if place.load(Ordering::Acquire) == 0 {
        let word = offset + std::mem::offset_of!(Body, doorbell) as u64;
        // DEATH: one intent stores the reference and the count; without it the ticket goes with its process.
        object::keep(family, me, word, ticket.handle())
    } else {
        Ok(())
    };
    latch.release(family, me);
    answer
}

/// After a death: rings for a message whose ring may have died with its writer.
pub(crate) fn ring_again(family: &'static Family, body: &Body) {
    if body.doorbell.load(Ordering::Acquire) != 0 && body.length() > 0 {
        Doorbell::default().ring_loud(family, body);
    }
}
