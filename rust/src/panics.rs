//! Panics that travel: what a task said when it panicked, where, and from where it was called.

use serde::{Deserialize, Serialize};
use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;

/// A panic in another process.
///
/// ```
/// use procession::{JoinError, Process};
///
/// procession::init();
/// let child = Process::spawn(|| -> u8 { panic!("no more {}", "tea") }, ())?;
/// let Err(JoinError::Panicked(panic)) = child.join() else { unreachable!() };
/// assert_eq!(panic.message, "no more tea");
/// assert!(panic.location.unwrap().contains(".rs:"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Panic {
    /// What it said.
    pub message: String,
    /// File, line and column.
    pub location: Option<String>,
    /// From where it was called, if `RUST_BACKTRACE` asks for it.
    pub backtrace: Option<String>,
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Some(location) => write!(f, "panicked at {location}: {}", self.message),
            None => write!(f, "panicked: {}", self.message),
        }
    }
}

thread_local! {
    /// What the hook saw of the last panic of this thread.
    static SEEN: RefCell<Option<Panic>> = const { RefCell::new(None) };
}

/// Runs `work`, and tells of its panic, which is printed as usual too.
pub(crate) fn catch<R>(work: impl FnOnce() -> R) -> Result<R, Panic> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            SEEN.set(Some(describe(info)));
            usual(info);
        }));
    });
    SEEN.set(None);
    // What the task left half done is lost with it: it captured nothing, and its arguments were its own.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        SEEN.take().unwrap_or_else(|| Panic {
            message: message(&*payload),
            location: None,
            backtrace: None,
        })
    })
}

fn describe(info: &PanicHookInfo<'_>) -> Panic {
    let backtrace = Backtrace::capture();
    Panic {
        message: message(info.payload()),
        location: info.location().map(ToString::to_string),
        backtrace: (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string()),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic whose payload is no text")
        .to_owned()
}
