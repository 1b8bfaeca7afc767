//! The one operation that a thread has in flight, written down so that others can finish or undo it.
//!
//! An intent is opened only while the thread holds the latch that guards what it changes, and closed before it lets go.
//! So whoever finds a dead thread's intent finds everything as the thread left it: nobody else could enter. Between
//! the two a thread waits for nothing, and opens no second one. Resuming is idempotent, for a recoverer may die too.

use super::family::{Family, Me};
use std::sync::atomic::Ordering;

/// An operation that can be found half done: the room that knows it, and its number there.
///
/// The room is an index in the table of kinds, so that memory need not name the rooms above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) kind: u32,
    pub(crate) code: u32,
}

/// An open intent, as recovery reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    pub(crate) op: Op,
    pub(crate) args: [u64; 6],
    /// The process slot of the thread that opened it.
    pub(crate) process: u32,
}

impl Family {
    /// Opens the calling thread's intent.
    #[inline]
    pub(crate) fn intend(&self, me: Me, op: Op, args: &[u64]) {
        let slot = self.thread(me.slot);
        debug_assert_eq!(
            slot.intent.load(Ordering::Relaxed),
            0,
            "a thread has one operation in flight"
        );
        for (place, arg) in slot.intent_args.iter().zip(args) {
            place.store(*arg, Ordering::Release);
        }
        // ORDERING: Release after the arguments: who sees the intent sees all of it.
        slot.intent.store(
            1 << 63 | u64::from(op.kind) << 32 | u64::from(op.code),
            Ordering::Release,
        );
    }

    /// Closes it: the operation is done, or was not begun.
    #[inline]
    pub(crate) fn fulfil(&self, me: Me) {
        self.thread(me.slot).intent.store(0, Ordering::Release);
    }

    /// The intent that the thread of a slot left open.
    pub(crate) fn open_intent(&self, index: u32) -> Option<Intent> {
        let slot = self.thread(index);
        let word = slot.intent.load(Ordering::Acquire);
        if word == 0 {
            return None;
        }
        let op = Op {
            kind: (word >> 32) as u32 & 0x7fff_ffff,
            code: word as u32,
        };
        let args = std::array::from_fn(|i| slot.intent_args[i].load(Ordering::Acquire));
        let process = super::slots::ThreadWord::unpack(slot.state.load(Ordering::Acquire)).process;
        Some(Intent { op, args, process })
    }
}
