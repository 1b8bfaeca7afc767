//! Seats in the family: one slot for each process, one for each thread that uses the arena.
//!
//! A thread takes its slot when it first needs it and keeps it until it ends. The slot's life token is locked all that
//! time; nothing else says that the thread lives.

use super::epoch;
use super::family::{Family, Me};
use super::latch::{self, Holder};
use super::layout::{ProcSlot, ThreadSlot};
use super::recover;
use crate::error::{Error, Result};
use crate::fault;
use crate::sys::process;
use crate::sys::token::Life;
use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

/// What a process slot is, in the low byte of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ProcState {
    /// Nobody's.
    Free = 0,
    /// A parent prepares it for a child that is not running yet.
    Embryo = 1,
    /// A process uses it.
    Alive = 2,
}

/// A process slot's state word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcWord {
    pub(crate) state: ProcState,
    pub(crate) generation: u32,
    /// The slot of the process that started it; `None` for a root, a raw fork, a process whose parent is gone.
    pub(crate) parent: Option<u32>,
}

impl ProcWord {
    pub(crate) fn unpack(word: u64) -> ProcWord {
        let state = match word as u8 {
            1 => ProcState::Embryo,
            2 => ProcState::Alive,
            _ => ProcState::Free,
        };
        let parent = ((word >> 32) as u32).checked_sub(1);
        ProcWord {
            state,
            generation: (word >> 8) as u32 & 0xff_ffff,
            parent,
        }
    }

    pub(crate) fn pack(self) -> u64 {
        let parent = self.parent.map_or(0, |slot| slot + 1);
        self.state as u64 | u64::from(self.generation & 0xff_ffff) << 8 | u64::from(parent) << 32
    }
}

/// What a thread slot is, in the low byte of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ThreadState {
    /// Nobody's.
    Free = 0,
    /// A thread uses it, and holds its token.
    Seated = 1,
    /// Its thread ended in peace holding locks, which stay held until they are released or the process ends.
    Lingering = 2,
}

/// A thread slot's state word, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadWord {
    pub(crate) state: ThreadState,
    pub(crate) generation: u32,
    /// The process slot it belongs to.
    pub(crate) process: u32,
}

impl ThreadWord {
    pub(crate) fn unpack(word: u64) -> ThreadWord {
        let state = match word as u8 {
            1 => ThreadState::Seated,
            2 => ThreadState::Lingering,
            _ => ThreadState::Free,
        };
        ThreadWord {
            state,
            generation: (word >> 8) as u32 & 0xff_ffff,
            process: (word >> 32) as u32,
        }
    }

    pub(crate) fn pack(self) -> u64 {
        self.state as u64
            | u64::from(self.generation & 0xff_ffff) << 8
            | u64::from(self.process) << 32
    }
}

/// A thread's place in one family.
#[derive(Debug)]
struct Seat {
    family: &'static Family,
    me: Me,
    epoch: u32,
    /// Locks held that outlive a call: a thread that ends with some keeps its slot for them.
    held: Cell<i32>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        // In a forked child the seats of the parent's threads are only copies.
        if self.epoch == epoch::current() {
            self.family.leave(self.me, self.held.get() > 0);
        }
    }
}

thread_local! {
    /// The seat used last: (family, epoch, me).
    static LAST: Cell<(*const Family, u32, Me)> = const { Cell::new((std::ptr::null(), 0, Me::NOBODY)) };
    static SEATS: RefCell<Vec<Seat>> = const { RefCell::new(Vec::new()) };
}

impl Family {
    /// The calling thread's place in this family; taken now if it has none yet.
    #[inline]
    pub(crate) fn me(&'static self) -> Result<Me> {
        let (family, epoch, me) = LAST.get();
        if std::ptr::eq(family, self) && epoch == epoch::current() {
            return Ok(me);
        }
        self.find_seat()
    }

    #[cold]
    fn find_seat(&'static self) -> Result<Me> {
        let epoch = epoch::current();
        let known = SEATS.try_with(|seats| {
            seats
                .borrow()
                .iter()
                .find(|s| std::ptr::eq(s.family, self) && s.epoch == epoch)
                .map(|s| s.me)
        });
        let me = match known {
            Ok(Some(me)) => me,
            Ok(None) => {
                let me = self.claim_thread(self.process_slot()?)?;
                self.sit(me);
                me
            }
            // The thread is being torn down and its seats are gone: it sits for what is left of its life, and the
            // kernel tells when that ended.
            Err(_) => self.claim_thread(self.process_slot()?)?,
        };
        LAST.set((self, epoch, me));
        Ok(me)
    }

    /// Notes the calling thread's place, to be left when the thread ends.
    pub(crate) fn sit(&'static self, me: Me) {
        let epoch = epoch::current();
        let seat = Seat {
            family: self,
            me,
            epoch,
            held: Cell::new(0),
        };
        SEATS.with(|seats| {
            let mut seats = seats.borrow_mut();
            seats.retain(|seat| seat.epoch == epoch);
            seats.push(seat);
        });
        LAST.set((self, epoch, me));
    }

    /// Counts locks that the calling thread holds beyond one call.
    pub(crate) fn count_held(&'static self, change: i32) {
        let _ = SEATS.try_with(|seats| {
            if let Some(seat) = seats.borrow().iter().find(|s| std::ptr::eq(s.family, self)) {
                seat.held.set(seat.held.get() + change);
            }
        });
    }

    /// Ends the calling thread's seat before the thread ends.
    pub(crate) fn give_up_seat(&'static self) {
        let _ = SEATS.try_with(|seats| {
            seats
                .borrow_mut()
                .retain(|seat| !std::ptr::eq(seat.family, self));
        });
    }

    /// Gives up the calling thread's place, at the end of the thread.
    pub(crate) fn leave(&'static self, me: Me, holds_locks: bool) {
        LAST.set((std::ptr::null(), 0, Me::NOBODY));
        let slot = self.thread(me.slot);
        let seated = ThreadWord::unpack(slot.state.load(Ordering::Relaxed));
        // DEATH: dead before the token is released, the thread is recovered like any other: nothing of it is open.
        let left = if holds_locks {
            ThreadWord {
                state: ThreadState::Lingering,
                ..seated
            }
        } else {
            ThreadWord {
                state: ThreadState::Free,
                ..seated
            }
        };
        slot.state.store(left.pack(), Ordering::Release);
        slot.token.release();
        // Whoever sleeps on the token (it was busy when they looked) looks again.
        crate::sys::futex::wake_all(slot.token.word());
    }

    /// Takes a free thread slot for the calling thread.
    pub(crate) fn claim_thread(&'static self, process: u32) -> Result<Me> {
        let count = self.threads().len() as u32;
        for swept in [false, true] {
            let start = self.header().thread_hint.fetch_add(1, Ordering::Relaxed);
            for step in 0..count {
                let index = start.wrapping_add(step) % count;
                let slot = self.thread(index);
                if ThreadWord::unpack(slot.state.load(Ordering::Relaxed)).state != ThreadState::Free
                    && !swept
                {
                    continue;
                }
                match slot.token.probe() {
                    Life::Held => continue,
                    Life::Died => {
                        recover::recover(self, index);
                        continue;
                    }
                    Life::Free => {}
                }
                let found = ThreadWord::unpack(slot.state.load(Ordering::Relaxed));
                if found.state == ThreadState::Lingering && !self.is_process_dead(found.process) {
                    slot.token.release();
                    continue;
                }
                if found.state != ThreadState::Free {
                    recover::settle(self, index);
                }
                // A slot's generation counts deaths, not seats: nothing names a thread that left in peace.
                let found = ThreadWord::unpack(slot.state.load(Ordering::Relaxed));
                slot.tid.store(process::tid(), Ordering::Relaxed);
                let seated = ThreadWord {
                    state: ThreadState::Seated,
                    process,
                    ..found
                };
                slot.state.store(seated.pack(), Ordering::Release);
                return Ok(Me {
                    slot: index,
                    word: latch::holder_word(index, found.generation),
                    process,
                });
            }
        }
        Err(Error::Exhausted {
            what: "thread slots",
            limit: count.into(),
        })
    }

    /// What a lock word says of its holder without a look at the holder's life: only a recovered one counts as dead.
    #[inline]
    pub(crate) fn holder_as_written(&self, word: u32) -> Holder {
        let Some((index, generation)) = latch::holder_of(word) else {
            return Holder::Nobody;
        };
        match self.threads().get(index as usize) {
            Some(slot) if !self.is_stale(slot, generation) => Holder::Alive(index),
            _ => Holder::Dead,
        }
    }

    /// Whether a lock word's holder lives. A dead one is recovered before the answer.
    #[inline]
    pub(crate) fn holder_state(&self, word: u32) -> Holder {
        let Some((index, generation)) = latch::holder_of(word) else {
            return Holder::Nobody;
        };
        let Some(slot) = self.threads().get(index as usize) else {
            // No such slot: a wild write. Whoever it was does not hold anything.
            return Holder::Dead;
        };
        if self.is_stale(slot, generation) {
            return Holder::Dead;
        }
        match slot.token.probe() {
            Life::Held => {}
            Life::Died => {
                recover::recover(self, index);
            }
            Life::Free => {
                let found = ThreadWord::unpack(slot.state.load(Ordering::Acquire));
                if found.state == ThreadState::Lingering && self.is_process_dead(found.process) {
                    recover::settle(self, index);
                }
                slot.token.release();
            }
        }
        // Recovery raises the generation: the word is stale then, whoever did it.
        if self.is_stale(slot, generation) {
            Holder::Dead
        } else {
            Holder::Alive(index)
        }
    }

    fn is_stale(&self, slot: &ThreadSlot, generation: u32) -> bool {
        ThreadWord::unpack(slot.state.load(Ordering::Acquire)).generation % latch::GENERATIONS
            != generation
    }

    /// Whether the slot's thread ended in peace but keeps locks.
    pub(crate) fn is_lingering(&self, index: u32) -> bool {
        ThreadWord::unpack(self.thread(index).state.load(Ordering::Acquire)).state
            == ThreadState::Lingering
    }

    /// Takes a free process slot in the given state: an embryo's without a number, any other with the caller's.
    ///
    /// A slot in use must tell at once which process to ask after, or others would take the newcomer for dead. So it is
    /// described while it is still free, by one at a time: the claimant.
    pub(crate) fn claim_process(
        &'static self,
        state: ProcState,
        parent: Option<u32>,
    ) -> Result<u32> {
        let mine = claimant();
        for (index, slot) in self.processes().iter().enumerate() {
            let found = ProcWord::unpack(slot.state.load(Ordering::Acquire));
            let before = slot.claimant.load(Ordering::Acquire);
            if found.state != ProcState::Free
                || is_claimant_alive(before)
                || slot
                    .claimant
                    .compare_exchange(before, mine, Ordering::AcqRel, Ordering::Relaxed)
                    .is_err()
            {
                continue;
            }
            // DEATH: a claim of a dead process, which the next to come takes over.
            fault::point("slots.claimed");
            // Looked at again: it may have been taken between the two looks above.
            let word = slot.state.load(Ordering::Acquire);
            let found = ProcWord::unpack(word);
            let taken = found.state == ProcState::Free && {
                match state {
                    ProcState::Embryo => slot.pid.store(0, Ordering::Release),
                    ProcState::Free | ProcState::Alive => self.describe_process(index as u32),
                }
                let claimed = ProcWord {
                    state,
                    parent,
                    generation: found.generation,
                };
                slot.state
                    .compare_exchange(word, claimed.pack(), Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            };
            let _ = slot
                .claimant
                .compare_exchange(mine, 0, Ordering::AcqRel, Ordering::Relaxed);
            if taken {
                return Ok(index as u32);
            }
        }
        Err(Error::Exhausted {
            what: "process slots",
            limit: self.processes().len() as u64,
        })
    }

    /// Writes into a slot which process uses it.
    pub(crate) fn describe_process(&self, index: u32) {
        let slot = self.process(index);
        let pid = process::pid();
        slot.start_time
            .store(process::start_time(pid).unwrap_or(0), Ordering::Release);
        slot.pid_namespace
            .store(process::pid_namespace(), Ordering::Release);
        slot.pid.store(pid, Ordering::Release);
    }

    /// Whether the process of a slot is gone: none of its threads lives in the family, and the system knows it no more.
    pub(crate) fn is_process_dead(&self, index: u32) -> bool {
        let slot = self.process(index);
        let word = ProcWord::unpack(slot.state.load(Ordering::Acquire));
        match word.state {
            ProcState::Free => return true,
            ProcState::Embryo | ProcState::Alive => {}
        }
        // Seen to end: a token that is held still is in the hands of someone who looks at it or recovers it.
        if slot.ended.load(Ordering::Acquire) != 0 {
            return true;
        }
        if self.has_living_thread(index) {
            return false;
        }
        let pid = slot.pid.load(Ordering::Acquire);
        if pid == 0 {
            // Not started yet: it lives as long as the one who prepares it; without that one it is given up.
            return word
                .parent
                .is_none_or(|parent| parent != index && self.is_process_dead(parent));
        }
        if slot.pid_namespace.load(Ordering::Relaxed) != process::pid_namespace() {
            // Its number means nothing here. Its parent will see it end, and set `ended`.
            return false;
        }
        let started = slot.start_time.load(Ordering::Relaxed);
        match process::start_time(pid) {
            Some(now) => started != 0 && now != started,
            None => !process::is_hidden(pid),
        }
    }

    fn has_living_thread(&self, process: u32) -> bool {
        self.threads().iter().enumerate().any(|(index, slot)| {
            let found = ThreadWord::unpack(slot.state.load(Ordering::Acquire));
            if found.state != ThreadState::Seated || found.process != process {
                return false;
            }
            match slot.token.probe() {
                Life::Held => true,
                Life::Died => {
                    recover::recover(self, index as u32);
                    false
                }
                Life::Free => {
                    slot.token.release();
                    false
                }
            }
        })
    }

    pub(crate) fn process(&self, index: u32) -> &'static ProcSlot {
        &self.processes()[index as usize]
    }

    #[inline]
    pub(crate) fn thread(&self, index: u32) -> &'static ThreadSlot {
        &self.threads()[index as usize]
    }
}

/// The calling process, in one word.
///
/// ```text
///  63            32 31             22 21       0
///  start time       pid namespace     number
/// ```
fn claimant() -> u64 {
    let pid = process::pid();
    let started = process::start_time(pid).unwrap_or(0);
    started << 32 | namespace_bits() | u64::from(pid)
}

/// Whether the process of a [`claimant`] word may be moving in still.
fn is_claimant_alive(word: u64) -> bool {
    let (pid, started) = ((word & 0x3f_ffff) as u32, word >> 32);
    if pid == 0 {
        return false;
    }
    if word & 0xffc0_0000 != namespace_bits() {
        // Its number means nothing here.
        return true;
    }
    match process::start_time(pid) {
        Some(now) => started == 0 || now & 0xffff_ffff == started,
        None => process::is_hidden(pid),
    }
}

fn namespace_bits() -> u64 {
    (process::pid_namespace() & 0x3ff) << 22
}
