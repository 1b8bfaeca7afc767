//! When a wait ends: one absolute moment, made at the public door, never a number of seconds further down.

use crate::sys;
use std::time::Duration;

/// The moment at which a wait gives up.
///
/// A deadline is absolute, so that a wait cut by a signal can be called again without growing longer.
///
/// ```
/// use procession_core::Deadline;
/// use std::time::Duration;
///
/// assert!(Deadline::PASSED.has_passed());
/// assert!(!Deadline::NEVER.has_passed());
/// assert!(Deadline::after(Duration::from_secs(60)).remaining().unwrap() > Duration::from_secs(50));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// Nanoseconds of the monotonic clock; `u64::MAX` for never.
    nanos: u64,
}

impl Deadline {
    /// Waits for as long as it takes.
    pub const NEVER: Deadline = Deadline { nanos: u64::MAX };

    /// Does not wait: what cannot be done now has timed out.
    pub const PASSED: Deadline = Deadline { nanos: 0 };

    /// The moment `timeout` from now; [`Deadline::NEVER`] when that lies beyond the clock.
    pub fn after(timeout: Duration) -> Deadline {
        if timeout.is_zero() {
            return Deadline::PASSED;
        }
        let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Deadline {
            nanos: sys::machine::monotonic_nanos().saturating_add(nanos),
        }
    }

    /// [`Deadline::after`], and [`Deadline::NEVER`] for `None`.
    pub fn after_option(timeout: Option<Duration>) -> Deadline {
        timeout.map_or(Deadline::NEVER, Deadline::after)
    }

    /// Whether the moment has come.
    pub fn has_passed(self) -> bool {
        self.nanos != u64::MAX && (self.nanos == 0 || self.nanos <= sys::machine::monotonic_nanos())
    }

    /// Time left, zero when it has passed, `None` when it never will.
    pub fn remaining(self) -> Option<Duration> {
        if self.nanos == u64::MAX {
            return None;
        }
        Some(Duration::from_nanos(
            self.nanos.saturating_sub(sys::machine::monotonic_nanos()),
        ))
    }

    /// The earlier of the two.
    pub fn min(self, other: Deadline) -> Deadline {
        Ord::min(self, other)
    }

    /// Nanoseconds of the monotonic clock, `None` for never.
    pub(crate) fn nanos(self) -> Option<u64> {
        (self.nanos != u64::MAX).then_some(self.nanos)
    }
}
