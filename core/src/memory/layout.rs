//! What lies where in an arena.
//!
//! ```text
//! 0            header            one page: magic, limits, growth, the family's latches
//!              process slots     256 bytes each
//!              thread slots      256 bytes each, with the life tokens
//!              unit table        8 bytes for each unit of 16 KiB that the arena may ever have
//! units_start  units             runs of whole units: large blocks, and slabs of small ones
//! ```
//!
//! Nothing here is a pointer: offsets from the start of the arena, in bytes. All of it is atomics, because another
//! process may write at any moment; every store that another reads is a `Release`, so that what a killed thread leaves
//! behind is a prefix of its program.

use crate::sys::token::Token;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

/// "procssn" and the version of this layout. An arena of another version is refused.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"procssn\x01");

/// The unit of growth and of large blocks, in bytes.
pub(crate) const UNIT: u64 = 16 * 1024;

/// A cache line, in bytes; offsets in handles count them.
pub(crate) const LINE: u64 = 64;

/// A page of the smallest kind, in bytes; what is given back to the system is a multiple of it.
pub(crate) const PAGE: u64 = 4096;

/// Size classes of small blocks.
pub(crate) const CLASSES: usize = 8;

/// Words of an object's owner bits; one bit for each process slot.
pub(crate) const OWNER_WORDS: usize = 16;

/// The most process slots that an arena can have, by the owner bits.
pub(crate) const PROCESSES_MAX: u32 = OWNER_WORDS as u32 * 64;

/// The most thread slots, by the bits of a lock word.
pub(crate) const THREADS_MAX: u32 = (1 << 14) - 2;

/// A type that may be looked at in the arena while other processes write it.
///
/// # Safety
///
/// The type is `repr(C)`, all of its bytes may hold anything, and all of it may change under a shared reference: it is
/// made of atomics.
#[expect(
    unsafe_code,
    reason = "the promise that makes views of the arena safe for everyone else"
)]
pub(crate) unsafe trait Shared {}

macro_rules! shared_atomics {
    ($($atomic:ty),*) => {$(
        // SAFETY: an atomic integer.
        #[expect(unsafe_code, reason = "an atomic integer")]
        unsafe impl Shared for $atomic {}
    )*};
}
shared_atomics!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

// SAFETY: elements are shared types.
#[expect(unsafe_code, reason = "an array of shared types")]
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

// SAFETY: a pthread mutex is made for this; its bytes were initialised when the arena was created.
#[expect(unsafe_code, reason = "a process-shared pthread mutex")]
unsafe impl Shared for Token {}

/// Declares a struct of the arena: `repr(C)`, its size checked, every field a [`Shared`] type.
macro_rules! shared {
    ($(#[$meta:meta])* $vis:vis struct $name:ident: $size:literal {
        $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty,)*
    }) => {
        $(#[$meta])*
        #[repr(C, align(8))]
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type,)*
        }

        const _: () = {
            assert!(std::mem::size_of::<$name>() == $size);
            const fn is_shared<T: $crate::memory::layout::Shared>() {}
            $(is_shared::<$type>();)*
        };

        // SAFETY: `repr(C)`, and the lines above made sure that every field is shared.
        #[expect(unsafe_code, reason = "every field is shared, checked above")]
        unsafe impl $crate::memory::layout::Shared for $name {}
    };
}
pub(crate) use shared;

shared! {
    /// The first page. What stands above `committed` is written once, before anyone else can see it.
    pub(crate) struct Header: 448 {
        pub(crate) magic: AtomicU64,
        /// A random number for the family, by which its members know each other.
        pub(crate) family: [AtomicU64; 2],
        pub(crate) processes_max: AtomicU32,
        pub(crate) threads_max: AtomicU32,
        /// Where the unit table lies.
        pub(crate) table_start: AtomicU64,
        /// Where unit 0 lies.
        pub(crate) units_start: AtomicU64,
        /// The most units that there may ever be.
        pub(crate) units_max: AtomicU64,
        /// How many free units keep their pages.
        pub(crate) keep_warm: AtomicU64,

        /// Bytes of the file that may be touched. Grows only, after the file has.
        pub(crate) committed: AtomicU64,
        /// Units that exist. Grows only, after `committed`.
        pub(crate) units: AtomicU64,
        /// Serialises splitting, joining and growing of runs.
        pub(crate) runs: super::latch::Latch,
        /// Serialises what decides whether an object lives: attach, the last detach, references in messages.
        pub(crate) lifetime: super::latch::Latch,
        /// Serialises the reclaim of dead processes.
        pub(crate) reclaim: super::latch::Latch,
        /// Serialises reading of the locker.
        pub(crate) locker: super::latch::Latch,
        /// Where the next search for a free run starts. A hint.
        pub(crate) run_hint: AtomicU64,
        /// Free units whose pages are kept. A hint: a death between two stores makes it drift; reclaim counts anew.
        pub(crate) warm: AtomicU64,
        /// The next object's generation.
        pub(crate) generation: AtomicU32,
        /// Where the next search for a thread slot starts. A hint.
        pub(crate) thread_hint: AtomicU32,
        /// Slabs without a home, by class. A hint that says whether to look for one.
        pub(crate) orphans: [AtomicU32; CLASSES],
        /// Tickets of the locker: deposited, and first still inside.
        pub(crate) locker_put: AtomicU64,
        pub(crate) locker_first: AtomicU64,
        pub(crate) reserved: [AtomicU64; 33],
    }
}

shared! {
    /// What the family knows of one process.
    pub(crate) struct ProcSlot: 256 {
        /// `state | generation << 8 | (parent + 1) << 32`: see [`super::slots::ProcState`].
        pub(crate) state: AtomicU64,
        /// Its number, 0 while it has none yet.
        pub(crate) pid: AtomicU32,
        /// Set when someone saw it end: the process is dead, whatever `/proc` says.
        pub(crate) ended: AtomicU32,
        /// When it started, in clock ticks since boot; 0 unknown.
        pub(crate) start_time: AtomicU64,
        /// The pid namespace in which `pid` counts.
        pub(crate) pid_namespace: AtomicU64,
        /// What it exited with, valid once `ended` is set: the code, or the negative signal, as `i32`.
        pub(crate) exit_code: AtomicU32,
        pub(crate) flags: AtomicU32,
        /// The most memory it had resident, in bytes, once it ended.
        pub(crate) peak_memory: AtomicU64,
        /// Blocks of its slabs that others freed, by class, counted round: a hint to look through the slabs again.
        pub(crate) freed: [AtomicU32; CLASSES],
        /// Its name for people, UTF-8, zero-filled.
        pub(crate) name: [AtomicU64; 6],
        /// Who is about to take the slot while it is free: see [`super::slots::claimant`]. It means nothing in any other
        /// state.
        pub(crate) claimant: AtomicU64,
        pub(crate) reserved: [AtomicU64; 15],
    }
}

shared! {
    /// What the family knows of one thread: the words that cover everything a kill can break.
    ///
    /// A lock word names a slot and its generation, never a thread number.
    pub(crate) struct ThreadSlot: 256 {
        /// Held by the thread for as long as it is in the family.
        pub(crate) token: Token,
        /// `state | generation << 8 | process << 32`: see [`super::slots::ThreadState`].
        pub(crate) state: AtomicU64,
        /// The futex word to wake if the thread dies: something was published, the wake not sent yet.
        pub(crate) wake_owed: AtomicU64,
        /// The latch on which the thread sleeps or was woken: if it dies, someone else must be woken for it.
        pub(crate) waiting_on: AtomicU64,
        /// The bell that woke it, or will: if it dies before it took what the bell rang for, someone else must be woken.
        pub(crate) answering: AtomicU64,
        /// What the operation in flight is; 0 none. Written last, cleared first.
        pub(crate) intent: AtomicU64,
        /// Its parts; what each means stands with the operation.
        pub(crate) intent_args: [AtomicU64; 6],
        /// Its number, for people.
        pub(crate) tid: AtomicU32,
        pub(crate) reserved32: AtomicU32,
        pub(crate) reserved: [AtomicU64; 12],
    }
}
