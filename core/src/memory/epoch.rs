//! Which copy of the process this is: a number that every fork changes.
//!
//! What belongs to one process alone (its slot, its free lists, its threads' seats) is marked with the epoch in which it
//! was made; in a forked child the marks no longer match, and the child makes its own. It works for a fork that nobody
//! announced (`os.fork`, a bare `clone`), because the kernel itself clears the word.

use crate::sys::memory;
use crate::sys::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

static WORD: OnceLock<&'static AtomicU32> = OnceLock::new();

/// The highest epoch so far along this line of forks.
static LAST: AtomicU32 = AtomicU32::new(0);

/// Stands in where the kernel cannot wipe a page; the atfork handler clears it.
static UNWIPED: AtomicU32 = AtomicU32::new(0);

/// The epoch of the calling process, never 0.
#[inline]
pub(crate) fn current() -> u32 {
    let word = WORD.get_or_init(install);
    let epoch = word.load(Ordering::Relaxed);
    if epoch != 0 { epoch } else { begin(word) }
}

/// The first call in a process or in a forked child.
#[cold]
fn begin(word: &AtomicU32) -> u32 {
    let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => next,
        Err(other_thread) => other_thread,
    }
}

#[cold]
fn install() -> &'static AtomicU32 {
    extern "C" fn nothing() {}
    extern "C" fn forked() {
        if let Some(word) = WORD.get() {
            word.store(0, Ordering::Relaxed);
        }
    }
    process::at_fork(nothing, nothing, forked);
    memory::word_wiped_on_fork().unwrap_or(&UNWIPED)
}
