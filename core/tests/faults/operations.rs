//! The table: every operation of the engine.

use crate::scene::Operation;
use procession_core::Family;

/// All operations, room by room. A new one is a few lines in its room's file; a new room is a file and a line here.
pub fn all() -> Vec<Operation> {
    let rooms = [crate::memory::operations(), crate::queues::operations()];
    rooms.into_iter().flatten().collect()
}

/// A small family.
pub fn family() -> &'static Family {
    family_keeping(1 << 20)
}

/// A small family that keeps so many bytes of freed memory warm.
pub fn family_keeping(warm: u64) -> &'static Family {
    procession_core::family()
        .name("faults")
        .memory_max(5 << 19)
        .reserve(4 << 20)
        .processes_max(8)
        .threads_max(8)
        .keep_warm(warm)
        .create()
        .expect("an arena")
}

/// Fault points whose operations are not in the table yet: each run names them, and one that is passed must go from here.
pub const AWAITED: &[&str] = &[
    "barrier.changed",
    "barrier.taken",
    "condition.inherited",
    "condition.told",
    "embryo.given_up",
    "event.set",
    "guarded.written",
    "locker.turned",
    "pipe.counted",
    "pipe.in_transit",
    "pipe.received",
    "pipe.seized",
    "pipe.taken",
    "pool.answered",
    "pool.claimed",
    "semaphore.booked",
    "semaphore.forgotten",
    "semaphore.given",
    "zygote.collected",
    "zygote.forked",
    "zygote.requested",
];
