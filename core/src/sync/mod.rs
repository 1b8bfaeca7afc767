//! Waiting for one another: locks, permits, conditions, events, barriers.
//!
//! Each is an object of a few words in the arena, found by its [`Handle`](crate::Handle) from any process of the family.
//! What a death does to each:
//!
//! | object | a process dies | the others |
//! |---|---|---|
//! | [`Mutex`], [`RecursiveMutex`] | holding it | the next to acquire it is told [`Acquired::OwnerDied`], once |
//! | [`Semaphore`] | holding permits | lose them; a robust one gives them back |
//! | [`Condition`], [`Event`] | waiting | notice nothing; a notification it had in hand goes to another |
//! | [`Barrier`] | waiting | find it [`Broken`](crate::Error::Broken) at once |
//!
//! All that wait take a [`Deadline`], and sleep in `memory::park` alone. Start with [`Mutex`], the plain use of the lock
//! word in `memory::latch`. This room knows nothing of messages, and does not look for deadlocks: it only leaves in each
//! thread's slot what it waits for. There is no lock for many readers: to undo a dead reader's part takes a book of who
//! reads, and with that the readers would wait for each other as they do for a [`Mutex`].

pub(crate) mod barrier;
pub(crate) mod condition;
pub(crate) mod event;
pub(crate) mod mutex;
pub(crate) mod recursive;
pub(crate) mod semaphore;

pub use crate::memory::latch::Acquired;
pub use barrier::{Arrival, Barrier};
pub use condition::{Condition, Waiter};
pub use event::{Event, Moment};
pub use mutex::Mutex;
pub use recursive::RecursiveMutex;
pub use semaphore::Semaphore;

use crate::deadline::Deadline;
use crate::memory::family::{Family, Me};
use crate::memory::latch::{Holder, Latch};
use crate::memory::park::{self, Watch};
use crate::memory::slots::ThreadWord;
use crate::sys::futex;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the lower half of a 64-bit word lies, in bytes. The kernel waits on 32 bits; the other half tells changes apart
/// that it need not see.
pub(crate) const LOWER_HALF: u64 = if cfg!(target_endian = "little") { 0 } else { 4 };

/// Where the upper half lies.
pub(crate) const UPPER_HALF: u64 = 4 - LOWER_HALF;

/// Runs `work`, which changes what others wait for on `word` and wakes them.
pub(crate) fn owing<R>(family: &Family, me: Me, word: &AtomicU32, work: impl FnOnce() -> R) -> R {
    let thread = family.thread(me.slot);
    let owed = thread.wake_owed.load(Ordering::Relaxed);
    // DEATH: changed and dead before the wake: whoever recovers us wakes them.
    thread
        .wake_owed
        .store(family.region().offset_of(word), Ordering::Release);
    let answer = work();
    thread.wake_owed.store(owed, Ordering::Release);
    answer
}

/// Sleeps while `word` holds `expected`. Until [`awake`] the thread counts as one who may have taken a wake for itself.
pub(crate) fn sleep(
    family: &Family,
    me: Me,
    word: &AtomicU32,
    expected: u32,
    watch: Watch<'_>,
    deadline: Deadline,
) -> futex::Wake {
    // DEATH: woken and dead before it acted: whoever recovers us wakes the others on the word.
    family
        .thread(me.slot)
        .waiting_on
        .store(family.region().offset_of(word), Ordering::Release);
    park::park(family, word, expected, watch, deadline)
}

/// Says that the calling thread has done what it was woken for, or that it waits no longer.
pub(crate) fn awake(family: &Family, me: Me) {
    family
        .thread(me.slot)
        .waiting_on
        .store(0, Ordering::Release);
}

/// Who holds a lock, for people.
pub(crate) struct HeldBy {
    pub(crate) process: u32,
    pub(crate) pid: u32,
}

impl HeldBy {
    /// The living holder of a latch.
    pub(crate) fn of(family: &Family, latch: &Latch) -> Option<HeldBy> {
        match family.holder_state(latch.word.load(Ordering::Acquire)) {
            Holder::Nobody | Holder::Dead => None,
            Holder::Alive(slot) => {
                let thread = family.thread(slot).state.load(Ordering::Acquire);
                let process = ThreadWord::unpack(thread).process;
                let pid = family
                    .processes()
                    .get(process as usize)?
                    .pid
                    .load(Ordering::Acquire);
                Some(HeldBy { process, pid })
            }
        }
    }
}

impl fmt::Debug for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (pid {})", self.process, self.pid)
    }
}

/// `Some` without its name around it: `nobody`, or who.
pub(crate) struct OrNobody(pub(crate) Option<HeldBy>);

impl fmt::Debug for OrNobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(holder) => holder.fmt(f),
            None => f.write_str("nobody"),
        }
    }
}
