//! Children made by fork, and the patience to wait for what they do.
#![allow(
    unsafe_code,
    reason = "forks, kills and collects children through libc"
)]

use procession_core::{Deadline, Family};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long anything may take before a test counts as hung.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// A family of test size.
pub(crate) fn family() -> &'static Family {
    procession_core::family()
        .name("test")
        .memory_max(64 << 20)
        .processes_max(64)
        .threads_max(128)
        .create()
        .expect("an arena")
}

/// The moment at which a test gives up.
pub(crate) fn watchdog() -> Deadline {
    Deadline::after(WATCHDOG)
}

/// Waits until `what` holds.
#[track_caller]
pub(crate) fn until(claim: &str, mut what: impl FnMut() -> bool) {
    let deadline = watchdog();
    while !what() {
        assert!(!deadline.has_passed(), "still waiting until {claim}");
        std::thread::yield_now();
    }
}

/// Fails with what is wrong in the arena, if anything is.
#[track_caller]
pub(crate) fn assert_sound(family: &'static Family) {
    let findings = family.fsck().expect("a check");
    assert_eq!(findings.faults, Vec::<String>::new());
}

/// A forked child. Dropped, it is killed and collected.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    collected: bool,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Killed(i32),
}

/// Forks a child that runs `work` and exits: with 0, or with 101 if it panicked. It dies by itself after the watchdog's time.
pub(crate) fn fork(work: impl FnOnce()) -> Child {
    // SAFETY: the child runs the engine, whose fork handlers keep its locks whole, and exits without unwinding further.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            // SAFETY: plain calls.
            unsafe { libc::alarm(WATCHDOG.as_secs() as u32) };
            let panicked = catch_unwind(AssertUnwindSafe(work)).is_err();
            // SAFETY: ends the child.
            unsafe { libc::_exit(if panicked { 101 } else { 0 }) }
        }
        pid => Child {
            pid,
            collected: false,
        },
    }
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.pid as u32
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child is not collected yet: its number is its own.
        unsafe { libc::kill(self.pid, signal) };
    }

    /// Kills it, and does not wait until it is gone.
    pub(crate) fn kill(&self) {
        self.signal(libc::SIGKILL);
    }

    /// Waits until it has ended. Its alarm bounds that.
    pub(crate) fn join(mut self) -> Ended {
        self.collect()
    }

    /// Waits until it has ended, as it should.
    #[track_caller]
    pub(crate) fn join_well(self) {
        let pid = self.pid;
        assert_eq!(self.join(), Ended::Exited(0), "child {pid}");
    }

    fn collect(&mut self) -> Ended {
        let mut status = 0;
        loop {
            // SAFETY: `status` is valid for writing.
            let got = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            if got == self.pid {
                break;
            }
        }
        self.collected = true;
        if libc::WIFSIGNALED(status) {
            Ended::Killed(libc::WTERMSIG(status))
        } else {
            Ended::Exited(libc::WEXITSTATUS(status))
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.collected {
            self.kill();
            self.collect();
        }
    }
}

/// Stays where it is until it is killed.
pub(crate) fn stay() -> ! {
    loop {
        // SAFETY: a plain call.
        unsafe { libc::pause() };
    }
}

/// Numbers that look random. The seed is printed: libtest shows it when the test fails.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    #[expect(clippy::print_stderr, reason = "a failure must be repeatable")]
    pub(crate) fn new() -> Random {
        let seed = std::env::var("PROCESSION_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| {
                let now = std::time::SystemTime::now();
                let since = now.duration_since(std::time::UNIX_EPOCH);
                since.map_or(1, |since| since.as_nanos() as u64)
            });
        eprintln!("PROCESSION_SEED={seed}");
        Random(seed | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Runs the tests of this program whose names contain one of `filters` once more in a process of its own, with a variable set.
#[track_caller]
pub(crate) fn run_again(filters: &[&str], skip: &str, variable: &str, value: &str) {
    let program = std::env::current_exe().expect("a path of the tests");
    let output = std::process::Command::new(program)
        .args(filters)
        .args(["--skip", skip])
        .env(variable, value)
        .output()
        .expect("the tests run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "with {variable}={value}:\n{text}");
    assert!(!text.contains("running 0 tests"), "nothing was run");
}
