//! Waiting on words that several processes share.
//!
//! Only shared futexes: those of `std` and `parking_lot` are private to a process and would never wake across.

use super::machine;
use crate::deadline::Deadline;
use rustix::io::Errno;
use rustix::thread::futex::{self, Flags, Wait, WaitFlags, WaitvFlags};
use rustix::time::Timespec;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Woken, or a word had changed already, or for no reason: look again.
    Look,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Whether the kernel waits on several words at once: 0 not asked yet, 1 yes, 2 no.
static WAITV: AtomicU8 = AtomicU8::new(0);

/// Whether [`wait_both`] sleeps on both words. Linux 5.16 and later do; `PROCESSION_NO_WAITV=1` forbids it, for tests.
pub(crate) fn has_waitv() -> bool {
    match WAITV.load(Ordering::Relaxed) {
        0 => {
            let there = std::env::var_os("PROCESSION_NO_WAITV")
                .is_none_or(|v| v.is_empty() || v == "0")
                && probe();
            WAITV.store(if there { 1 } else { 2 }, Ordering::Relaxed);
            there
        }
        known => known == 1,
    }
}

/// Asks the kernel with a word that has changed already: EAGAIN means that it knows the call.
fn probe() -> bool {
    let word = AtomicU32::new(0);
    let waits = [wait_on(&word, 1)];
    matches!(
        futex::waitv(&waits, WaitvFlags::empty(), None, futex_clock()),
        Err(Errno::AGAIN)
    )
}

/// Waits while `word` holds `expected`.
pub(crate) fn wait(word: &AtomicU32, expected: u32, deadline: Deadline) -> Wake {
    let timeout = deadline.nanos().map(timespec);
    let any = NonZeroU32::MAX;
    answer(futex::wait_bitset(word, Flags::empty(), expected, timeout.as_ref(), any).map(|()| 0))
}

/// Waits while both words hold what is expected of them.
///
/// Without `futex_waitv` it sleeps on the first and looks at the second again every `recheck`.
pub(crate) fn wait_both(
    word: &AtomicU32,
    expected: u32,
    other: &AtomicU32,
    other_expected: u32,
    deadline: Deadline,
    recheck: Duration,
) -> Wake {
    if has_waitv() {
        let waits = [wait_on(word, expected), wait_on(other, other_expected)];
        let timeout = deadline.nanos().map(timespec);
        return answer(futex::waitv(
            &waits,
            WaitvFlags::empty(),
            timeout.as_ref(),
            futex_clock(),
        ));
    }
    if other.load(Ordering::Acquire) != other_expected {
        return Wake::Look;
    }
    let slice = Deadline::after(recheck);
    match wait(word, expected, deadline.min(slice)) {
        Wake::TimedOut if !deadline.has_passed() => Wake::Look,
        ended => ended,
    }
}

/// Waits while all words hold what is expected of them; at most 128 words.
pub(crate) fn wait_all(words: &[(&AtomicU32, u32)], deadline: Deadline, recheck: Duration) -> Wake {
    debug_assert!(!words.is_empty() && words.len() <= 128);
    if has_waitv() {
        let mut waits = [wait_on(words[0].0, 0); 128];
        for (place, (word, expected)) in waits.iter_mut().zip(words) {
            *place = wait_on(word, *expected);
        }
        let timeout = deadline.nanos().map(timespec);
        return answer(futex::waitv(
            &waits[..words.len()],
            WaitvFlags::empty(),
            timeout.as_ref(),
            futex_clock(),
        ));
    }
    if words
        .iter()
        .any(|(word, expected)| word.load(Ordering::Acquire) != *expected)
    {
        return Wake::Look;
    }
    match wait(
        words[0].0,
        words[0].1,
        deadline.min(Deadline::after(recheck)),
    ) {
        Wake::TimedOut if !deadline.has_passed() => Wake::Look,
        ended => ended,
    }
}

/// Wakes up to `count` waiters and tells how many there were.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    futex::wake(word, Flags::empty(), count.min(i32::MAX as u32)).unwrap_or(0)
}

/// Wakes all waiters.
pub(crate) fn wake_all(word: &AtomicU32) -> usize {
    wake(word, u32::MAX)
}

fn wait_on(word: &AtomicU32, expected: u32) -> Wait {
    let mut wait = Wait::new();
    wait.val = expected.into();
    wait.uaddr = futex::WaitPtr::new(word.as_ptr().cast());
    wait.flags = WaitFlags::SIZE_U32;
    wait
}

fn futex_clock() -> rustix::thread::ClockId {
    rustix::thread::ClockId::Monotonic
}

fn timespec(nanos: u64) -> Timespec {
    Timespec {
        tv_sec: (nanos / machine::NANOS) as i64,
        tv_nsec: (nanos % machine::NANOS) as _,
    }
}

fn answer(result: rustix::io::Result<usize>) -> Wake {
    match result {
        Ok(_) | Err(Errno::AGAIN) => Wake::Look,
        Err(Errno::TIMEDOUT) => Wake::TimedOut,
        Err(Errno::INTR) => Wake::Interrupted,
        // EFAULT, EINVAL, ENOMEM: no wait took place. Looking again is right and a busy loop is the worst of it.
        Err(_) => Wake::Look,
    }
}
