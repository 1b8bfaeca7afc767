//! A flag that many wait for.
//!
//! ```text
//!  31                      2      1       0
//!  epoch: how often it was set  WAITERS  SET
//! ```
//!
//! Who waits remembers the epoch it found. A later epoch says that the flag was set meanwhile, even if it is clear again:
//! a pulse reaches everyone who was waiting for it.

use super::{awake, owing, sleep};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::memory::park::{Spin, Watch};
use crate::sys::futex;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// This kind's number.
pub(crate) const EVENT: u32 = 5;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("event");

/// The flag.
const SET: u32 = 1;
/// Somebody may sleep on the word. Who sets the flag clears this, and wakes them all.
const WAITERS: u32 = 2;
const EPOCH: u32 = 4;

/// A flag that many processes wait for; it stays set until somebody clears it.
///
/// ```
/// use procession_core::{Deadline, sync::Event};
///
/// let family = procession_core::family().create()?;
/// let event = Event::create(family)?;
/// assert!(event.wait(Deadline::PASSED).unwrap_err().is_timeout());
/// event.set()?;
/// event.wait(Deadline::NEVER)?;
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Event {
    hold: Attached,
    word: &'static AtomicU32,
}

/// A moment in the life of an [`Event`], from [`Event::moment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u32);

impl Event {
    /// Creates an event that is not set.
    ///
    /// Fails with [`Error::Exhausted`] when the arena is full.
    pub fn create(family: &'static Family) -> Result<Event> {
        Event::over(object::create(family, EVENT, 8, |_, _| Ok(()))?)
    }

    /// Attaches to the event of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living event.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Event> {
        Event::over(object::attach(family, EVENT, handle)?)
    }

    fn over(hold: Attached) -> Result<Event> {
        let word = hold.view()?;
        Ok(Event { hold, word })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// Sets the flag and wakes all who wait for it. Setting a flag that is set is nothing.
    pub fn set(&self) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        owing(family, me, self.word, || {
            if let Some(before) = self.raise()
                && before & WAITERS != 0
            {
                fault::point("event.set");
                futex::wake_all(self.word);
            }
        });
        Ok(())
    }

    /// Sets the flag in a new epoch; the word as it was before, or `None` if it was set.
    fn raise(&self) -> Option<u32> {
        let raised = |seen: u32| {
            let after = (seen & !WAITERS).wrapping_add(EPOCH) | SET;
            (seen & SET == 0).then_some(after)
        };
        // ORDERING: Release pairs with the Acquire of `has_come`: who finds the flag set finds what was done before it.
        self.word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, raised)
            .ok()
    }

    /// Clears the flag. Who waited while it was set is not held back by it.
    pub fn clear(&self) -> Result<()> {
        self.word.fetch_and(!SET, Ordering::AcqRel);
        Ok(())
    }

    /// Whether the flag is set.
    pub fn is_set(&self) -> bool {
        self.word.load(Ordering::Acquire) & SET != 0
    }

    /// Waits until the flag is set, or was since the call began.
    ///
    /// Fails with [`Error::TimedOut`], and with [`Error::Interrupted`] after a signal. To miss no pulse between two
    /// calls, take the [`moment`](Event::moment) before the first and [`wait_since`](Event::wait_since) it.
    pub fn wait(&self, deadline: Deadline) -> Result<()> {
        self.wait_since(self.moment(), deadline)
    }

    /// The present moment, to wait from.
    pub fn moment(&self) -> Moment {
        Moment(self.word.load(Ordering::Acquire) / EPOCH)
    }

    /// Waits until the flag is set, or was since `moment`. Errors as [`Event::wait`].
    pub fn wait_since(&self, moment: Moment, deadline: Deadline) -> Result<()> {
        let what = "the event";
        let mut spin = Spin::before(deadline);
        while !self.has_come(moment) {
            if spin.again() {
                continue;
            }
            if deadline.has_passed() {
                return Err(Error::TimedOut { what });
            }
            let family = self.hold.family();
            let me = family.me()?;
            let wake = self.sleep_since(moment, me, deadline);
            // Nobody else can need the wake that we got: all are woken together.
            awake(family, me);
            match wake {
                futex::Wake::Look => {}
                _ if self.has_come(moment) => {}
                futex::Wake::TimedOut => return Err(Error::TimedOut { what }),
                futex::Wake::Interrupted => return Err(Error::Interrupted { what }),
            }
        }
        Ok(())
    }

    /// Sleeps while the word stays as it is, if the wait is not over with what it is.
    fn sleep_since(&self, moment: Moment, me: Me, deadline: Deadline) -> futex::Wake {
        let seen = self.word.load(Ordering::Acquire);
        if is_over(seen, moment) {
            return futex::Wake::Look;
        }
        let flagged = seen | WAITERS;
        if seen != flagged
            && self
                .word
                .compare_exchange(seen, flagged, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return futex::Wake::Look;
        }
        let family = self.hold.family();
        sleep(family, me, self.word, flagged, Watch::Nobody, deadline)
    }

    fn has_come(&self, moment: Moment) -> bool {
        is_over(self.word.load(Ordering::Acquire), moment)
    }
}

/// Whether the flag is set in this word, or was since `moment`.
fn is_over(word: u32, moment: Moment) -> bool {
    word & SET != 0 || word / EPOCH != moment.0
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word.load(Ordering::Acquire);
        f.debug_struct("Event")
            .field("set", &(word & SET != 0))
            .field("waiters", &(word & WAITERS != 0))
            .finish()
    }
}
