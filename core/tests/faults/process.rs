//! Forked processes, plain ones and ones that are stepped.
#![allow(unsafe_code, reason = "forks, kills and traces")]

use crate::arch;
use crate::page::Page;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How long a process may take before it counts as hung, in seconds.
pub const PATIENCE: u32 = 20;

/// A forked process; killed and collected when dropped.
pub struct Process {
    pub pid: i32,
    ended: bool,
}

/// Runs `work` in a forked process, which exits with what it returns; what it panics with stands on the page then.
pub fn fork(page: Page, patience: u32, work: impl FnOnce() -> i32) -> Process {
    // SAFETY: this process has one thread; the child ends by `_exit`.
    unsafe {
        match libc::fork() {
            -1 => panic!("fork failed"),
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::alarm(patience);
                let code = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
                    page.write(&format!("{}: {}", page.read(), crate::last_panic()));
                    101
                });
                libc::_exit(code)
            }
            pid => Process { pid, ended: false },
        }
    }
}

/// How a wait for a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Signal(i32),
    Exited(i32),
    Killed(i32),
}

impl Process {
    pub fn wait(&mut self) -> Stop {
        let mut status = 0;
        loop {
            // SAFETY: the pointer is valid.
            let got = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
            if got == self.pid {
                break;
            }
        }
        if libc::WIFSTOPPED(status) {
            return Stop::Signal(libc::WSTOPSIG(status));
        }
        self.ended = true;
        if libc::WIFSIGNALED(status) {
            Stop::Killed(libc::WTERMSIG(status))
        } else {
            Stop::Exited(libc::WEXITSTATUS(status))
        }
    }

    pub fn kill(&mut self) {
        if !self.ended {
            // SAFETY: a child that was not collected yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            while !self.ended {
                self.wait();
            }
        }
    }

    /// Runs one instruction; false when the operation is over.
    pub fn step(&mut self) -> Result<bool, String> {
        // SAFETY: a stopped process that asked to be traced by us.
        let code = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.pid, 0, 0) };
        if code != 0 {
            return Err("a step failed".to_owned());
        }
        match self.wait() {
            Stop::Signal(libc::SIGTRAP) => Ok(true),
            Stop::Signal(libc::SIGSTOP) => Ok(false),
            other => Err(format!("it ended in the middle: {other:?}")),
        }
    }

    /// Runs a stepped process to the end of its operation.
    pub fn finish(&mut self) -> Result<(), String> {
        // SAFETY: a stopped process that asked to be traced by us.
        let code = unsafe { libc::ptrace(libc::PTRACE_CONT, self.pid, 0, 0) };
        if code != 0 {
            return Err("it could not go on".to_owned());
        }
        match self.wait() {
            Stop::Signal(libc::SIGSTOP) => Ok(()),
            other => Err(format!("it did not come to its end: {other:?}")),
        }
    }

    /// Whether it has ended, collected or not.
    pub fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rfind(')')
            .is_none_or(|at| stat[at + 1..].trim_start().starts_with(['Z', 'X']))
    }

    pub fn program_counter(&self) -> u64 {
        arch::program_counter(self.pid)
    }

    /// Whether it sleeps (`man 5 proc`).
    pub fn sleeps(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rfind(')')
            .is_some_and(|at| stat[at + 1..].trim_start().starts_with('S'))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Forks a process that does what `ready` does, stops, and when it is stepped on does what `ready` returned, and stops.
pub fn stepped(page: Page, ready: impl FnOnce() -> Box<dyn FnOnce()>) -> Result<Process, String> {
    let mut process = fork(page, 0, || {
        let act = ready();
        // SAFETY: the parent traces its child.
        unsafe {
            libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            libc::raise(libc::SIGSTOP);
        }
        let _ = procession_core::testing::passed();
        act();
        // SAFETY: the sign that the operation is over.
        unsafe { libc::raise(libc::SIGSTOP) };
        0
    });
    match process.wait() {
        Stop::Signal(libc::SIGSTOP) => Ok(process),
        other => Err(format!("it did not get ready: {other:?} {}", page.read())),
    }
}

/// Runs on one processor from now on: stepping is quicker when both sides share it, and nothing spins.
pub fn stay_on_one_processor(number: usize) {
    // SAFETY: plain system calls with valid arguments.
    unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
        let ours: Vec<usize> = (0..1024)
            .filter(|cpu| libc::CPU_ISSET(*cpu, &set))
            .collect();
        libc::CPU_ZERO(&mut set);
        libc::CPU_SET(ours[number % ours.len()], &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

/// Waits until one of the running processes has ended, and takes it out; `None` when there is none.
pub fn wait_any<T>(running: &mut [Option<(T, Page, Process)>]) -> Option<(T, Page, Stop)> {
    loop {
        let mut any = false;
        for place in running.iter_mut() {
            let Some((_, _, process)) = place else {
                continue;
            };
            any = true;
            let mut status = 0;
            // SAFETY: the pointer is valid, the child was not collected yet.
            let got = unsafe { libc::waitpid(process.pid, &raw mut status, libc::WNOHANG) };
            if got != process.pid {
                continue;
            }
            process.ended = true;
            let stop = if libc::WIFSIGNALED(status) {
                Stop::Killed(libc::WTERMSIG(status))
            } else {
                Stop::Exited(libc::WEXITSTATUS(status))
            };
            return place.take().map(|(name, page, _)| (name, page, stop));
        }
        if !any {
            return None;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
