//! Sleeping on a word of the arena: the only place where the engine spins, and the only one where it waits in memory.
//!
//! A sleeper that waits *for someone* also watches that thread's life token and is woken when it dies. Behind
//! everything stands a belt: after [`BELT`] a sleeper looks again on its own, so that whatever was lost in a way that
//! nobody foresaw costs a second and not for ever.

use super::family::Family;
use crate::deadline::Deadline;
use crate::sys::{futex, machine};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a sleeper trusts to be woken.
const BELT: Duration = Duration::from_secs(1);

/// [`BELT`]; `PROCESSION_BELT` sets another number of seconds, for tests that must see a lost wake-up.
fn belt() -> Duration {
    static SECONDS: OnceLock<Duration> = OnceLock::new();
    *SECONDS.get_or_init(|| {
        let set = std::env::var("PROCESSION_BELT").ok();
        let seconds = set.and_then(|text| text.parse().ok());
        seconds.map_or(BELT, Duration::from_secs)
    })
}

/// How often a sleeper looks after a life that the kernel does not tell it about.
pub(crate) const RECHECK: Duration = Duration::from_millis(20);

/// Asks what this room must know of the machine, once, before anybody of a family can fork: a fork in the middle of
/// another thread's asking would leave the child waiting for that thread, which it does not have.
pub(crate) fn prepare() {
    belt();
    machine::may_spin();
    futex::has_waitv();
}

/// Whose death must wake the sleeper.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Watch<'a> {
    /// Nobody's: the word alone.
    Nobody,
    /// That of the thread in this slot.
    Thread(u32),
    /// Those of several threads.
    Threads(&'a [u32]),
}

/// Sleeps while `word` holds `expected` and the watched live, at most for a belt. Who is woken looks again.
pub(crate) fn park(
    family: &Family,
    word: &AtomicU32,
    expected: u32,
    watch: Watch<'_>,
    deadline: Deadline,
) -> futex::Wake {
    let until = deadline.min(Deadline::after(belt()));
    let wake = match watch {
        Watch::Nobody => futex::wait(word, expected, until),
        Watch::Thread(slot) => {
            let token = &family.thread(slot).token;
            let lingering = family.is_lingering(slot);
            let until = if lingering {
                until.min(Deadline::after(RECHECK))
            } else {
                until
            };
            // Dead since the caller looked: nothing will wake us, look again.
            let Some(alive) = token.watch() else {
                return futex::Wake::Look;
            };
            futex::wait_both(word, expected, token.word(), alive, until, RECHECK)
        }
        Watch::Threads(slots) => {
            let mut words = Vec::with_capacity(slots.len() + 1);
            words.push((word, expected));
            for &slot in slots {
                let token = &family.thread(slot).token;
                let Some(alive) = token.watch() else {
                    return futex::Wake::Look;
                };
                words.push((token.word(), alive));
            }
            futex::wait_all(&words, until, RECHECK)
        }
    };
    match wake {
        futex::Wake::TimedOut if !deadline.has_passed() => futex::Wake::Look,
        ended => ended,
    }
}

/// A short, bounded wait without sleeping, for someone who is about to finish on another processor.
///
/// It learns how long to try. Where spinning fails and the sleep after it is short, spinning longer would have met the
/// event, and saved a wake that costs more than the spin: the next one may last longer. Where the sleep is long, the
/// next one gives up sooner. So two processes that answer each other within a wake's time soon both stay awake, and one
/// that waits for nothing in particular sleeps at once. On one processor it does not spin at all.
#[derive(Debug)]
pub(crate) struct Spin {
    left: u32,
    used: u32,
    /// When spinning ended in vain.
    gave_up: Option<u64>,
}

/// Pauses that a spin may last, by what the last ones of this process brought.
static BUDGET: AtomicU32 = AtomicU32::new(256);
const BUDGET_MIN: u32 = 32;
/// A little more than it takes to wake someone on another processor: some 50 microseconds.
const BUDGET_MAX: u32 = 2048;

/// How many more short sleeps are let pass before the budget may grow again, after it grew to the end in vain: the one
/// waited for needs this processor.
static FUTILE: AtomicU32 = AtomicU32::new(0);
const FUTILE_MAX: u32 = 256;

/// A sleep that spinning might have spared, in nanoseconds.
const SHORT: u64 = 50_000;

impl Spin {
    /// A spin ahead of a wait until `deadline`. Who does not wait does not spin either.
    pub(crate) fn before(deadline: Deadline) -> Spin {
        Spin {
            left: if deadline != Deadline::PASSED && machine::may_spin() {
                BUDGET.load(Ordering::Relaxed)
            } else {
                0
            },
            used: 0,
            gave_up: None,
        }
    }

    /// Pauses a little and says to look again, or says that it is time to sleep.
    pub(crate) fn again(&mut self) -> bool {
        if self.left == 0 {
            if self.used > 0 && self.gave_up.is_none() {
                self.gave_up = Some(machine::monotonic_nanos());
            }
            return false;
        }
        // Short at first, so as to see at once what comes at once; then longer, to leave the line to who writes it.
        let pauses = (1 + self.used / 8).min(8).min(self.left);
        for _ in 0..pauses {
            std::hint::spin_loop();
        }
        self.left -= pauses;
        self.used += pauses;
        true
    }
}

impl Drop for Spin {
    fn drop(&mut self) {
        let budget = BUDGET.load(Ordering::Relaxed);
        match self.gave_up {
            None if self.used == 0 => {}
            None => {
                FUTILE.store(0, Ordering::Relaxed);
                if self.used > budget / 2 {
                    BUDGET.store((budget + budget / 4).min(BUDGET_MAX), Ordering::Relaxed);
                }
            }
            Some(since) => {
                let slept = machine::monotonic_nanos().saturating_sub(since);
                let futile = FUTILE.load(Ordering::Relaxed);
                let next = if slept > SHORT {
                    (budget / 2).max(BUDGET_MIN)
                } else if futile > 0 {
                    FUTILE.store(futile - 1, Ordering::Relaxed);
                    BUDGET_MIN
                } else if budget < BUDGET_MAX {
                    (budget * 2).min(BUDGET_MAX)
                } else {
                    FUTILE.store(FUTILE_MAX, Ordering::Relaxed);
                    BUDGET_MIN
                };
                BUDGET.store(next, Ordering::Relaxed);
            }
        }
    }
}
