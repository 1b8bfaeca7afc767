//! Named places where a test kills the process.
//!
//! A `DEATH:` comment, the point below it and the test share one name. Built with `--features faults`, a process whose
//! `PROCESSION_FAULT` is `name` (or `name:n`, the n-th time) kills itself with SIGKILL there; otherwise a point is
//! nothing at all. What happens *between* the points is covered by stepping (`tests/faults`), which also looks that some
//! operation of it passes each point: for that a build with debug assertions notes those it passed, once asked to.

/// Dies here if a test asked for it.
#[inline(always)]
pub(crate) fn point(name: &'static str) {
    #[cfg(feature = "faults")]
    armed::reached(name);
    #[cfg(any(feature = "faults", debug_assertions))]
    noted::reached(name);
    #[cfg(not(any(feature = "faults", debug_assertions)))]
    let _ = name;
}

/// The points that this process has passed since the first call; `None` in a build that does not note them.
pub fn passed() -> Option<Vec<&'static str>> {
    #[cfg(any(feature = "faults", debug_assertions))]
    return Some(noted::passed());
    #[cfg(not(any(feature = "faults", debug_assertions)))]
    None
}

#[cfg(any(feature = "faults", debug_assertions))]
mod noted {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    static WANTED: AtomicBool = AtomicBool::new(false);
    static NAMES: [OnceLock<&'static str>; 128] = [const { OnceLock::new() }; 128];

    pub(super) fn reached(name: &'static str) {
        if WANTED.load(Ordering::Relaxed) {
            let _ = NAMES
                .iter()
                .find(|place| *place.get_or_init(|| name) == name);
        }
    }

    pub(super) fn passed() -> Vec<&'static str> {
        WANTED.store(true, Ordering::Relaxed);
        NAMES
            .iter()
            .map_while(|place| place.get().copied())
            .collect()
    }
}

#[cfg(feature = "faults")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static ARMED: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn reached(name: &'static str) {
        let armed = ARMED.get_or_init(|| {
            let wanted = std::env::var("PROCESSION_FAULT").ok()?;
            let (point, count) = wanted.split_once(':').unwrap_or((&wanted, "1"));
            Some((point.to_owned(), count.parse().ok()?))
        });
        if let Some((point, count)) = armed
            && point == name
            && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == *count
        {
            crate::sys::process::kill_self();
        }
    }
}
