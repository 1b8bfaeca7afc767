//! What several of the tests need.

use std::time::{Duration, Instant};

/// Waits for a condition under a watchdog.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "waited in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a process as nobody expects it.
#[allow(
    unsafe_code,
    reason = "a system call without arguments that could be wrong"
)]
pub(crate) fn kill(pid: u32) {
    // SAFETY: no memory is concerned.
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
}
