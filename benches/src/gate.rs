//! A page that all sides of a measurement share, whether they are threads or processes.

use std::sync::atomic::{AtomicU64, Ordering};

/// After how long a side that hangs is ended.
const WATCHDOG_SECONDS: u32 = 120;

/// How often a measurement runs: first to get warm, then to be timed.
pub(crate) const PASSES: usize = 2;

#[repr(C)]
struct Words {
    arrived: [AtomicU64; PASSES],
    finished: [AtomicU64; PASSES],
    begin: AtomicU64,
    end: AtomicU64,
    answer: AtomicU64,
}

/// Where the sides meet, and where the clock is kept.
pub(crate) struct Gate {
    words: &'static Words,
    parties: u64,
}

impl Gate {
    pub(crate) fn new(parties: u64) -> Gate {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping of zeros, large enough for `Words`, which is made of atomics; unmapped by `drop`.
        let words = unsafe {
            let page = libc::mmap(
                std::ptr::null_mut(),
                size_of::<Words>(),
                access,
                kind,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED, "a page to share");
            &*page.cast::<Words>()
        };
        words.begin.store(u64::MAX, Ordering::SeqCst);
        Gate { words, parties }
    }

    /// Waits until all sides have come to this pass.
    pub(crate) fn meet(&self, pass: usize) {
        let arrived = &self.words.arrived[pass];
        arrived.fetch_add(1, Ordering::SeqCst);
        while arrived.load(Ordering::SeqCst) < self.parties {
            std::thread::yield_now();
        }
    }

    /// Counts one more side of a kind as finished, and tells how many there are now.
    pub(crate) fn finish(&self, pass: usize) -> u64 {
        self.words.finished[pass].fetch_add(1, Ordering::SeqCst) + 1
    }

    pub(crate) fn begin(&self) {
        self.words.begin.fetch_min(nanos(), Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        self.words.end.fetch_max(nanos(), Ordering::SeqCst);
    }

    /// From the first [`Gate::begin`] to the last [`Gate::end`].
    pub(crate) fn elapsed(&self) -> u64 {
        let begin = self.words.begin.load(Ordering::SeqCst);
        self.words.end.load(Ordering::SeqCst).saturating_sub(begin)
    }

    pub(crate) fn set_answer(&self, answer: f64) {
        self.words.answer.store(answer.to_bits(), Ordering::SeqCst);
    }

    pub(crate) fn answer(&self) -> f64 {
        f64::from_bits(self.words.answer.load(Ordering::SeqCst))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and borrows of it end with `self`.
        unsafe {
            libc::munmap(
                std::ptr::from_ref(self.words).cast_mut().cast(),
                size_of::<Words>(),
            )
        };
    }
}

/// The monotonic clock, which all processes share.
fn nanos() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A forked process; it must be waited for.
pub(crate) struct Forked {
    pid: i32,
}

/// Runs `work` in a forked process.
pub(crate) fn run_in_process(work: impl FnOnce()) -> Forked {
    // SAFETY: the caller has no other threads; the child ends by `_exit`.
    match unsafe { libc::fork() } {
        -1 => panic!("fork failed"),
        0 => {
            // SAFETY: plain system calls. A process that loses its parent ends too.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::alarm(WATCHDOG_SECONDS);
            }
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(done.is_err())) }
        }
        pid => Forked { pid },
    }
}

impl Forked {
    /// Waits for its end, which must be a success.
    #[track_caller]
    pub(crate) fn wait(self) {
        let mut status = 0;
        // SAFETY: the pointer is valid, the child ours.
        let got = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
        assert_eq!(
            (got, status),
            (self.pid, 0),
            "a side of a measurement failed"
        );
    }
}

/// Lets the calling thread run on this processor alone, of those that it may use.
pub(crate) fn pin(number: usize) {
    // SAFETY: the sets are plain data of the size that is told.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed);
        let processors: Vec<usize> = (0..libc::CPU_SETSIZE as usize)
            .filter(|cpu| libc::CPU_ISSET(*cpu, &allowed))
            .collect();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processors[number % processors.len()], &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
}
