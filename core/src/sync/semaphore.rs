//! A number of permits.
//!
//! ```text
//!  63                32   31       30                0
//!  releases, counted   WAITERS   permits to be had
//!                    \_______ a futex ______________/
//! ```
//!
//! WAITERS is set by who is about to sleep, at zero permits, and cleared by who released and woke nobody, if the word is
//! still as that release left it: then no release came after it, and without one the permits only go down. So they were
//! never zero since, and nobody went to sleep.
//!
//! A robust semaphore keeps books besides: how many permits each process holds. Word and book change together, under a
//! latch and with an intent.

use super::{LOWER_HALF, awake, owing, sleep};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::fsck::Fsck;
use crate::memory::intent::{Intent, Op};
use crate::memory::latch::{self, Acquired, Holder, Latch};
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::memory::park::{RECHECK, Spin, Watch};
use crate::memory::slots::{ProcState, ProcWord, ThreadState, ThreadWord};
use crate::sys::futex;
use std::fmt;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// This kind's number.
pub(crate) const SEMAPHORE: u32 = 3;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind {
    resume,
    check,
    forget: Some(forget),
    ..Kind::plain("semaphore")
};

shared! {
    /// A robust one has its book behind this: a `u32` for each process slot.
    struct Body: 24 {
        state: AtomicU64,
        /// Guards the book, and every change of a robust one's permits.
        latch: Latch,
        /// The most permits there may be; `PERMITS` when there is no such limit.
        max: AtomicU32,
        /// Whether it is robust: 0 or 1.
        robust: AtomicU32,
    }
}

/// Somebody may sleep, waiting for a permit.
const WAITERS: u64 = 1 << 31;
/// The bits that count permits, and the most there can be.
const PERMITS: u64 = WAITERS - 1;
/// One release.
const RELEASE: u64 = 1 << 32;

/// `[body, process, permits it holds after, state after]`: permits go to a process or come from it.
const TRANSFER: Op = Op {
    kind: SEMAPHORE,
    code: 1,
};

/// The most lives that a sleeper watches; those beyond are looked at by the belt.
const WATCHED_MAX: usize = 127;

/// A number of permits that processes take and give.
///
/// ```
/// use procession_core::{Deadline, sync::Semaphore};
///
/// let family = procession_core::family().create()?;
/// let seats = Semaphore::create(family, 2, Some(2), true)?;
/// seats.acquire(Deadline::NEVER)?;
/// assert_eq!(seats.value(), 1);
/// seats.release(1)?;
/// assert!(seats.release(1).is_err());
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Semaphore {
    hold: Attached,
    body: &'static Body,
    /// The half of the state on which one sleeps.
    word: &'static AtomicU32,
    /// Permits held by each process slot; empty when the semaphore is not robust.
    book: &'static [AtomicU32],
}

impl Semaphore {
    /// Creates a semaphore of `initial` permits, and never more than `max`.
    ///
    /// A `robust` one gives back what a process held when it died, or ended without releasing; each operation then costs
    /// a lock. Fails with [`Error::TooLarge`] beyond 2³¹ − 1 permits or with more than `max`, and with
    /// [`Error::Exhausted`] when the arena is full.
    pub fn create(
        family: &'static Family,
        initial: u32,
        max: Option<u32>,
        robust: bool,
    ) -> Result<Semaphore> {
        let limit = max.map_or(PERMITS, |max| PERMITS.min(max.into()));
        if u64::from(initial) > limit {
            return Err(Error::TooLarge {
                what: "the number of permits",
                length: initial.into(),
                limit,
            });
        }
        let book = if robust { family.processes().len() } else { 0 };
        let length = (size_of::<Body>() + book * size_of::<u32>()) as u64;
        let hold = object::create(family, SEMAPHORE, length, |_, body| {
            let body = family.region().view::<Body>(body)?;
            body.state.store(initial.into(), Ordering::Release);
            body.max.store(limit as u32, Ordering::Release);
            body.robust.store(robust.into(), Ordering::Release);
            Ok(())
        })?;
        Semaphore::over(hold)
    }

    /// Attaches to the semaphore of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living semaphore.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Semaphore> {
        Semaphore::over(object::attach(family, SEMAPHORE, handle)?)
    }

    fn over(hold: Attached) -> Result<Semaphore> {
        let family = hold.family();
        Ok(Semaphore {
            body: hold.view()?,
            word: family.region().view(hold.body() + LOWER_HALF)?,
            book: book_of(family, hold.body())?,
            hold,
        })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// The number of permits to be had.
    pub fn value(&self) -> u32 {
        (self.body.state.load(Ordering::Acquire) & PERMITS) as u32
    }

    /// Whether it gives back the permits of the dead.
    pub fn is_robust(&self) -> bool {
        !self.book.is_empty()
    }

    /// Takes a permit, waiting for one until `deadline`.
    ///
    /// Fails with [`Error::TimedOut`], and with [`Error::Interrupted`] after a signal; then calling again continues.
    pub fn acquire(&self, deadline: Deadline) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        if self.take(me) {
            return Ok(());
        }
        let answer = self.wait_for_permit(family, me, deadline);
        if answer.is_err() && self.value() > 0 {
            // The wake for it may have come to us together with the signal or the timeout: pass it on.
            futex::wake(self.word, 1);
        }
        awake(family, me);
        answer
    }

    /// Takes a permit if there is one.
    pub fn try_acquire(&self) -> Result<bool> {
        Ok(self.take(self.hold.family().me()?))
    }

    fn wait_for_permit(&self, family: &'static Family, me: Me, deadline: Deadline) -> Result<()> {
        let what = "a permit of the semaphore";
        let mut spin = Spin::before(deadline);
        loop {
            if self.take(me) {
                return Ok(());
            }
            if spin.again() {
                continue;
            }
            if deadline.has_passed() {
                return Err(Error::TimedOut { what });
            }
            let seen = self.body.state.load(Ordering::Acquire);
            let flagged = seen | WAITERS;
            if seen & PERMITS != 0
                || (seen != flagged
                    && self
                        .body
                        .state
                        .compare_exchange(seen, flagged, Ordering::AcqRel, Ordering::Relaxed)
                        .is_err())
            {
                continue;
            }
            // Of a plain one nothing is known of who has the permits.
            let wake = if self.is_robust() {
                self.sleep_watching(family, me, deadline)
            } else {
                sleep(
                    family,
                    me,
                    self.word,
                    WAITERS as u32,
                    Watch::Nobody,
                    deadline,
                )
            };
            match wake {
                futex::Wake::Look => {}
                futex::Wake::TimedOut => return Err(Error::TimedOut { what }),
                futex::Wake::Interrupted => return Err(Error::Interrupted { what }),
            }
        }
    }

    /// Sleeps until a permit is released, or one of those that hold some dies.
    fn sleep_watching(&self, family: &'static Family, me: Me, deadline: Deadline) -> futex::Wake {
        let holds = |process: u32| {
            let held = self.book.get(process as usize);
            process != me.process && held.is_some_and(|held| held.load(Ordering::Acquire) > 0)
        };
        let mut watched = Vec::new();
        let mut seated = vec![false; self.book.len()];
        for (index, slot) in (0..).zip(family.threads()) {
            let found = ThreadWord::unpack(slot.state.load(Ordering::Acquire));
            if found.state != ThreadState::Seated || !holds(found.process) {
                continue;
            }
            let word = latch::holder_word(index, found.generation);
            if let Holder::Alive(_) = family.holder_state(word) {
                seated[found.process as usize] = true;
                watched.push(index);
            }
        }
        watched.truncate(WATCHED_MAX);
        let mut until = deadline;
        for process in (0..self.book.len() as u32).filter(|process| holds(*process)) {
            if seated[process as usize] {
                continue;
            }
            if family.is_process_dead(process) {
                family.reclaim(me, process);
                return futex::Wake::Look;
            }
            // Its threads are gone and it is not, or not yet: nothing there to watch.
            until = until.min(Deadline::after(RECHECK));
        }
        let watch = Watch::Threads(&watched);
        match sleep(family, me, self.word, WAITERS as u32, watch, until) {
            futex::Wake::TimedOut if !deadline.has_passed() => futex::Wake::Look,
            ended => ended,
        }
    }

    #[inline]
    fn take(&self, me: Me) -> bool {
        if self.is_robust() {
            return self.take_booked(me);
        }
        let less = |seen: u64| (seen & PERMITS != 0).then(|| seen - 1);
        // ORDERING: Acquire pairs with the Release of `give`: what was done before a release is seen after it.
        self.body
            .state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, less)
            .is_ok()
    }

    fn take_booked(&self, me: Me) -> bool {
        if self.value() == 0 {
            return false;
        }
        let family = self.hold.family();
        enter(family, me, &self.body.latch);
        let seen = self.body.state.load(Ordering::Acquire);
        let there = seen & PERMITS != 0;
        if there {
            let held = self.book[me.process as usize].load(Ordering::Relaxed) + 1;
            transfer(family, me, self.hold.body(), me.process, held, seen - 1);
        }
        self.body.latch.release(family, me);
        there
    }

    /// Gives `count` permits and wakes as many waiters.
    ///
    /// Anyone may. Of a robust semaphore's, those that the calling process holds are given first. Fails with
    /// [`Error::NotHeld`] when there would be more than there may be; then none is given.
    pub fn release(&self, count: u32) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        owing(family, me, self.word, || {
            let after = if self.is_robust() {
                self.give_booked(family, me, count)
            } else {
                self.give(count)
            };
            // DEATH: given, and nobody woken: `wake_owed` names the word.
            fault::point("semaphore.given");
            wake(self.body, self.word, after?, count);
            Ok(())
        })
    }

    fn give(&self, count: u32) -> Result<u64> {
        let mut seen = self.body.state.load(Ordering::Relaxed);
        loop {
            let after = self.add(seen, count)?;
            // ORDERING: Release pairs with the Acquire of `take`.
            match self.body.state.compare_exchange_weak(
                seen,
                after,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(after),
                Err(now) => seen = now,
            }
        }
    }

    fn give_booked(&self, family: &Family, me: Me, count: u32) -> Result<u64> {
        enter(family, me, &self.body.latch);
        let seen = self.body.state.load(Ordering::Acquire);
        let after = self.add(seen, count).map(|after| {
            let held = self.book[me.process as usize].load(Ordering::Relaxed);
            let held = held.saturating_sub(count);
            transfer(family, me, self.hold.body(), me.process, held, after)
        });
        self.body.latch.release(family, me);
        after
    }

    /// The state after a release of `count` permits.
    fn add(&self, seen: u64, count: u32) -> Result<u64> {
        let permits = (seen & PERMITS) + u64::from(count);
        if permits > u64::from(self.body.max.load(Ordering::Relaxed)) {
            return Err(Error::NotHeld {
                what: "the semaphore",
                why: "it was released more often than acquired",
            });
        }
        Ok(seen.wrapping_add(RELEASE) & !PERMITS | permits)
    }
}

/// Wakes up to `count` of those who wait for the permits of a release that left the state `after`.
fn wake(body: &Body, word: &AtomicU32, after: u64, count: u32) {
    if after & WAITERS != 0 && count > 0 && futex::wake(word, count) == 0 {
        // Nobody slept; see the door of this file for why nobody can sleep now either if this succeeds.
        let quiet = after & !WAITERS;
        let _ = body
            .state
            .compare_exchange(after, quiet, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// Enters the latch of a book. What its holder left half done is done: its intent was resumed.
fn enter(family: &Family, me: Me, latch: &Latch) {
    match latch.enter(family, me) {
        Acquired::Clean | Acquired::OwnerDied => {}
    }
}

/// Stores what a process holds and what is left, both or neither, and tells what the state became.
fn transfer(family: &Family, me: Me, body: u64, process: u32, held: u32, state: u64) -> u64 {
    let args = [body, process.into(), held.into(), state];
    family.intend(me, TRANSFER, &args);
    let after = apply(family, &args);
    family.fulfil(me);
    after
}

fn apply(family: &Family, args: &[u64]) -> u64 {
    let &[place, process, held, state, ..] = args else {
        return 0;
    };
    let (Ok(body), Ok(book)) = (family.region().view::<Body>(place), book_of(family, place)) else {
        return 0;
    };
    if let Some(entry) = book.get(process as usize) {
        entry.store(held as u32, Ordering::Release);
    }
    // DEATH: between these two stores the intent says both values; recovery stores them again.
    fault::point("semaphore.booked");
    // Those who go to sleep set WAITERS without the latch.
    let put = |seen: u64| Some(state & !WAITERS | seen & WAITERS);
    let (Ok(before) | Err(before)) =
        body.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, put);
    state & !WAITERS | before & WAITERS
}

fn resume(family: &Family, intent: &Intent) {
    if intent.op == TRANSFER {
        apply(family, &intent.args);
    }
}

fn book_of(family: &Family, place: u64) -> Result<&'static [AtomicU32]> {
    let region = family.region();
    let count = match region.view::<Body>(place)?.robust.load(Ordering::Relaxed) {
        0 => 0,
        _ => family.processes().len() as u64,
    };
    region.views(place + size_of::<Body>() as u64, count)
}

/// Gives back what a dead process held.
fn forget(family: &'static Family, me: Me, place: u64, process: u32) {
    let (Ok(body), Ok(book), Ok(word)) = (
        family.region().view::<Body>(place),
        book_of(family, place),
        family.region().view::<AtomicU32>(place + LOWER_HALF),
    ) else {
        return;
    };
    let Some(entry) = book.get(process as usize) else {
        return;
    };
    if entry.load(Ordering::Acquire) == 0 {
        return;
    }
    owing(family, me, word, || {
        enter(family, me, &body.latch);
        let held = entry.load(Ordering::Acquire);
        let seen = body.state.load(Ordering::Acquire);
        // Where others released for it, there are no more permits than there may be.
        let most = u64::from(body.max.load(Ordering::Relaxed));
        let permits = most.min((seen & PERMITS) + u64::from(held));
        let after = seen.wrapping_add(RELEASE) & !PERMITS | permits;
        let after = transfer(family, me, place, process, 0, after);
        body.latch.release(family, me);
        // DEATH: given back, and nobody woken: `wake_owed` names the word.
        fault::point("semaphore.forgotten");
        wake(body, word, after, held);
    });
}

fn check(family: &'static Family, place: u64, fsck: &mut Fsck) {
    let (Ok(body), Ok(book)) = (family.region().view::<Body>(place), book_of(family, place)) else {
        return fsck.fault(format!("the semaphore at {place:#x} is cut short"));
    };
    let permits = body.state.load(Ordering::Acquire) & PERMITS;
    let max = body.max.load(Ordering::Relaxed);
    if permits > max.into() {
        fsck.fault(format!(
            "the semaphore at {place:#x} has {permits} permits of {max}"
        ));
    }
    for (process, held) in book.iter().enumerate() {
        let slot = family.process(process as u32);
        let state = ProcWord::unpack(slot.state.load(Ordering::Acquire)).state;
        let held = held.load(Ordering::Acquire);
        if held > 0 && state == ProcState::Free {
            fsck.fault(format!(
                "{held} permits of the semaphore at {place:#x} are held by the free process slot {process}"
            ));
        }
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.body.state.load(Ordering::Acquire);
        f.debug_struct("Semaphore")
            .field("value", &(state & PERMITS))
            .field("waiters", &(state & WAITERS != 0))
            .field("robust", &self.is_robust())
            .finish()
    }
}
