//! A meeting point: all go on once all are there.
//!
//! ```text
//! state:
//!  63                              32  31 …      1   0
//!  how the last 32 generations ended   generation    BROKEN
//!                                      \_ a futex ________/
//! place of one party:
//!  generation in which it was taken  |  the lock word of the thread that took it
//! ```
//!
//! A place is taken by one exchange, the first that nobody took in this generation; so the taken ones are the first, and
//! how many wait is not stored but counted. Whoever takes the last place ends the generation by one exchange of the state.
//! Until that exchange the death of anyone there breaks the barrier; after it, it concerns nobody.
//!
//! Who watches whom? The first to arrive watches all, and is woken by each arrival to watch that one too; the others watch
//! the first.

use super::{LOWER_HALF, awake, owing, sleep};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::family::{Family, Me};
use crate::memory::latch::Holder;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::memory::park::{Spin, Watch};
use crate::sys::futex;
use std::fmt;
use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// This kind's number.
pub(crate) const BARRIER: u32 = 6;

/// This kind's line in the table.
pub(crate) const KIND: Kind = Kind::plain("barrier");

shared! {
    /// Before a place, a `u64`, for each party.
    struct Body: 16 {
        state: AtomicU64,
        /// Changes with each arrival and each end: the first to arrive sleeps on it.
        arrivals: AtomicU32,
        parties: AtomicU32,
    }
}

/// The generation will not end; only a reset begins the next.
const BROKEN: u32 = 1;

/// The most lives that a sleeper watches; those beyond are looked at by the belt.
const WATCHED_MAX: usize = 127;

/// The state, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    /// Counted round in 31 bits, from 1: a place that nobody ever took is of generation 0.
    generation: u32,
    broken: bool,
    /// Bit 0 is set if the generation before this one was complete, bit 1 for that before, and so on.
    ends: u32,
}

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    Complete,
    Broken,
}

impl State {
    const FIRST: State = State {
        generation: 1,
        broken: false,
        ends: 0,
    };

    fn unpack(word: u64) -> State {
        State {
            generation: word as u32 >> 1,
            broken: word as u32 & BROKEN != 0,
            ends: (word >> 32) as u32,
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.ends) << 32 | u64::from(self.generation << 1 | u32::from(self.broken))
    }

    fn next(self, complete: bool) -> State {
        State {
            generation: self.generation.wrapping_add(1) << 1 >> 1,
            broken: false,
            ends: self.ends << 1 | u32::from(complete),
        }
    }

    fn outcome_of(self, generation: u32) -> Outcome {
        match age(generation, self.generation) {
            0 if self.broken => Outcome::Broken,
            0 => Outcome::Open,
            // Who slept through more than is remembered has missed nothing if none of those was broken.
            age if age > 32 && self.ends == u32::MAX => Outcome::Complete,
            age if age <= 32 && self.ends >> (age - 1) & 1 == 1 => Outcome::Complete,
            _ => Outcome::Broken,
        }
    }
}

/// How many generations `then` lies before `now`; huge if it lies after.
fn age(then: u32, now: u32) -> u32 {
    now.wrapping_sub(then) << 1 >> 1
}

fn place_of(generation: u32, thread: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(thread)
}

/// Lets a fixed number of threads of the family wait for each other, again and again.
///
/// One that dies while it waits, or gives up, breaks the barrier for all until it is reset.
///
/// ```
/// use procession_core::{Deadline, sync::Barrier};
///
/// let family = procession_core::family().create()?;
/// let barrier = Barrier::create(family, 2)?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| barrier.wait(Deadline::NEVER).unwrap());
///     barrier.wait(Deadline::NEVER).unwrap();
/// });
/// assert!(!barrier.is_broken());
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Barrier {
    hold: Attached,
    body: &'static Body,
    /// The half of the state on which one sleeps.
    word: &'static AtomicU32,
    places: &'static [AtomicU64],
}

impl Barrier {
    /// Creates a barrier for `parties` threads.
    ///
    /// Fails with [`Error::Misuse`] for none, with [`Error::TooLarge`] for more than the family can have threads, and with
    /// [`Error::Exhausted`] when the arena is full.
    pub fn create(family: &'static Family, parties: u32) -> Result<Barrier> {
        let limit = family.threads().len() as u64;
        if parties == 0 {
            return Err(Error::Misuse {
                action: "create a barrier",
                why: "it is for nobody",
            });
        }
        if u64::from(parties) > limit {
            return Err(Error::TooLarge {
                what: "the number of parties",
                length: parties.into(),
                limit,
            });
        }
        let length = size_of::<Body>() + parties as usize * size_of::<u64>();
        let hold = object::create(family, BARRIER, length as u64, |_, body| {
            let body = family.region().view::<Body>(body)?;
            body.parties.store(parties, Ordering::Release);
            body.state.store(State::FIRST.pack(), Ordering::Release);
            Ok(())
        })?;
        Barrier::over(hold)
    }

    /// Attaches to the barrier of a handle.
    ///
    /// Fails with [`Error::BadHandle`] when it names no living barrier.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Barrier> {
        Barrier::over(object::attach(family, BARRIER, handle)?)
    }

    fn over(hold: Attached) -> Result<Barrier> {
        let region = hold.family().region();
        let body = hold.view::<Body>()?;
        let parties = body.parties.load(Ordering::Acquire);
        Ok(Barrier {
            body,
            word: region.view(hold.body() + LOWER_HALF)?,
            places: region.views(hold.body() + size_of::<Body>() as u64, parties.into())?,
            hold,
        })
    }

    /// The name under which other processes attach.
    pub fn handle(&self) -> Handle {
        self.hold.handle()
    }

    /// How many must come.
    pub fn parties(&self) -> u32 {
        self.places.len() as u32
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.state().broken
    }

    /// How many are there now, waiting for the others; 0 when it is broken.
    pub fn waiting(&self) -> u32 {
        let state = self.state();
        if state.broken {
            return 0;
        }
        self.there(state.generation).count() as u32
    }

    /// Waits for all, and tells as which one the caller came: 0 for the first, each number once.
    ///
    /// A signal does not end the wait; who must answer signals uses [`Barrier::arrive`]. Fails with [`Error::Broken`], and
    /// with [`Error::TimedOut`] when `deadline` passed, which breaks the barrier for the others.
    pub fn wait(&self, deadline: Deadline) -> Result<u32> {
        let mut arrival = loop {
            match self.arrive(deadline) {
                Err(Error::Interrupted { .. }) => {}
                ended => break ended?,
            }
        };
        loop {
            match arrival.wait(deadline) {
                Err(Error::Interrupted { .. }) => {}
                ended => return ended,
            }
        }
    }

    /// Comes to the barrier without waiting for the others yet: takes a place.
    ///
    /// It waits itself only while all places are taken by those who came before and are about to go on. Errors as
    /// [`Barrier::wait`], and [`Error::Interrupted`].
    pub fn arrive(&self, deadline: Deadline) -> Result<Arrival<'_>> {
        let family = self.hold.family();
        let me = family.me()?;
        loop {
            let state = self.state();
            if state.broken {
                return Err(Error::Broken);
            }
            if let Some(index) = self.take_place(me, state.generation) {
                // DEATH: there, and the first does not know: the belt makes it look.
                fault::point("barrier.taken");
                self.body.arrivals.fetch_add(1, Ordering::AcqRel);
                if index > 0 && index + 1 < self.parties() {
                    futex::wake(&self.body.arrivals, 1);
                }
                return Ok(Arrival {
                    barrier: self,
                    me,
                    generation: state.generation,
                    index,
                    ended: false,
                    of_this_thread: PhantomData,
                });
            }
            self.wait_for_end(family, me, state, deadline)?;
        }
    }

    /// Takes the first place that is not taken in this generation, if there is one.
    fn take_place(&self, me: Me, generation: u32) -> Option<u32> {
        for (index, place) in self.places.iter().enumerate() {
            let mut seen = place.load(Ordering::Acquire);
            loop {
                let taken_in = (seen >> 32) as u32;
                // Taken, and free for us only if that was earlier; never in a later one, which we do not know yet.
                if age(taken_in, generation).wrapping_sub(1) >= u32::MAX >> 2 {
                    break;
                }
                let ours = place_of(generation, me.word);
                match place.compare_exchange(seen, ours, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Some(index as u32),
                    Err(now) => seen = now,
                }
            }
        }
        None
    }

    /// All places are taken: waits until the one who took the last has ended the generation, or is dead.
    fn wait_for_end(
        &self,
        family: &'static Family,
        me: Me,
        state: State,
        deadline: Deadline,
    ) -> Result<()> {
        let what = "the barrier";
        let mut spin = Spin::before(deadline);
        while self.state() == state {
            if spin.again() {
                continue;
            }
            let Some(last) = self
                .living(family, state.generation)
                .and_then(|all| all.last().copied())
            else {
                self.break_up(family, me, state.generation);
                continue;
            };
            if deadline.has_passed() {
                return Err(Error::TimedOut { what });
            }
            let expected = state.pack() as u32;
            let watch = Watch::Thread(last);
            let wake = sleep(family, me, self.word, expected, watch, deadline);
            awake(family, me);
            match wake {
                futex::Wake::Look => {}
                futex::Wake::TimedOut => return Err(Error::TimedOut { what }),
                futex::Wake::Interrupted => return Err(Error::Interrupted { what }),
            }
        }
        Ok(())
    }

    /// Breaks the barrier: who waits, and who comes, is answered [`Error::Broken`] until it is reset.
    pub fn abort(&self) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        let broken = |state: State| {
            (!state.broken).then_some(State {
                broken: true,
                ..state
            })
        };
        self.change(family, me, broken);
        Ok(())
    }

    /// Begins anew. Those who wait are answered [`Error::Broken`].
    pub fn reset(&self) -> Result<()> {
        let family = self.hold.family();
        let me = family.me()?;
        self.change(family, me, |state| {
            let untouched = !state.broken && self.there(state.generation).next().is_none();
            (!untouched).then(|| state.next(false))
        });
        Ok(())
    }

    fn state(&self) -> State {
        State::unpack(self.body.state.load(Ordering::Acquire))
    }

    /// The lock words of those who are there in this generation, in the order in which they came.
    fn there(&self, generation: u32) -> impl Iterator<Item = u32> {
        let words = self.places.iter().map(|p| p.load(Ordering::Acquire));
        words
            .take_while(move |place| (place >> 32) as u32 == generation)
            .map(|place| place as u32)
    }

    /// The slots of those who are there, or `None` if one of them is dead.
    fn living(&self, family: &Family, generation: u32) -> Option<Vec<u32>> {
        let alive = |word| match family.holder_state(word) {
            Holder::Nobody | Holder::Dead => None,
            Holder::Alive(slot) => Some(slot),
        };
        self.there(generation).map(alive).collect()
    }

    /// Breaks this generation, if it has not ended.
    fn break_up(&self, family: &Family, me: Me, generation: u32) {
        self.change(family, me, |state| {
            let open = state.outcome_of(generation) == Outcome::Open;
            open.then_some(State {
                broken: true,
                ..state
            })
        });
    }

    /// Exchanges the state for another, in one step, and wakes all; whether it did.
    fn change(&self, family: &Family, me: Me, next: impl Fn(State) -> Option<State>) -> bool {
        owing(family, me, self.word, || {
            let packed = |word| next(State::unpack(word)).map(State::pack);
            // ORDERING: Release pairs with the Acquire of `state`: what was done before the meeting is seen after it.
            let changed = self
                .body
                .state
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, packed)
                .is_ok();
            if changed {
                // DEATH: ended, and nobody woken: `wake_owed` names the state; the first also watches us.
                fault::point("barrier.changed");
                self.body.arrivals.fetch_add(1, Ordering::AcqRel);
                futex::wake_all(&self.body.arrivals);
                futex::wake_all(self.word);
            }
            changed
        })
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("waiting", &self.waiting())
            .field("broken", &self.is_broken())
            .finish()
    }
}

/// The calling thread's place at a [`Barrier`].
///
/// Letting it go before all have met breaks the barrier: the others would wait for one who left.
#[derive(Debug)]
#[must_use = "letting go of an arrival breaks the barrier"]
pub struct Arrival<'a> {
    barrier: &'a Barrier,
    me: Me,
    generation: u32,
    index: u32,
    ended: bool,
    /// Its place names the thread that made it.
    of_this_thread: PhantomData<*const ()>,
}

impl Arrival<'_> {
    /// As which one it came: 0 for the first.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it came last. The others go on only once it waits: what it does before, it does while all are there.
    pub fn is_last(&self) -> bool {
        self.index + 1 == self.barrier.parties()
    }

    /// Waits for the others, and tells [`Arrival::index`].
    ///
    /// Fails with [`Error::Broken`], with [`Error::TimedOut`] when `deadline` passed, which breaks the barrier for the
    /// others, and with [`Error::Interrupted`] after a signal; then calling again continues.
    pub fn wait(&mut self, deadline: Deadline) -> Result<u32> {
        let what = "the barrier";
        let (barrier, me) = (self.barrier, self.me);
        let family = barrier.hold.family();
        if self.is_last() {
            barrier.change(family, me, |state| {
                let open = state.outcome_of(self.generation) == Outcome::Open;
                open.then(|| state.next(true))
            });
        }
        let mut spin = Spin::before(deadline);
        loop {
            // ORDERING: before the state: who ends the generation changes the state first, then this.
            let arrivals = barrier.body.arrivals.load(Ordering::Acquire);
            let state = barrier.state();
            match state.outcome_of(self.generation) {
                Outcome::Open => {}
                Outcome::Complete => {
                    self.ended = true;
                    return Ok(self.index);
                }
                Outcome::Broken => {
                    self.ended = true;
                    return Err(Error::Broken);
                }
            }
            if spin.again() {
                continue;
            }
            let Some(slots) = barrier.living(family, self.generation) else {
                barrier.break_up(family, me, self.generation);
                continue;
            };
            if deadline.has_passed() {
                return self.give_up(Error::TimedOut { what });
            }
            let wake = match slots.split_first() {
                Some((_, others)) if self.index == 0 => {
                    let watch = Watch::Threads(&others[..others.len().min(WATCHED_MAX)]);
                    sleep(
                        family,
                        me,
                        &barrier.body.arrivals,
                        arrivals,
                        watch,
                        deadline,
                    )
                }
                Some((first, _)) => {
                    let watch = Watch::Thread(*first);
                    sleep(
                        family,
                        me,
                        barrier.word,
                        state.pack() as u32,
                        watch,
                        deadline,
                    )
                }
                // The places are of another generation already.
                None => continue,
            };
            awake(family, me);
            match wake {
                futex::Wake::Look => {}
                futex::Wake::TimedOut => return self.give_up(Error::TimedOut { what }),
                futex::Wake::Interrupted => return Err(Error::Interrupted { what }),
            }
        }
    }

    /// Breaks the barrier, unless all have met at the last moment.
    fn give_up(&mut self, error: Error) -> Result<u32> {
        let barrier = self.barrier;
        let broke = barrier.change(barrier.hold.family(), self.me, |state| {
            let open = state.outcome_of(self.generation) == Outcome::Open;
            open.then_some(State {
                broken: true,
                ..state
            })
        });
        self.ended = true;
        if broke {
            return Err(error);
        }
        match barrier.state().outcome_of(self.generation) {
            Outcome::Complete => Ok(self.index),
            Outcome::Open | Outcome::Broken => Err(Error::Broken),
        }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let family = self.barrier.hold.family();
        // In a forked child it is a copy of another thread's.
        if !self.ended && family.me().ok() == Some(self.me) {
            self.barrier.break_up(family, self.me, self.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_word() {
        let state = State {
            generation: 0x7fff_fffe,
            broken: true,
            ends: 0xdead_beef,
        };
        assert_eq!(State::unpack(state.pack()), state);
    }

    #[test]
    fn who_oversleeps_still_learns_how_its_generation_ended() {
        let first = State::FIRST;
        let then = first.next(true).next(false).next(true);
        assert_eq!(then.outcome_of(1), Outcome::Complete);
        assert_eq!(then.outcome_of(2), Outcome::Broken);
        assert_eq!(then.outcome_of(3), Outcome::Complete);
        assert_eq!(then.outcome_of(4), Outcome::Open);
    }

    #[test]
    fn generations_go_round_past_zero() {
        let last = State {
            generation: u32::MAX >> 1,
            broken: false,
            ends: 0,
        };
        let next = last.next(true).next(false);
        assert_eq!(next.outcome_of(last.generation), Outcome::Complete);
        assert_eq!(next.outcome_of(0), Outcome::Broken);
    }

    #[test]
    fn a_place_of_a_later_generation_is_not_taken_by_who_comes_late() {
        let family = crate::family().threads_max(8).create().unwrap();
        let me = family.me().unwrap();
        let barrier = Barrier::create(family, 2).unwrap();
        assert_eq!(barrier.take_place(me, 5), Some(0));
        assert_eq!(barrier.take_place(me, 4), Some(1));
        assert_eq!(barrier.take_place(me, 5), Some(1));
        assert_eq!(barrier.take_place(me, 6), Some(0));
    }

    #[test]
    fn an_arrival_let_go_breaks_the_barrier_until_it_is_reset() {
        let family = crate::family().threads_max(8).create().unwrap();
        let barrier = Barrier::create(family, 2).unwrap();
        let arrival = barrier.arrive(Deadline::NEVER).unwrap();
        assert_eq!(barrier.waiting(), 1);
        drop(arrival);
        assert!(matches!(barrier.wait(Deadline::NEVER), Err(Error::Broken)));
        barrier.reset().unwrap();
        assert_eq!((barrier.is_broken(), barrier.waiting()), (false, 0));
    }
}
