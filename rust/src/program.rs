//! The program: which family it belongs to, and whether it was started as somebody's child.

use crate::child;
use crate::error::{Error, Result};
use crate::waiting::through_signals;
use procession_core::process::{self, Current, Method, Role, Start, Stdio};
use procession_core::{self as core, Deadline, Family};
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Set once this program would know a child when it is one.
static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// The family of this process: its parent's, or one that is made when it is first needed.
static FAMILY: OnceLock<&'static Family> = OnceLock::new();

/// How a family that is to be made will be.
static LIMITS: Mutex<Option<core::Builder>> = Mutex::new(None);

/// The test by whose name this test program finds its way to [`init`].
static TEST: OnceLock<&'static str> = OnceLock::new();

/// How long daemonic children have between being asked to end and being killed.
const DAEMON_GRACE: Duration = Duration::from_secs(2);

/// What a child exits with that could not begin.
const UNBORN: i32 = 70;

/// To be called first thing in `main`: in a process that was started as a child, does what the parent asked for, and
/// never returns. Calling it again does nothing.
///
/// [`#[procession::main]`](macro@crate::main) calls it, and [`finish`] at the end.
///
/// ```
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let child = procession::Process::spawn(|| 6 * 7, ())?;
///     assert_eq!(child.join()?, 42);
///     procession::finish()?;
///     Ok(())
/// }
/// ```
pub fn init() {
    if INITIALIZED.swap(true, Ordering::AcqRel) {
        return;
    }
    match process::bootstrap() {
        Ok(None) => {}
        Ok(Some(Role::Child(started))) => child::run(started),
        Ok(Some(Role::Zygote(zygote))) => match zygote.serve() {
            Ok(started) => child::run(started),
            Err(error) => give_up(&error),
        },
        Err(error) => give_up(&error),
    }
}

/// Ends a child that cannot take up its work. There is nobody yet to whom it could say why.
#[expect(clippy::print_stderr, reason = "there is no other way to tell")]
fn give_up(error: &core::Error) -> ! {
    eprintln!("procession: this process cannot join its family: {error}");
    std::process::exit(UNBORN)
}

/// To be called at the end of `main`: waits for the children that are still running, and ends the daemonic ones.
///
/// Without it, children that are still running end when this process does.
///
/// ```
/// procession::init();
/// procession::finish()?;
/// # Ok::<(), procession::Error>(())
/// ```
pub fn finish() -> Result<()> {
    let deadline = Deadline::after(DAEMON_GRACE);
    Ok(through_signals(|| process::finish(deadline))?)
}

/// Changes the limits of the family that this program will make: how much memory it may use, how many processes and
/// threads there may be.
///
/// In a child it changes nothing: the family is there already. In a root, it must come before the first object and the
/// first process.
///
/// ```
/// procession::init();
/// procession::configure(|limits| limits.name("example").memory_max(1 << 30))?;
/// # Ok::<(), procession::Error>(())
/// ```
pub fn configure(change: impl FnOnce(core::Builder) -> core::Builder) -> Result<()> {
    let mut limits = LIMITS.lock().unwrap_or_else(PoisonError::into_inner);
    match FAMILY.get() {
        Some(_) if process::parent().is_some() => Ok(()),
        Some(_) => Err(Error::Engine(core::Error::Misuse {
            action: "configure the family",
            why: "it is there already: it was made for the first object or process",
        })),
        None => {
            let builder = limits.take().unwrap_or_else(usual_limits);
            *limits = Some(change(builder));
            Ok(())
        }
    }
}

fn usual_limits() -> core::Builder {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&program).file_stem().unwrap_or_default();
    core::family().name(&name.to_string_lossy())
}

/// The family of this process.
pub(crate) fn family() -> Result<&'static Family> {
    if let Some(family) = FAMILY.get() {
        return Ok(family);
    }
    let mut limits = LIMITS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(family) = FAMILY.get() {
        return Ok(family);
    }
    let family = limits.take().unwrap_or_else(usual_limits).create()?;
    Ok(FAMILY.get_or_init(|| family))
}

/// In a child: the family that it was started into.
pub(crate) fn join(family: &'static Family) {
    FAMILY.get_or_init(|| family);
}

/// Refuses to start processes from a program that would not know them for children.
pub(crate) fn check_initialized() -> Result<()> {
    if INITIALIZED.load(Ordering::Acquire) {
        Ok(())
    } else {
        Err(Error::NotInitialized)
    }
}

/// The arguments with which a child is started: those of this program; in a test program, those that lead to [`init`].
pub(crate) fn arguments_for_children() -> Vec<OsString> {
    match TEST.get() {
        None => std::env::args_os().skip(1).collect(),
        Some(test) => arguments_of_test(test),
    }
}

fn arguments_of_test(test: &str) -> Vec<OsString> {
    [
        test,
        "--exact",
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
    ]
    .map(OsString::from)
    .into()
}

/// Whether children begin in a test harness, which writes a word of its own to standard output.
pub(crate) fn is_test() -> bool {
    TEST.get().is_some()
}

/// What a process knows of itself.
///
/// ```
/// # procession::init();
/// let child = procession::Builder::new().name("child").spawn(|| procession::current().unwrap().name, ())?;
/// assert_eq!(child.join()?, "child");
/// assert_eq!(procession::current()?.pid, std::process::id());
/// # Ok::<(), procession::Error>(())
/// ```
pub fn current() -> Result<Current> {
    Ok(process::current(family()?)?)
}

/// For `#[procession::test]`: notes the way to a test, by its path with the crate's name in front.
#[doc(hidden)]
pub fn enter_test(path: &'static str) {
    let (_, path) = path.split_once("::").unwrap_or(("", path));
    // Any test will do: in a child, none of them gets further than this.
    TEST.get_or_init(|| {
        // A zygote's copies have a standard output of their own.
        process::set_zygote(&Start {
            args: arguments_of_test(path),
            stdio: [Stdio::Inherit, Stdio::Null, Stdio::Inherit],
            ..Start::new(Method::Zygote)
        });
        path
    });
    init();
}

/// For `#[procession::main]`.
#[doc(hidden)]
#[expect(
    clippy::print_stderr,
    reason = "the end of a program: nobody else could tell"
)]
pub fn run_main<R>(main: fn() -> R) -> R {
    init();
    let answer = main();
    if let Err(error) = finish() {
        eprintln!("procession: failed to wait for the children: {error}");
    }
    answer
}
