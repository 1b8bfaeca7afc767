//! Frees what a dead process owned, once all of it is dead: its memory, its bits, its leases, its slot.
//!
//! Threads are recovered one by one, as somebody meets them; memory goes only here, because a dying process's other
//! threads may run a moment longer than the one whose death was seen. The reclaim latch is the outermost: inside it,
//! queues are entered and objects destroyed; so nobody takes it who holds another latch. Everything is found by walking
//! the owner words and done by single stores: should the reclaimer die, the next one starts over.

use super::block::{self, Owner, State};
use super::family::{Family, Me};
use super::latch::Acquired;
use super::object::{self, Handle};
use super::park::{self, Watch};
use super::slots::{ProcState, ProcWord, ThreadState, ThreadWord};
use super::{recover, runs, slabs};
use crate::deadline::Deadline;
use crate::fault;
use crate::sys::token::Life;
use std::sync::atomic::{AtomicU64, Ordering};

/// A child moves into the slot that its parent prepared; false if the slot was given up, and perhaps another's by now.
pub(crate) fn hatch(family: &Family, index: u32, generation: u32) -> bool {
    let slot = family.process(index);
    let word = slot.state.load(Ordering::Acquire);
    let found = ProcWord::unpack(word);
    let alive = ProcWord {
        state: ProcState::Alive,
        ..found
    };
    found.state == ProcState::Embryo
        && found.generation == generation
        && found.parent.is_some()
        && slot
            .state
            .compare_exchange(word, alive.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
}

impl Family {
    /// Looks for dead threads and processes, repairs and frees what they left. The caller holds no latch.
    pub(crate) fn sweep(&'static self, me: Me) {
        for (index, slot) in self.threads().iter().enumerate() {
            let found = ThreadWord::unpack(slot.state.load(Ordering::Acquire));
            if found.state == ThreadState::Seated {
                match slot.token.probe() {
                    Life::Held => {}
                    Life::Died => recover::recover(self, index as u32),
                    Life::Free => slot.token.release(),
                }
            }
        }
        for index in 0..self.processes().len() as u32 {
            let found = ProcWord::unpack(self.process(index).state.load(Ordering::Acquire));
            if found.state != ProcState::Free && index != me.process && self.is_process_dead(index)
            {
                self.reclaim(me, index);
            }
        }
    }

    /// Notes that a process was seen to end, and frees what it owned. The caller holds no latch.
    pub(crate) fn bury(&'static self, me: Me, index: u32, generation: u32) {
        let slot = self.process(index);
        if ProcWord::unpack(slot.state.load(Ordering::Acquire)).generation == generation {
            slot.ended.store(1, Ordering::Release);
            self.reclaim(me, index);
        }
    }

    /// Gives up a slot that was prepared for a child, with all that was laid into it; false if the child has moved in.
    ///
    /// After `true` no child can move in any more. The caller holds no latch.
    pub(crate) fn give_up(&'static self, me: Me, index: u32, generation: u32) -> bool {
        let slot = self.process(index);
        let word = slot.state.load(Ordering::Acquire);
        let found = ProcWord::unpack(word);
        let given_up = ProcWord {
            parent: None,
            ..found
        };
        // DEATH: given up and not freed: the next sweep frees it.
        let won = found.state == ProcState::Embryo
            && found.generation == generation
            && slot
                .state
                .compare_exchange(word, given_up.pack(), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if won {
            fault::point("embryo.given_up");
            self.bury(me, index, generation);
        }
        won
    }

    /// Frees what a dead process owned; nothing if it lives. The caller holds no latch.
    pub(crate) fn reclaim(&'static self, me: Me, index: u32) {
        let latch = &self.header().reclaim;
        match latch.enter(self, me) {
            // Nothing is half done that is not done again below.
            Acquired::Clean | Acquired::OwnerDied => {}
        }
        reclaim_in_turn(self, me, index);
        latch.release(self, me);
    }
}

fn reclaim_in_turn(family: &'static Family, me: Me, index: u32) {
    let slot = family.process(index);
    let found = ProcWord::unpack(slot.state.load(Ordering::Acquire));
    // Asked again inside the latch: someone else may have been quicker, and the slot another's by now.
    if found.state == ProcState::Free || index == me.process || !family.is_process_dead(index) {
        return;
    }
    if found.state == ProcState::Embryo {
        // The child, if it runs after all, must not move in any more.
        let given_up = ProcWord {
            parent: None,
            ..found
        };
        let (was, is) = (found.pack(), given_up.pack());
        if slot
            .state
            .compare_exchange(was, is, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return;
        }
    }
    give_up_embryos(family, me, index);
    settle_threads(family, index);
    tear_down_again(family, me, index);
    object::forget_process(family, me, index);
    // DEATH: the objects' books are right again and still hold its bits; they forget it a second time.
    fault::point("reclaim.forgotten");
    let mut doomed = Vec::new();
    object::with_lifetime(family, me, || {
        object::release_owner(family, me, index, &mut doomed)
    });
    object::destroy_all(family, me, doomed);
    free_blocks(family, me, index);
    for first in slabs::all(family).collect::<Vec<_>>() {
        slabs::orphan(family, first, index);
        slabs::settle(family, me, first);
    }
    runs::count_warm(family);
    // DEATH: what it owned is free, what it had on loan is not back; the next reclaimer goes on from here.
    fault::point("reclaim.freed");
    // Last: going back may need memory, of which there is more now.
    if !return_leases(family, me, index) {
        return;
    }
    // DEATH: nothing of it is left but the slot.
    fault::point("reclaim.returned");
    for word in [&slot.pid, &slot.ended, &slot.flags, &slot.exit_code] {
        word.store(0, Ordering::Release);
    }
    slot.start_time.store(0, Ordering::Release);
    slot.name
        .iter()
        .for_each(|word| word.store(0, Ordering::Release));
    let free = ProcWord {
        state: ProcState::Free,
        generation: found.generation + 1,
        parent: None,
    };
    slot.state.store(free.pack(), Ordering::Release);
}

/// Children that the process prepared and that never began.
fn give_up_embryos(family: &'static Family, me: Me, parent: u32) {
    for index in 0..family.processes().len() as u32 {
        let slot = family.process(index);
        let found = ProcWord::unpack(slot.state.load(Ordering::Acquire));
        if found.state == ProcState::Embryo
            && found.parent == Some(parent)
            && slot.pid.load(Ordering::Acquire) == 0
        {
            reclaim_in_turn(family, me, index);
        }
    }
}

/// Recovers all threads of a dead process, also those that ended in peace and kept their slots for locks.
fn settle_threads(family: &Family, process: u32) {
    for (index, slot) in family.threads().iter().enumerate() {
        loop {
            let found = ThreadWord::unpack(slot.state.load(Ordering::Acquire));
            if found.state == ThreadState::Free || found.process != process {
                break;
            }
            match slot.token.probe() {
                Life::Died => recover::recover(family, index as u32),
                Life::Free => {
                    recover::settle(family, index as u32);
                    slot.token.release();
                }
                // Someone looks at it, or recovers it just now. Should he die over it, the token comes to us.
                Life::Held => {
                    let held = slot.token.word().load(Ordering::Acquire);
                    let moment = Deadline::after(park::RECHECK);
                    park::park(family, slot.token.word(), held, Watch::Nobody, moment);
                }
            }
        }
    }
}

/// Objects that the process was taking apart.
fn tear_down_again(family: &'static Family, me: Me, process: u32) {
    for (offset, word) in owned_by(family, process, State::Private) {
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        if owner.flags & block::TEARDOWN != 0 {
            word.store(
                Owner {
                    process: me.process,
                    ..owner
                }
                .pack(),
                Ordering::Release,
            );
            object::destroy_all(family, me, vec![offset]);
        }
    }
}

/// Messages that the process had in its hands and that must not be lost with it. False if one could not go back.
fn return_leases(family: &'static Family, me: Me, process: u32) -> bool {
    let mut all = true;
    for (offset, _) in owned_by(family, process, State::Leased) {
        let Ok((block, owner)) = family.block_at(offset) else {
            continue;
        };
        let place = lease_place(family, offset, owner, block.capacity);
        let queue = family
            .region()
            .view::<AtomicU64>(place)
            .map(|w| Handle::from_bits(w.load(Ordering::Acquire)));
        let lost = queue
            .ok()
            .and_then(|queue| object::kind_of(family, queue))
            .map(|kind| kind.lost);
        match lost {
            Some(lost) => all &= lost(family, me, offset),
            // Its queue is gone: so is the message.
            None => {
                if family.transfer(offset, State::Private, me.process).is_ok() {
                    family.free(me, offset);
                }
            }
        }
    }
    all
}

/// Where a leased block names its queue: after its list of handles.
pub(crate) fn lease_place(family: &Family, offset: u64, owner: Owner, capacity: u64) -> u64 {
    if owner.flags & block::REFERENCES == 0 {
        return offset;
    }
    offset + object::references_length(object::read_count(family, offset, capacity) as usize)
}

/// The handle that stands in a block after its list of handles: that of a leased block's queue, of a pipe.
pub(crate) fn named_after(family: &Family, offset: u64) -> Handle {
    let named = family.block_at(offset).and_then(|(block, owner)| {
        let place = lease_place(family, offset, owner, block.capacity);
        let word = family.region().view::<AtomicU64>(place)?;
        Ok(word.load(Ordering::Acquire))
    });
    Handle::from_bits(named.unwrap_or(0))
}

fn free_blocks(family: &'static Family, me: Me, process: u32) {
    let mut doomed = Vec::new();
    for (offset, word) in owned_by(family, process, State::Private) {
        let owner = Owner::unpack(word.load(Ordering::Acquire));
        // DEATH: ours now; should we die, whoever reclaims us frees it.
        word.store(
            Owner {
                process: me.process,
                ..owner
            }
            .pack(),
            Ordering::Release,
        );
        family.free_into(me, offset, &mut doomed);
    }
    object::destroy_all(family, me, doomed);
}

/// The blocks that a process owns in the given state.
fn owned_by(family: &'static Family, process: u32, state: State) -> Vec<(u64, &'static AtomicU64)> {
    let mut found = in_state(family, state);
    found.retain(|(_, word)| Owner::unpack(word.load(Ordering::Acquire)).process == process);
    found
}

/// The blocks, small and large, in the given state, with their owner words.
pub(crate) fn in_state(family: &'static Family, state: State) -> Vec<(u64, &'static AtomicU64)> {
    let mut found = Vec::new();
    for (unit, owner) in runs::walk(family) {
        if owner.state == State::Slab {
            let Ok(blocks) = slabs::blocks(family, unit) else {
                continue;
            };
            found.extend(blocks.filter(|(_, word)| {
                let owner = Owner::unpack(word.load(Ordering::Acquire));
                owner.state == state
            }));
        } else if owner.state == state {
            found.push((family.unit_offset(unit), &family.units()[unit as usize]));
        }
    }
    found
}
