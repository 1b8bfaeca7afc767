//! Waiting until another says that something changed.
//!
//! ```text
//! cell of one who waits:
//!  63          34  33 32   31                     0
//!  turn            state   the waiter's lock word
//!  \_ a futex __________/
//!
//!  0          free
//!  WAITING    registered; its waiter sleeps, or is about to
//!  NOTIFIED   told to go on; the cell is the waiter's until it has
//! ```
//!
//! Each step is one exchange of a cell: a waiter registers (free → WAITING) and leaves (→ free), a notifier picks the
//! oldest turns (WAITING → NOTIFIED). So nobody is ever inside: no death can stop a notifier. A cell names its waiter, as
//! a lock word does, so whoever meets one of a dead thread knows it. Was that one WAITING, it is skipped and freed; was it
//! NOTIFIED, another is notified in its place first. Waiters look for such cells too, each time the belt wakes them.

use super::{UPPER_HALF, awake, owing, sleep};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::latch::Holder;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::memory::park::Watch;
use crate::sys::futex;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// This kind's number.
pub(crate) const CONDITION: u32 = 4;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("condition");

shared! {
    /// Before a cell for each thread that the family can have.
    struct Body: 8 {
        /// The next waiter's turn, counted round.
        turn: AtomicU32,
        /// No cell from this one on was ever used. Raised before a cell is.
        used: AtomicU32,
    }
}

const WAITING: u32 = 1;
const NOTIFIED: u32 = 2;
/// How far a turn lies above the state.
const TURN_SHIFT: u32 = 2;

/// A cell, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CellState {
    Free,
    /// This waiter, in this turn.
    Waiting(u32, u32),
    /// This waiter was told to go on.
    Notified(u32),
}

impl CellState {
    fn unpack(cell: u64) -> CellState {
        let (waiter, bell) = (cell as u32, (cell >> 32) as u32);
        match bell & (WAITING | NOTIFIED) {
            WAITING => CellState::Waiting(waiter, bell >> TURN_SHIFT),
            NOTIFIED => CellState::Notified(waiter),
            _ => CellState::Free,
        }
    }
}

fn waiting_cell(waiter: u32, turn: u32) -> u64 {
    u64::from(turn << TURN_SHIFT | WAITING) << 32 | u64::from(waiter)
}

/// The cell of a waiter once it is told to go on.
fn notified(cell: u64) -> u64 {
    cell ^ u64::from(WAITING | NOTIFIED) << 32
}

/// Lets threads of the family wait until another notifies them.
///
/// It goes with a lock that guards what is waited for. The waiter registers while it holds the lock, so that no
/// notification falls between its release and its sleep; it takes the lock again itself, once it was notified.
///
/// ```
/// use procession_core::{Deadline, sync::{Condition, Mutex}};
/// use std::time::Duration;
///
/// let family = procession_core::family().create()?;
/// let (mutex, condition) = (Mutex::create(family)?, Condition::create(family)?);
/// let _ = mutex.acquire(Deadline::NEVER)?;
/// let soon = Deadline::after(Duration::from_millis(10));
/// let answer = condition.wait(|| mutex.release(), soon);
/// assert!(answer.unwrap_err().is_timeout());
/// assert_eq!(condition.notify(1)?, 0);
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Condition {
    hold: Attached,
    body: &'static Body,
    cells: &'static [AtomicU64],
}

impl Condition {
    /// Creates a condition that nobody waits for.
    ///
    /// It takes 8 bytes for each thread that the family can have. Fails with [`Error::Exhausted`] when the arena is full.
    pub fn create(family: &'static Family) -> Result<Condition> {
        let cells = family.threads().len() * size_of::<u64>();
        let length = (size_of::<Body>() + cells) as u64;
        Condition::over(object::create(family, CONDITION, length, |_, _| Ok(()))?)
    }

    /// Attaches to the condition of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living condition.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Condition> {
        Condition::over(object::attach(family, CONDITION, handle)?)
    }

    fn over(hold: Attached) -> Result<Condition> {
        let family = hold.family();
        let cells = hold.body() + size_of::<Body>() as u64;
        Ok(Condition {
            body: hold.view()?,
            cells: family
                .region()
                .views(cells, family.threads().len() as u64)?,
            hold,
        })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// Registers the calling thread, calls `unlock`, and waits until it is notified or `deadline` passes.
    ///
    /// A signal does not end the wait; who must answer signals uses [`Condition::register`]. Fails with
    /// [`Error::TimedOut`] if it was not notified, with the error of `unlock`, and with [`Error::Exhausted`] when more
    /// wait than the family can have threads. The lock is the caller's to take again, whatever the answer.
    pub fn wait(&self, unlock: impl FnOnce() -> Result<()>, deadline: Deadline) -> Result<()> {
        let mut waiter = self.register()?;
        unlock()?;
        loop {
            match waiter.wait(deadline) {
                Err(Error::Interrupted { .. }) => {}
                ended => return ended,
            }
        }
    }

    /// Registers the calling thread as one who waits: from now on a notification can reach it.
    ///
    /// Fails with [`Error::Exhausted`] when more wait than the family can have threads.
    pub fn register(&self) -> Result<Waiter<'_>> {
        let me = self.hold.family().me()?;
        let turn = self.body.turn.fetch_add(1, Ordering::AcqRel) << TURN_SHIFT >> TURN_SHIFT;
        let registered = waiting_cell(me.word, turn);
        let cell = match self.claim(registered) {
            Some(cell) => cell,
            None => {
                self.free_dead()?;
                self.claim(registered).ok_or(Error::Exhausted {
                    what: "waiters of a condition",
                    limit: self.cells.len() as u64,
                })?
            }
        };
        Ok(Waiter {
            condition: self,
            me,
            cell,
            registered,
            state: WaiterState::Registered,
            of_this_thread: PhantomData,
        })
    }

    fn claim(&self, registered: u64) -> Option<u32> {
        (0..self.cells.len()).find_map(|index| {
            let cell = &self.cells[index];
            if cell.load(Ordering::Relaxed) != 0 {
                return None;
            }
            self.body.used.fetch_max(index as u32 + 1, Ordering::AcqRel);
            // DEATH: registered and dead: who meets the cell finds that its waiter lives no more.
            cell.compare_exchange(0, registered, Ordering::AcqRel, Ordering::Relaxed)
                .ok()
                .map(|_| index as u32)
        })
    }

    /// Notifies up to `count` of those who wait now, the longest first, and tells how many that were.
    ///
    /// Who registers later is not reached. A notifier that dies may have notified fewer.
    pub fn notify(&self, count: u32) -> Result<u32> {
        if self.body.used.load(Ordering::Acquire) == 0 {
            return Ok(0);
        }
        let family = self.hold.family();
        self.notify_as(family, family.me()?, count)
    }

    /// Notifies all who wait now, and tells how many that were.
    pub fn notify_all(&self) -> Result<u32> {
        self.notify(u32::MAX)
    }

    /// How many wait and are not notified yet. One that died waiting may be among them.
    pub fn waiting(&self) -> u32 {
        let waits = |cell: &&AtomicU64| {
            let seen = CellState::unpack(cell.load(Ordering::Acquire));
            matches!(seen, CellState::Waiting(..))
        };
        self.used_cells().iter().filter(waits).count() as u32
    }

    fn used_cells(&self) -> &'static [AtomicU64] {
        let used = self.body.used.load(Ordering::Acquire) as usize;
        &self.cells[..used.min(self.cells.len())]
    }

    fn notify_as(&self, family: &'static Family, me: Me, count: u32) -> Result<u32> {
        let mut waiting = Vec::new();
        let mut inherited = Vec::new();
        // Turns are counted round: what counts is how long ago one was given.
        let now = self.body.turn.load(Ordering::Acquire);
        for (index, cell) in self.used_cells().iter().enumerate() {
            let seen = cell.load(Ordering::Acquire);
            match CellState::unpack(seen) {
                CellState::Free => {}
                CellState::Waiting(_, turn) => {
                    let age = now.wrapping_sub(turn) << TURN_SHIFT >> TURN_SHIFT;
                    waiting.push((age, index, seen));
                }
                CellState::Notified(waiter) if is_dead(family, waiter) => {
                    inherited.push((index, seen));
                }
                CellState::Notified(_) => {}
            }
        }
        waiting.sort_unstable_by_key(|(age, index, _)| (std::cmp::Reverse(*age), *index));
        let wanted = u64::from(count) + inherited.len() as u64;
        let mut told = 0;
        for (_, index, seen) in waiting {
            if told == wanted {
                break;
            }
            if is_dead(family, seen as u32) {
                self.free(index, seen);
            } else if self.tell(family, me, index, seen)? {
                told += 1;
            }
        }
        // DEATH: others were notified in the place of the dead, whose cells still say so: they would be once more, which
        // is a wake-up too many. The other order could lose one.
        fault::point("condition.inherited");
        for (index, seen) in inherited {
            self.free(index, seen);
        }
        Ok(told.min(count.into()) as u32)
    }

    /// Notifies the waiter of one cell; false if it left meanwhile.
    fn tell(&self, family: &Family, me: Me, index: usize, seen: u64) -> Result<bool> {
        let bell = self.bell(index)?;
        Ok(owing(family, me, bell, || {
            // ORDERING: Release pairs with the Acquire of `Waiter::wait`: what was done before the notification is seen.
            let told = self.cells[index]
                .compare_exchange(seen, notified(seen), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
            if told {
                // DEATH: told and not woken: `wake_owed` names the bell.
                fault::point("condition.told");
                futex::wake(bell, 1);
            }
            told
        }))
    }

    /// The half of a cell on which its waiter sleeps.
    fn bell(&self, index: usize) -> Result<&'static AtomicU32> {
        let cells = self.hold.body() + size_of::<Body>() as u64;
        let place = cells + (index * size_of::<u64>()) as u64 + UPPER_HALF;
        self.hold.family().region().view(place)
    }

    /// Frees a cell if it still is what it was.
    fn free(&self, index: usize, seen: u64) -> bool {
        self.cells[index]
            .compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Frees the cells of the dead, and passes on what those were notified of.
    fn free_dead(&self) -> Result<()> {
        let family = self.hold.family();
        self.notify_as(family, family.me()?, 0)?;
        for (index, cell) in self.used_cells().iter().enumerate() {
            let seen = cell.load(Ordering::Acquire);
            if let CellState::Waiting(waiter, _) = CellState::unpack(seen)
                && is_dead(family, waiter)
            {
                self.free(index, seen);
            }
        }
        Ok(())
    }
}

fn is_dead(family: &Family, waiter: u32) -> bool {
    match family.holder_state(waiter) {
        Holder::Nobody | Holder::Dead => true,
        Holder::Alive(_) => false,
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condition")
            .field("waiting", &self.waiting())
            .finish()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterState {
    /// It has a cell.
    Registered,
    /// It has a cell, and has been told to go on.
    Notified,
    /// It has no cell any more.
    Gone,
}

/// A registered waiter of a [`Condition`]: the calling thread's.
///
/// Let it go once the lock is held again: until then the notification is in its hands, and goes to another should it die.
/// One that is let go without having waited to the end passes on what it may have been notified of.
#[derive(Debug)]
#[must_use = "letting go of a waiter ends its wait"]
pub struct Waiter<'a> {
    condition: &'a Condition,
    me: Me,
    cell: u32,
    registered: u64,
    state: WaiterState,
    /// What it registered is the thread that made it.
    of_this_thread: PhantomData<*const ()>,
}

impl Waiter<'_> {
    /// Waits until it is notified or `deadline` passes.
    ///
    /// Fails with [`Error::TimedOut`], after which it is registered no more, and with [`Error::Interrupted`] after a
    /// signal: it stays registered, and calling again continues.
    pub fn wait(&mut self, deadline: Deadline) -> Result<()> {
        let what = "a notification";
        let family = self.condition.hold.family();
        let bell = self.condition.bell(self.cell as usize)?;
        let expected = (self.registered >> 32) as u32;
        while !self.is_notified() {
            if self.state == WaiterState::Gone || deadline.has_passed() {
                return self.leave(Error::TimedOut { what });
            }
            let wake = sleep(family, self.me, bell, expected, Watch::Nobody, deadline);
            awake(family, self.me);
            match wake {
                _ if self.is_notified() => {}
                // The belt, most likely: somebody may have died with a notification in hand.
                futex::Wake::Look => {
                    self.condition.notify_as(family, self.me, 0)?;
                }
                futex::Wake::TimedOut => return self.leave(Error::TimedOut { what }),
                futex::Wake::Interrupted => return Err(Error::Interrupted { what }),
            }
        }
        Ok(())
    }

    fn is_notified(&mut self) -> bool {
        if self.state == WaiterState::Registered {
            let seen = self.condition.cells[self.cell as usize].load(Ordering::Acquire);
            if seen != self.registered {
                self.state = WaiterState::Notified;
            }
        }
        self.state == WaiterState::Notified
    }

    /// Leaves unless it was notified at the last moment.
    fn leave(&mut self, error: Error) -> Result<()> {
        if self.state == WaiterState::Registered
            && !self.condition.free(self.cell as usize, self.registered)
        {
            self.state = WaiterState::Notified;
            return Ok(());
        }
        self.state = WaiterState::Gone;
        Err(error)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let family = self.condition.hold.family();
        // In a forked child it is a copy of another thread's.
        if family.me().ok() != Some(self.me) {
            return;
        }
        let index = self.cell as usize;
        match self.state {
            WaiterState::Gone => {}
            WaiterState::Notified => {
                self.condition.free(index, notified(self.registered));
            }
            WaiterState::Registered => {
                if !self.condition.free(index, self.registered) {
                    let _ = self.condition.notify_as(family, self.me, 1);
                    self.condition.free(index, notified(self.registered));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_says_who_waits_in_which_turn() {
        let cell = waiting_cell(0x7fff_3fff, 12345);
        assert_eq!(
            CellState::unpack(cell),
            CellState::Waiting(0x7fff_3fff, 12345)
        );
        assert_eq!(
            CellState::unpack(notified(cell)),
            CellState::Notified(0x7fff_3fff)
        );
        assert_eq!(CellState::unpack(0), CellState::Free);
    }

    #[test]
    fn the_longest_waiting_is_notified_first_even_when_turns_have_gone_round() {
        let family = crate::family().threads_max(8).create().unwrap();
        let condition = Condition::create(family).unwrap();
        condition
            .body
            .turn
            .store(u32::MAX >> TURN_SHIFT, Ordering::Release);
        let mut first = condition.register().unwrap();
        let mut second = condition.register().unwrap();
        assert_eq!(condition.notify(1).unwrap(), 1);
        first.wait(Deadline::PASSED).unwrap();
        assert!(second.wait(Deadline::PASSED).unwrap_err().is_timeout());
    }

    #[test]
    fn a_waiter_that_gives_up_passes_its_notification_on() {
        let family = crate::family().threads_max(8).create().unwrap();
        let condition = Condition::create(family).unwrap();
        let first = condition.register().unwrap();
        let mut second = condition.register().unwrap();
        assert_eq!(condition.notify(1).unwrap(), 1);
        drop(first);
        second.wait(Deadline::PASSED).unwrap();
    }

    #[test]
    fn a_notification_is_not_kept_for_who_comes_later() {
        let family = crate::family().threads_max(8).create().unwrap();
        let condition = Condition::create(family).unwrap();
        assert_eq!(condition.notify_all().unwrap(), 0);
        let mut late = condition.register().unwrap();
        assert!(late.wait(Deadline::PASSED).unwrap_err().is_timeout());
    }
}
