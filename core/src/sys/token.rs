//! A mutex in shared memory of which the kernel tells that its owner died.
//!
//! Each thread of a family takes one such token when it enters and keeps it. Nobody ever waits *in* it: others look at
//! it with [`Token::probe`], and sleep on its word to be woken when the kernel marks it. Only the public pthread
//! interface locks and unlocks it; the one liberty is to set `FUTEX_WAITERS` in its word, which is the kernel's ABI for
//! "wake someone when the owner dies" (robust-futex-ABI).
#![allow(unsafe_code, reason = "calls pthread")]

use crate::error::{Error, Result};
use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU32, Ordering};

/// What the kernel sets for sleepers (`FUTEX_WAITERS`).
const WAITERS: u32 = 0x8000_0000;

/// What the kernel sets in place of an owner that died (`FUTEX_OWNER_DIED`).
const OWNER_DIED: u32 = 0x4000_0000;

/// The bits that number the owner (`FUTEX_TID_MASK`).
const OWNER: u32 = 0x3fff_ffff;

/// Where the futex word lies in a `pthread_mutex_t`: first in glibc, after the type in musl.
const WORD: usize = if cfg!(target_env = "musl") { 4 } else { 0 };

/// The life of one thread, as the kernel sees it.
#[repr(C, align(64))]
pub(crate) struct Token {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
}

// SAFETY: a process-shared pthread mutex is made to be used from any thread of any process.
unsafe impl Sync for Token {}

/// What a look at a token found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Its owner lives, or someone else is recovering it just now.
    Held,
    /// Nobody owned it; now the caller does.
    Free,
    /// Its owner is dead; the caller is elected to recover it, and owns the token now.
    Died,
}

impl Token {
    /// Makes the token usable; once, before anyone else can see it.
    pub(crate) fn init(&self) -> Result<()> {
        // SAFETY: the attribute is initialised before use and the mutex is not in use yet, by contract.
        let code = unsafe {
            let mut attr = std::mem::MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
            let code = libc::pthread_mutexattr_init(attr.as_mut_ptr());
            if code == 0 {
                libc::pthread_mutexattr_setpshared(attr.as_mut_ptr(), libc::PTHREAD_PROCESS_SHARED);
                libc::pthread_mutexattr_setrobust(attr.as_mut_ptr(), libc::PTHREAD_MUTEX_ROBUST);
                let code = libc::pthread_mutex_init(self.mutex.get(), attr.as_ptr());
                libc::pthread_mutexattr_destroy(attr.as_mut_ptr());
                code
            } else {
                code
            }
        };
        if code == 0 {
            Ok(())
        } else {
            Err(Error::os(
                "make a life token",
                std::io::Error::from_raw_os_error(code),
            ))
        }
    }

    /// Looks whether the owner lives; takes the token when it does not.
    pub(crate) fn probe(&self) -> Life {
        // SAFETY: the token was initialised with the arena, before its offset could be known.
        match unsafe { libc::pthread_mutex_trylock(self.mutex.get()) } {
            0 => Life::Free,
            libc::EOWNERDEAD => Life::Died,
            _ => Life::Held,
        }
    }

    /// Gives up a token that `probe` answered with [`Life::Died`], as one that is free and whole again.
    pub(crate) fn release_recovered(&self) {
        // SAFETY: the calling thread owns the mutex: `probe` gave it.
        unsafe {
            libc::pthread_mutex_consistent(self.mutex.get());
            libc::pthread_mutex_unlock(self.mutex.get());
        }
    }

    /// Gives up a token that the calling thread owns.
    pub(crate) fn release(&self) {
        // SAFETY: the calling thread owns the mutex.
        unsafe { libc::pthread_mutex_unlock(self.mutex.get()) };
    }

    /// The word on which to sleep until the owner dies.
    pub(crate) fn word(&self) -> &AtomicU32 {
        // SAFETY: the word lies inside the mutex, is aligned, and libc touches it with atomic instructions only.
        unsafe { &*self.mutex.get().cast::<u8>().add(WORD).cast::<AtomicU32>() }
    }

    /// Asks the kernel to wake a sleeper when the owner dies, and tells the value to sleep on; `None` when the owner is
    /// dead already, and the kernel has nothing more to tell.
    ///
    /// A token without an owner is left as it is: a word that says only `WAITERS` would never be free again.
    pub(crate) fn watch(&self) -> Option<u32> {
        let mut seen = self.word().load(Ordering::Acquire);
        loop {
            if seen & OWNER_DIED != 0 {
                return None;
            }
            if seen & WAITERS != 0 || seen & OWNER == 0 {
                return Some(seen);
            }
            let flagged = seen | WAITERS;
            match self
                .word()
                .compare_exchange(seen, flagged, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return Some(flagged),
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Box<Token> {
        let token = Box::new(Token {
            // SAFETY: bytes of a mutex that `init` makes one.
            mutex: UnsafeCell::new(unsafe { std::mem::zeroed() }),
        });
        token.init().unwrap();
        token
    }

    #[test]
    fn watching_a_free_token_leaves_it_free() {
        let token = token();
        assert_eq!(token.watch(), Some(0));
        assert_eq!(token.probe(), Life::Free);
        token.release();
    }

    #[test]
    fn a_dead_owner_leaves_nothing_to_sleep_on() {
        let token = token();
        std::thread::scope(|scope| {
            // Joined by hand: a scope waits for the closure alone, not for the thread's end.
            let owner = scope.spawn(|| assert_eq!(token.probe(), Life::Free));
            owner.join().unwrap();
        });
        assert_eq!(token.watch(), None);
        assert_eq!(token.probe(), Life::Died);
        token.release_recovered();
        assert_eq!(token.probe(), Life::Free);
        token.release();
    }
}
