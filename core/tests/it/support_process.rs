//! What tests with processes of their own need.

use procession_core::process::{Child, Method, Role, Start, Started, Stdio, bootstrap, start};
use procession_core::{Deadline, Family, Result};
use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio as Streams};
use std::time::{Duration, Instant};

/// Tells a helper process which part it plays.
const PART: &str = "PROCESSION_TEST_PART";

/// What no wait in a test may last.
pub(crate) fn watchdog() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// A family of one test's.
pub(crate) fn family() -> &'static Family {
    procession_core::family()
        .name("test")
        .processes_max(64)
        .threads_max(256)
        .create()
        .expect("an arena")
}

/// The first statement of a test that its own children run anew: in them, it does their work and ends them.
pub(crate) fn divert(work: impl FnOnce(Started) -> i32) {
    let started = match bootstrap().expect("a place in the family") {
        None => return,
        Some(Role::Child(started)) => started,
        Some(Role::Zygote(zygote)) => zygote.serve().expect("a child of the zygote"),
    };
    alarm();
    std::process::exit(work(started));
}

/// Ends this process after two minutes, whatever hangs: later than a test's watchdog, so that it saves none.
#[expect(unsafe_code, reason = "sets a timer")]
pub(crate) fn alarm() {
    // SAFETY: a plain system call.
    unsafe { libc::alarm(120) };
}

/// A start by `method` whose child runs the test `name` anew, quietly.
pub(crate) fn rerun(method: Method, name: &str) -> Start<'static> {
    Start {
        args: arguments(name),
        stdio: [Stdio::Inherit, Stdio::Null, Stdio::Inherit],
        ..Start::new(method)
    }
}

fn arguments(name: &str) -> Vec<OsString> {
    ["--exact", "--nocapture", "--test-threads=1", name]
        .map(OsString::from)
        .to_vec()
}

/// Starts a child by any method; it does `work`, for spawn and zygote by way of `divert` and `payload`.
pub(crate) fn start_by(
    family: &'static Family,
    method: Method,
    name: &str,
    payload: &[u8],
    work: fn(&[u8]) -> i32,
) -> Result<Child> {
    match method {
        Method::Fork => fork(family, &Start::new(Method::Fork), || work(payload)),
        _ => start(
            family,
            &Start {
                payload: &[payload],
                ..rerun(method, name)
            },
        ),
    }
}

/// A fork of the test process.
#[expect(unsafe_code, reason = "forks a process with threads")]
pub(crate) fn fork(
    family: &'static Family,
    start: &Start<'_>,
    work: impl FnOnce() -> i32,
) -> Result<Child> {
    // SAFETY: the children of these tests use the engine, the allocator and the system.
    unsafe {
        procession_core::process::fork(family, start, || {
            alarm();
            work()
        })
    }
}

/// The part that this process plays, if it is a helper.
pub(crate) fn part() -> Option<String> {
    std::env::var(PART).ok()
}

/// Runs the test `name` anew in a process that is no child of the family, playing `part`.
pub(crate) fn helper(name: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command
        .args(arguments(name))
        .env(PART, part)
        .stdout(Streams::null());
    command
}

/// Waits until `holds`, looking again and again.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// How many descriptors this process has open.
pub(crate) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("a folder").count()
}

/// The state letter of a process; `None` when there is none.
pub(crate) fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat[stat.rfind(')')? + 2..].chars().next()
}

#[track_caller]
pub(crate) fn assert_sound(family: &'static Family) {
    assert_eq!(family.fsck().expect("a check").faults, Vec::<String>::new());
}

/// Makes this process deaf to a signal.
#[expect(unsafe_code, reason = "sets a signal's disposition")]
pub(crate) fn ignore(signal: i32) {
    // SAFETY: ignoring runs no code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Reads to the end of a pipe that processes hold open, or fails at the watchdog.
#[track_caller]
pub(crate) fn read_to_the_end(mut pipe: impl Read + AsFd) -> String {
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    loop {
        let ready = procession_core::connection::wait(&[pipe.as_fd()], watchdog()).unwrap();
        assert_eq!(ready, [0], "somebody holds the pipe still");
        match pipe.read(&mut part).unwrap() {
            0 => return String::from_utf8(bytes).unwrap(),
            length => bytes.extend(&part[..length]),
        }
    }
}

/// Reads what helpers say until so many are ready; returns their numbers. It reads no further than that.
#[track_caller]
pub(crate) fn ready(pipe: &mut (impl Read + AsFd), count: usize) -> Vec<i32> {
    let mut numbers = Vec::new();
    let mut line = Vec::new();
    while numbers.len() < count {
        let ready = procession_core::connection::wait(&[pipe.as_fd()], watchdog()).unwrap();
        assert_eq!(ready, [0], "{count} should be ready, {numbers:?} are");
        let mut byte = [0];
        assert_eq!(pipe.read(&mut byte).unwrap(), 1, "all are gone");
        if byte == *b"\n" {
            let text = String::from_utf8(std::mem::take(&mut line)).unwrap();
            numbers.extend(
                text.strip_prefix("ready ")
                    .and_then(|n| n.parse::<i32>().ok()),
            );
        } else {
            line.push(byte[0]);
        }
    }
    numbers
}

/// Has a signal run a handler that does nothing, every 10 ms.
#[expect(unsafe_code, reason = "installs a signal handler and a timer")]
pub(crate) fn be_interrupted() {
    extern "C" fn nothing(_: libc::c_int) {}
    let tick = libc::timeval {
        tv_sec: 0,
        tv_usec: 10_000,
    };
    let timer = libc::itimerval {
        it_interval: tick,
        it_value: tick,
    };
    // SAFETY: the handler does nothing, the timer is a plain value.
    unsafe {
        libc::signal(libc::SIGALRM, nothing as *const () as libc::sighandler_t);
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
}

/// Nothing is left in the arena, and what is there is sound.
#[track_caller]
pub(crate) fn assert_empty(family: &'static Family) {
    assert_sound(family);
    let findings = family.fsck().expect("a check");
    assert_eq!(
        (
            findings.objects,
            findings.blocks_shared,
            findings.blocks_private
        ),
        (0, 0, 0)
    );
}
