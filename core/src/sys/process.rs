//! Starting, watching and signalling processes, without a race on their numbers.
#![allow(unsafe_code, reason = "forks, and spawns through libc")]

use crate::error::{Error, Result};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// How a process ended, with its peak memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The code it exited with, or the negative number of the signal that killed it.
    pub(crate) code: i32,
    /// The most memory it had resident, in bytes; 0 when not known.
    pub(crate) peak_memory: u64,
}

/// This process's number.
pub(crate) fn pid() -> u32 {
    // Not `std::process::id`: the same call, but a forked child must never see a cached number.
    rustix::process::getpid().as_raw_nonzero().get() as u32
}

/// This thread's number.
pub(crate) fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// When a process was started, in clock ticks since boot; `None` when there is none of that number (or it is a zombie),
/// or `/proc` cannot be seen. Number and start time together name a process for ever.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; fields count from the last one.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A number for the pid namespace that this process lives in; 0 when it cannot be seen.
pub(crate) fn pid_namespace() -> u64 {
    use std::os::linux::fs::MetadataExt;
    fs::metadata("/proc/self/ns/pid").map_or(0, |meta| meta.st_ino())
}

/// Dies at once by SIGKILL.
pub(crate) fn kill_self() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    loop {
        // SIGKILL cannot be held back; there is nothing to return to.
        std::hint::spin_loop();
    }
}

/// Ends the process without running anything of it: no destructor, no atexit handler, no flush.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// The two sides of a fork.
#[derive(Debug)]
pub(crate) enum Forked {
    /// This is the child.
    Child,
    /// This is the parent, with the child's number.
    Parent(u32),
}

/// Splits the process in two, through libc, so that its thread number, its locks and all atfork handlers are right.
///
/// # Safety
///
/// Only the calling thread exists in the child. If others run, locks they held stay locked there: the child may call
/// only what needs none of them.
pub(crate) unsafe fn fork() -> Result<Forked> {
    // SAFETY: by the caller.
    match unsafe { libc::fork() } {
        -1 => Err(Error::os("fork", io::Error::last_os_error())),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid as u32)),
    }
}

/// Runs `prepare` before, `parent` and `child` after every fork of this process.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: the handlers are plain functions that live as long as the process.
    unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// What a spawned program starts with.
#[derive(Debug, Default)]
pub(crate) struct Exec<'a> {
    pub(crate) program: CString,
    /// The arguments, the program's name first.
    pub(crate) args: Vec<CString>,
    /// The whole environment, as `NAME=value`.
    pub(crate) env: Vec<CString>,
    pub(crate) directory: Option<CString>,
    /// Descriptors that keep their number in the new program; each is above 2.
    pub(crate) keep: Vec<BorrowedFd<'a>>,
    /// What becomes the descriptors 0, 1 and 2; `None` inherits.
    pub(crate) stdio: [Option<BorrowedFd<'a>>; 3],
}

/// Starts a program in a new process. The parent's memory is not copied for it.
pub(crate) fn spawn(exec: &Exec<'_>) -> Result<u32> {
    let failed = |code: i32| Error::os("spawn a program", io::Error::from_raw_os_error(code));
    let pointers = |list: &[CString]| -> Vec<*mut libc::c_char> {
        let ends = std::iter::once(std::ptr::null_mut());
        list.iter()
            .map(|text| text.as_ptr().cast_mut())
            .chain(ends)
            .collect()
    };
    let (args, env) = (pointers(&exec.args), pointers(&exec.env));
    let mut pid: libc::pid_t = 0;
    // SAFETY: every pointer lives until the call returns, lists end with null, actions and attributes are initialised
    // before use and destroyed once.
    let code = unsafe {
        let mut actions = std::mem::MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
        libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
        for (number, fd) in exec.stdio.iter().enumerate() {
            if let Some(fd) = fd {
                libc::posix_spawn_file_actions_adddup2(
                    actions.as_mut_ptr(),
                    fd.as_raw_fd(),
                    number as RawFd,
                );
            }
        }
        for fd in &exec.keep {
            // To the same number: that clears close-on-exec in the child alone.
            libc::posix_spawn_file_actions_adddup2(
                actions.as_mut_ptr(),
                fd.as_raw_fd(),
                fd.as_raw_fd(),
            );
        }
        if let Some(directory) = &exec.directory {
            libc::posix_spawn_file_actions_addchdir_np(actions.as_mut_ptr(), directory.as_ptr());
        }
        let mut attributes = std::mem::MaybeUninit::<libc::posix_spawnattr_t>::uninit();
        libc::posix_spawnattr_init(attributes.as_mut_ptr());
        // A blocked signal would stay blocked over exec: start with none blocked.
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), none.as_ptr());
        libc::posix_spawnattr_setflags(
            attributes.as_mut_ptr(),
            libc::POSIX_SPAWN_SETSIGMASK as libc::c_short,
        );
        let program = exec.program.as_ptr();
        let code = libc::posix_spawn(
            &raw mut pid,
            program,
            actions.as_ptr(),
            attributes.as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
        );
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        code
    };
    if code == 0 {
        Ok(pid as u32)
    } else {
        Err(failed(code))
    }
}

/// A descriptor that names a process for ever, and that polls readable when it ended.
///
/// Free of races for a child that was not waited for yet: until then its number is not given out again.
pub(crate) fn pidfd(pid: u32) -> Result<OwnedFd> {
    rustix::process::pidfd_open(as_pid(pid)?, PidfdFlags::empty())
        .map_err(|e| Error::os("open a process by number", e))
}

/// Sends a signal. To a process that has ended already it is not an error: `Ok(false)`.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, number: i32) -> Result<bool> {
    // rustix takes only the named signals; ours is any number a user may give.
    // SAFETY: a plain system call with valid arguments.
    let code = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            number,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if code == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        e => Err(Error::os("send a signal", e)),
    }
}

/// Collects a child that ended: `None` while it runs. The answer can be had once.
///
/// Who collected it before us (a SIGCHLD handler, `SIG_IGN`) took the answer along: that is the error `ECHILD`.
pub(crate) fn collect(pidfd: BorrowedFd<'_>) -> Result<Option<Ended>> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // Not libc's `waitid`: the call itself also tells the memory used. By descriptor, because a number that someone
        // else collected may be another child's by now.
        // SAFETY: both pointers are valid for writing.
        let code = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd.as_raw_fd(),
                info.as_mut_ptr(),
                libc::WEXITED | libc::WNOHANG,
                usage.as_mut_ptr(),
            )
        };
        if code == 0 {
            break;
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINTR) => continue,
            e => return Err(Error::os("collect a child", e)),
        }
    }
    // SAFETY: zeroed before, filled by the kernel; a child's siginfo has a pid and a status.
    let (pid, status, usage, info) = unsafe {
        let info = info.assume_init();
        (
            info.si_pid(),
            info.si_status(),
            usage.assume_init(),
            info.si_code,
        )
    };
    if pid == 0 {
        return Ok(None);
    }
    let code = if info == libc::CLD_EXITED {
        status
    } else {
        -status
    };
    Ok(Some(Ended {
        code,
        peak_memory: usage.ru_maxrss.max(0) as u64 * 1024,
    }))
}

/// Kills a process by number. Only for one that was there a moment ago.
pub(crate) fn kill_number(pid: u32) {
    if let Ok(pid) = as_pid(pid) {
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

/// Kills and collects a child that nobody will ever hear of.
pub(crate) fn abandon(pid: u32) {
    // SAFETY: plain system calls; the number is our child's, because it was not collected yet.
    unsafe {
        libc::kill(pid as libc::pid_t, libc::SIGKILL);
        while libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) < 0
            && io::Error::last_os_error().raw_os_error() == Some(libc::EINTR)
        {}
    }
}

/// Dies by SIGKILL as soon as the other end of the pipe `line` is closed, whatever this process is doing then, even
/// stopped; at once if it is closed already.
///
/// Why not `PR_SET_PDEATHSIG`? It fires when the *thread* that forked ends, and a program's threads come and go.
pub(crate) fn die_with(line: BorrowedFd<'_>) -> Result<()> {
    let failed = |e: io::Error| Error::os("arm the lifeline", e);
    // SAFETY: fcntl with integer arguments on an open descriptor.
    unsafe {
        let fd = line.as_raw_fd();
        if libc::fcntl(fd, libc::F_SETOWN, pid() as libc::c_int) < 0
            || libc::fcntl(fd, F_SETSIG, libc::SIGKILL) < 0
            || libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) < 0
        {
            return Err(failed(io::Error::last_os_error()));
        }
    }
    if super::poll::has_hung_up(line) {
        kill_self();
    }
    Ok(())
}

/// Sends this signal instead of SIGIO (`fcntl(2)`); libc does not name it for every target.
const F_SETSIG: libc::c_int = 10;

/// Makes the signals of a fresh child those of a fresh program: none blocked.
pub(crate) fn unblock_signals() {
    // SAFETY: an empty set, initialised before use.
    unsafe {
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

/// Holds back, in this thread, what a terminal sends to all of its processes; [`unblock_signals`] ends that.
pub(crate) fn hold_back_terminal() {
    // SAFETY: a set that is initialised before use.
    unsafe {
        let mut held = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(held.as_mut_ptr());
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
            libc::sigaddset(held.as_mut_ptr(), signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, held.as_ptr(), std::ptr::null_mut());
    }
}

/// Makes `fd` also known as `number`, for a child's standard streams.
pub(crate) fn redirect(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: dup2 onto a number that this process gives up on purpose.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        return Err(Error::os(
            "redirect a standard stream",
            io::Error::last_os_error(),
        ));
    }
    Ok(())
}

/// A copy of the descriptor above the three standard ones, closed on exec.
pub(crate) fn above_stdio(fd: OwnedFd) -> Result<OwnedFd> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    duplicate(fd.as_fd())
}

/// A copy of the descriptor, closed on exec, with a number above 2.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(|e| Error::os("duplicate a descriptor", e))
}

/// Takes ownership of a descriptor that was inherited by number; `None` when the number is not open.
pub(crate) fn adopt_fd(number: RawFd) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd;
    if number < 0 {
        return None;
    }
    // SAFETY: only looks whether the number is open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return None;
    }
    // SAFETY: the number is open and was passed to this process to own; it closes on exec from now on.
    unsafe {
        libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC);
        Some(OwnedFd::from_raw_fd(number))
    }
}

/// Closes a descriptor by number.
///
/// For a forked child alone, whose copies of its parent's owned descriptors nobody will drop.
pub(crate) fn close_number(number: RawFd) {
    // SAFETY: the number's owner is a copy of the parent's that never closes it: see `process::kept`.
    unsafe { libc::close(number) };
}

/// A pipe, closed on exec: (read end, write end).
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Error::os("make a pipe", e))?;
    Ok((above_stdio(reader)?, above_stdio(writer)?))
}

/// The path of the running program, which stays right when its file was replaced.
pub(crate) fn own_program() -> &'static CStr {
    c"/proc/self/exe"
}

/// Takes a variable out of the environment.
pub(crate) fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    set_variable(OsStr::new(name), None);
    Some(value)
}

/// Sets a variable of the environment, or removes it.
///
/// Called where a program begins: first thing in `main`, and in the one thread of a forked child.
pub(crate) fn set_variable(name: &OsStr, value: Option<&OsStr>) {
    // SAFETY: std's own lock keeps Rust code apart; other code that reads the environment has not begun yet.
    unsafe {
        match value {
            Some(value) => std::env::set_var(name, value),
            None => std::env::remove_var(name),
        }
    }
}

/// Where nothing is read and everything is swallowed.
pub(crate) fn null_device() -> Result<OwnedFd> {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| Error::os("open `/dev/null`", e))?;
    above_stdio(file.into())
}

/// Whether `e` says that there is no such child (any more).
pub(crate) fn is_no_child(e: &Error) -> bool {
    matches!(e, Error::Os { source, .. } if source.raw_os_error() == Some(Errno::CHILD.raw_os_error()))
}

fn as_pid(pid: u32) -> Result<Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Error::Misuse {
            action: "open a process by number",
            why: "the number names none",
        })
}

/// Whether a process of that number exists although `/proc` does not show it.
pub(crate) fn is_hidden(pid: u32) -> bool {
    if fs::metadata("/proc/self/stat").is_ok()
        && !fs::exists(format!("/proc/{pid}")).unwrap_or(true)
    {
        // `/proc` works. With `hidepid` it hides the processes of other users, which a signal 0 still finds.
        return as_pid(pid)
            .is_ok_and(|pid| rustix::process::test_kill_process(pid) == Err(Errno::PERM));
    }
    !fs::exists("/proc/self/stat").unwrap_or(false)
        && as_pid(pid).is_ok_and(|pid| rustix::process::test_kill_process(pid) != Err(Errno::SRCH))
}
