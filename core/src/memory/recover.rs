//! Repairs what a dead thread left behind. It takes no latch, allocates nothing and frees nothing: it only stores.
//!
//! Whoever `probe`s the token of a dead thread first is elected; should it die too, the kernel elects the next. Until
//! the slot's generation is raised, every latch that names the dead thread stays shut, so that its intent is resumed in
//! peace; the raise opens them all at once. What the dead *process* owned is freed later, by `reclaim`.

use super::family::Family;
use super::slots::{ThreadState, ThreadWord};
use crate::fault;
use crate::sys::futex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Recovers the thread of a slot whose token the caller was given as a dead owner's, and frees the slot.
#[cold]
pub(crate) fn recover(family: &Family, index: u32) {
    let token = &family.thread(index).token;
    // The kernel woke one of those who watch; should we die here, the others are awake to try.
    futex::wake_all(token.word());
    settle(family, index);
    token.release_recovered();
    futex::wake_all(token.word());
}

/// Recovers the thread of a slot whose token the caller holds.
pub(crate) fn settle(family: &Family, index: u32) {
    let slot = family.thread(index);
    let left = ThreadWord::unpack(slot.state.load(Ordering::Acquire));
    let over = match left.state {
        ThreadState::Free => false,
        ThreadState::Seated => true,
        // It ended in peace and was killed before it could say so: its locks stay with its process.
        ThreadState::Lingering => family.is_process_dead(left.process),
    };
    if over {
        if let Some(intent) = family.open_intent(index)
            && let Some(kind) = family.kinds().get(intent.op.kind as usize)
        {
            (kind.resume)(family, &intent);
        }
        slot.intent.store(0, Ordering::Release);
    }
    // DEATH: the intent is done and the latches are still shut; the next recoverer goes on from here.
    fault::point("recover.resumed");
    // Told before the latches open: nobody looks at a free slot until it is taken again. Who is woken and wants a latch
    // that is still shut sleeps on the token, and the end of recovery wakes it.
    wake_for(family, index);
    if over {
        // The process stays noted: reclaim asks which slots were its.
        let free = ThreadWord {
            state: ThreadState::Free,
            generation: left.generation + 1,
            ..left
        };
        slot.state.store(free.pack(), Ordering::Release);
    }
    // DEATH: the latches are open and all were told; who takes the slot next tells them again, which does no harm.
    fault::point("recover.opened");
    for owed in [&slot.wake_owed, &slot.waiting_on, &slot.answering] {
        owed.store(0, Ordering::Release);
    }
}

/// Wakes those whom the thread of a slot would have woken.
fn wake_for(family: &Family, index: u32) {
    let slot = family.thread(index);
    for owed in [&slot.wake_owed, &slot.waiting_on, &slot.answering] {
        let offset = owed.load(Ordering::Acquire);
        if offset != 0
            && let Ok(word) = family.region().view::<AtomicU32>(offset)
        {
            futex::wake_all(word);
        }
    }
}
