//! Children made by a plain fork, and memory beside the arena in which the tests keep the truth.
#![allow(unsafe_code, reason = "forks, kills and maps")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long a test may take before its processes are ended by SIGALRM.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);

/// A forked child; killed and collected when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    pid: i32,
    ended: Option<i32>,
}

/// Runs `work` in a forked child, which exits with what it returns.
pub(crate) fn fork(work: impl FnOnce() -> i32) -> Child {
    // SAFETY: the child uses the engine and ends by `_exit`; nothing else of the test process runs in it.
    match unsafe { libc::fork() } {
        -1 => panic!("fork failed"),
        0 => {
            // SAFETY: as above.
            unsafe { libc::alarm(WATCHDOG.as_secs() as u32) };
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
            // SAFETY: as above.
            unsafe { libc::_exit(code) }
        }
        pid => Child { pid, ended: None },
    }
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.pid as u32
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, number: i32) {
        // SAFETY: a child that was not collected yet.
        unsafe { libc::kill(self.pid, number) };
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    /// Waits for its end: the exit code, or the negative signal.
    pub(crate) fn wait(&mut self) -> i32 {
        if let Some(code) = self.ended {
            return code;
        }
        let mut status = 0;
        // SAFETY: the pointer is valid.
        let got = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!(got, self.pid, "the child is ours");
        let code = if libc::WIFSIGNALED(status) {
            -libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        };
        self.ended = Some(code);
        code
    }

    /// Waits for its end, which must be a success.
    #[track_caller]
    pub(crate) fn succeed(&mut self) {
        assert_eq!(self.wait(), 0, "the child failed");
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}

/// Words shared with all forked children, outside the arena.
#[derive(Clone, Copy)]
pub(crate) struct Words(&'static [AtomicU32]);

impl Words {
    pub(crate) fn new(count: usize) -> Words {
        let bytes = count * 4;
        // SAFETY: a fresh shared mapping of that size, zero, never unmapped.
        unsafe {
            let (access, kind) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            );
            let base = libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            Words(std::slice::from_raw_parts(base.cast(), count))
        }
    }

    pub(crate) fn get(&self, index: usize) -> u32 {
        self.0[index].load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, index: usize, value: u32) {
        self.0[index].store(value, Ordering::SeqCst);
    }

    pub(crate) fn add(&self, index: usize, value: u32) -> u32 {
        self.0[index].fetch_add(value, Ordering::SeqCst)
    }
}

/// Waits for a condition under the watchdog.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < WATCHDOG, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// Random numbers from a printed seed.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// From `PROCESSION_SEED`, or the clock.
    pub(crate) fn new(test: &str) -> Random {
        let seed = std::env::var("PROCESSION_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.map_or(1, |now| now.as_nanos() as u64)
            });
        println!("{test}: PROCESSION_SEED={seed}");
        Random(seed | 1)
    }

    pub(crate) fn seeded(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[track_caller]
pub(crate) fn assert_sound(family: &'static procession_core::Family) {
    let findings = family.fsck().expect("a check");
    assert_eq!(findings.faults, Vec::<String>::new());
}
