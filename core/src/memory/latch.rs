//! The lock word under everything: it names its holder, and a holder's death frees it.
//!
//! ```text
//!  31       30                16 15 14             0
//!  WAITERS  generation (15 bits)  –  slot + 1 (14 bits)
//!
//!  0                 free
//!  slot, generation  held by that thread, if the slot still has that generation; else its holder died holding it
//!  WAITERS           somebody may sleep on the word: who frees it wakes one
//! ```
//!
//! That a holder died is not written anywhere, it is derived: recovery raises the slot's generation, and so every word
//! that names the old one is free to take. Nobody has to find them, and nobody can forget one.

use super::family::{Family, Me};
use super::layout::shared;
use super::park::{self, Watch};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::sys::futex;
use std::sync::atomic::{AtomicU32, Ordering};

shared! {
    /// A robust lock of one word. It protects nothing by itself: what it guards stands beside it.
    pub(crate) struct Latch: 8 {
        pub(crate) word: AtomicU32,
        pub(crate) padding: AtomicU32,
    }
}

/// Somebody may sleep on the word.
const WAITERS: u32 = 1 << 31;
const GENERATION_SHIFT: u32 = 16;
const SLOT: u32 = (1 << 14) - 1;

/// Generations that a word can tell apart.
pub(crate) const GENERATIONS: u32 = 1 << 15;

/// How a lock came into the caller's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a holder's death may have left what the lock guards half done"]
pub enum Acquired {
    /// From someone who released it.
    Clean,
    /// From a thread that died holding it.
    OwnerDied,
}

/// The word that names a holder.
pub(crate) fn holder_word(slot: u32, generation: u32) -> u32 {
    (generation % GENERATIONS) << GENERATION_SHIFT | (slot + 1)
}

/// The slot and the generation in a word, `None` when it is free.
pub(crate) fn holder_of(word: u32) -> Option<(u32, u32)> {
    let slot = word & SLOT;
    (slot != 0).then(|| (slot - 1, word >> GENERATION_SHIFT & (GENERATIONS - 1)))
}

impl Latch {
    /// Takes the latch, waiting until `deadline`.
    #[inline]
    pub(crate) fn acquire(
        &self,
        family: &Family,
        me: Me,
        what: &'static str,
        deadline: Deadline,
    ) -> Result<Acquired> {
        if self
            .word
            .compare_exchange(0, me.word, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return Ok(Acquired::Clean);
        }
        self.acquire_contended(family, me, what, deadline)
    }

    /// Takes the latch for a short critical section of the engine: no deadline, and no signal cuts it.
    #[inline]
    pub(crate) fn enter(&self, family: &Family, me: Me) -> Acquired {
        if self
            .word
            .compare_exchange(0, me.word, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            return Acquired::Clean;
        }
        loop {
            if let Ok(acquired) = self.acquire_contended(family, me, "a latch", Deadline::NEVER) {
                return acquired;
            }
        }
    }

    /// Takes the latch if that can be done at once, also from a holder that is dead.
    pub(crate) fn try_acquire(&self, family: &Family, me: Me) -> Option<Acquired> {
        let seen = self.word.load(Ordering::Relaxed);
        let acquired = match family.holder_state(seen) {
            Holder::Nobody => Acquired::Clean,
            Holder::Dead => Acquired::OwnerDied,
            Holder::Alive(_) => return None,
        };
        let taken = me.word | seen & WAITERS;
        let won = self
            .word
            .compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        won.then_some(acquired)
    }

    /// Takes the latch if it is free.
    #[inline]
    pub(crate) fn try_enter(&self, me: Me) -> bool {
        self.word
            .compare_exchange(0, me.word, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    #[cold]
    fn acquire_contended(
        &self,
        family: &Family,
        me: Me,
        what: &'static str,
        deadline: Deadline,
    ) -> Result<Acquired> {
        let mut spin = park::Spin::before(deadline);
        // Who has slept cannot know whether others sleep still, and says so for them when it takes the latch.
        let mut waiters = 0;
        let mut look_closer = false;
        loop {
            let seen = self.word.load(Ordering::Relaxed);
            // While spinning, the holder's token is left alone: a look at it is a write to the holder's own line.
            let holder = if look_closer {
                family.holder_state(seen)
            } else {
                family.holder_as_written(seen)
            };
            let (free, acquired) = match holder {
                Holder::Nobody => (true, Acquired::Clean),
                Holder::Dead => (true, Acquired::OwnerDied),
                Holder::Alive(_) => (false, Acquired::Clean),
            };
            if free {
                let taken = me.word | seen & WAITERS | waiters;
                if self
                    .word
                    .compare_exchange(seen, taken, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
                {
                    // DEATH: woken and dead before the word is ours: `waiting_on` makes recovery wake the next.
                    family
                        .thread(me.slot)
                        .waiting_on
                        .store(0, Ordering::Release);
                    return Ok(acquired);
                }
                continue;
            }
            if spin.again() {
                continue;
            }
            if !look_closer {
                look_closer = true;
                continue;
            }
            if deadline.has_passed() {
                return self.give_up(family, me, Error::TimedOut { what });
            }
            let flagged = seen | WAITERS;
            if seen != flagged
                && self
                    .word
                    .compare_exchange(seen, flagged, Ordering::Relaxed, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            let offset = family.region().offset_of(&self.word);
            family
                .thread(me.slot)
                .waiting_on
                .store(offset, Ordering::Release);
            waiters = WAITERS;
            let (slot, _) = holder_of(seen).expect("a living holder is named");
            match park::park(family, &self.word, flagged, Watch::Thread(slot), deadline) {
                futex::Wake::Look => {}
                futex::Wake::TimedOut => return self.give_up(family, me, Error::TimedOut { what }),
                futex::Wake::Interrupted => {
                    return self.give_up(family, me, Error::Interrupted { what });
                }
            }
        }
    }

    /// Leaves the queue of waiters without the latch.
    fn give_up(&self, family: &Family, me: Me, error: Error) -> Result<Acquired> {
        let thread = family.thread(me.slot);
        if thread.waiting_on.load(Ordering::Relaxed) != 0 {
            // We may have swallowed a wake that came together with the signal or the timeout: pass it on.
            if holder_of(self.word.load(Ordering::Relaxed)).is_none() {
                futex::wake(&self.word, 1);
            }
            thread.waiting_on.store(0, Ordering::Release);
        }
        Err(error)
    }

    /// Frees the latch and wakes one who waits for it. Anyone may; whether the caller should is its door's question.
    #[inline]
    pub(crate) fn release(&self, family: &Family, me: Me) {
        let _ = self.release_if_held(family, me);
    }

    /// [`Latch::release`], and whether anybody held it.
    #[inline]
    pub(crate) fn release_if_held(&self, family: &Family, me: Me) -> bool {
        // ORDERING: Release pairs with the Acquire of whoever takes the latch next.
        self.word
            .compare_exchange(me.word, 0, Ordering::Release, Ordering::Relaxed)
            .is_ok()
            || self.release_contended(family, me)
    }

    #[cold]
    fn release_contended(&self, family: &Family, me: Me) -> bool {
        let offset = family.region().offset_of(&self.word);
        let thread = family.thread(me.slot);
        // DEATH: freed and dead before the wake: `wake_owed` makes recovery wake for us. It is put aside and restored,
        // because an operation around us may owe a wake of its own.
        let owed = thread.wake_owed.load(Ordering::Relaxed);
        thread.wake_owed.store(offset, Ordering::Release);
        let before = self.word.swap(0, Ordering::Release);
        if before & WAITERS != 0 {
            futex::wake(&self.word, 1);
        }
        thread.wake_owed.store(owed, Ordering::Release);
        holder_of(before).is_some()
    }

    /// Whether somebody may sleep on it.
    pub(crate) fn has_waiters(&self) -> bool {
        self.word.load(Ordering::Relaxed) & WAITERS != 0
    }

    /// Whether the calling thread holds it.
    pub(crate) fn is_held_by(&self, me: Me) -> bool {
        self.word.load(Ordering::Relaxed) & !WAITERS == me.word
    }
}

/// What a lock word says of its holder, after a look at the holder's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    Nobody,
    /// It lives, in this slot.
    Alive(u32),
    /// It died holding the word: take it.
    Dead,
}
