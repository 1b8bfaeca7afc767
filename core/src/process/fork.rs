//! A child that is a copy of this process.

use super::bootstrap::{self, Origin};
use super::child::Child;
use super::embryo::{self, Embryo};
use super::start::{Method, Start};
use super::{household, kept};
use crate::error::{Error, Result};
use crate::memory::{Family, object};
use crate::sys::process::{self, Forked};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a child exits with whose closure panicked, as Rust programs do.
const PANICKED: i32 = 101;

/// What a child exits with that could not take up its work. It is no member of the family then.
pub(super) const UNBORN: i32 = 70;

/// Runs `work` in a child that is a copy of this process, and ends it with what `work` returns.
///
/// The child is attached to all objects that this process is attached to. Of `start` it follows the name, `daemon`,
/// `detached`, the directory and the standard streams; the closure brings the rest along.
///
/// # Safety
///
/// Only the calling thread exists in the child. If this process has others, what they had locked at that moment stays
/// locked in the child for ever: `work` may use only what none of them locks. The engine's own objects are fine, and so
/// is the allocator of glibc. `work` must not use what belongs to the parent alone, such as a borrowed sentinel.
#[expect(unsafe_code, reason = "forks a process that may have threads")]
pub unsafe fn fork(
    family: &'static Family,
    start: &Start<'_>,
    work: impl FnOnce() -> i32,
) -> Result<Child> {
    refuse_what_a_fork_cannot(start)?;
    household::collect_ended();
    let me = family.me()?;
    let embryo = Embryo::prepare(family, start, &[])?;
    // DEATH: bits of an embryo, cleared when it is given up.
    object::attach_for_child(family, me, embryo.slot)?;
    let origin = Origin::own(family)?;
    let oom_kills = embryo::oom_kills();
    let streams = embryo::streams(&start.stdio)?;
    let lifeline = embryo
        .lifeline
        .as_ref()
        .map_or(-1, |(read, _)| read.number());
    let own = origin.sentinel.as_fd().as_raw_fd();
    // SAFETY: by the caller.
    let forked = kept::sparing([lifeline, own], || unsafe { process::fork() })?;
    match forked {
        Forked::Parent(pid) => embryo.born(pid, start, oom_kills),
        Forked::Child => {
            let arrived = embryo::redirect(&streams, start.directory.as_deref()).and_then(|()| {
                let origin = origin.in_child(process::adopt_fd(own));
                let lifeline = process::adopt_fd(lifeline);
                bootstrap::arrive(family, (embryo.slot, embryo.generation), lifeline, origin)
            });
            drop(streams);
            let code = match arrived {
                Ok(()) => catch_unwind(AssertUnwindSafe(work)).unwrap_or(PANICKED),
                Err(_) => UNBORN,
            };
            process::exit_now(code)
        }
    }
}

fn refuse_what_a_fork_cannot(start: &Start<'_>) -> Result<()> {
    let refused = |why| {
        Err(Error::Misuse {
            action: "start a process by fork",
            why,
        })
    };
    if start.method != Method::Fork {
        return refused("the start method is another: see `start`");
    }
    if start.program.is_some() || !start.args.is_empty() {
        return refused("it runs no program");
    }
    if !start.env.is_empty() || start.env_clear {
        return refused("its environment is this process's");
    }
    if !start.payload.is_empty() || !start.handles.is_empty() || !start.fds.is_empty() {
        return refused("its closure brings everything along");
    }
    Ok(())
}
