//! A child that is a program, run from its beginning.

use super::bootstrap::{Origin, Papers, VARIABLE};
use super::child::Child;
use super::embryo::{self, Embryo};
use super::start::Start;
use crate::error::{Error, Result};
use crate::memory::Family;
use crate::sys::process::{self, Exec};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

pub(super) fn spawn(family: &'static Family, start: &Start<'_>) -> Result<Child> {
    spawn_with(family, start, None)
}

/// Spawns a child, or with `requests` a zygote that takes its requests there.
pub(super) fn spawn_with(
    family: &'static Family,
    start: &Start<'_>,
    requests: Option<BorrowedFd<'_>>,
) -> Result<Child> {
    let embryo = Embryo::prepare(family, start, start.payload)?;
    let origin = Origin::own(family)?;
    let locker = family.locker();
    let streams = embryo::streams(&start.stdio)?;
    let raised: Vec<OwnedFd> = start
        .fds
        .iter()
        .map(|fd| process::duplicate(*fd))
        .collect::<Result<_>>()?;

    let mut keep = vec![family.arena(), origin.sentinel.as_fd()];
    keep.extend(locker.into_iter().flat_map(|(put, look)| [put, look]));
    keep.extend(embryo.lifeline.as_ref().map(|(read, _)| read.as_fd()));
    keep.extend(requests);
    keep.extend(raised.iter().map(AsFd::as_fd));
    let papers = Papers {
        arena: family.arena().as_raw_fd(),
        slot: embryo.slot,
        generation: embryo.generation,
        parent: origin.pid,
        sentinel: origin.sentinel.number(),
        lifeline: embryo.lifeline.as_ref().map(|(read, _)| read.number()),
        locker: locker.map(|(put, look)| (put.as_raw_fd(), look.as_raw_fd())),
        requests: requests.map(|fd| fd.as_raw_fd()),
        payload: embryo.payload,
        fds: raised.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let exec = Exec {
        program: match &start.program {
            Some(program) => c_string(program.as_os_str())?,
            None => process::own_program().to_owned(),
        },
        args: arguments(start)?,
        env: environment(start, &papers)?,
        directory: start
            .directory
            .as_ref()
            .map(|d| c_string(d.as_os_str()))
            .transpose()?,
        keep,
        stdio: streams.each_ref().map(|fd| fd.as_ref().map(AsFd::as_fd)),
    };
    let oom_kills = embryo::oom_kills();
    let pid = process::spawn(&exec)?;
    // DEATH: a child without a parent; its lifeline is cut, and its slot is given up before it moves in.
    embryo.born(pid, start, oom_kills)
}

fn arguments(start: &Start<'_>) -> Result<Vec<CString>> {
    let name = match &start.program {
        Some(program) => program.clone().into_os_string(),
        None => std::env::args_os()
            .next()
            .unwrap_or_else(|| OsString::from("procession")),
    };
    std::iter::once(&name)
        .chain(&start.args)
        .map(|arg| c_string(arg))
        .collect()
}

fn environment(start: &Start<'_>, papers: &Papers) -> Result<Vec<CString>> {
    let mut env: BTreeMap<OsString, OsString> = if start.env_clear {
        BTreeMap::new()
    } else {
        std::env::vars_os().collect()
    };
    for (name, value) in &start.env {
        match value {
            Some(value) => env.insert(name.clone(), value.clone()),
            None => env.remove(name),
        };
    }
    env.insert(VARIABLE.into(), papers.write().into());
    env.into_iter()
        .map(|(name, value)| {
            let mut line = name.into_vec();
            line.push(b'=');
            line.extend(value.into_vec());
            c_string(&OsString::from_vec(line))
        })
        .collect()
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| Error::Malformed {
        what: "a program, argument or variable",
        why: "it has a zero byte in it",
    })
}
