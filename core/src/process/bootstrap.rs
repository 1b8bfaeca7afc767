//! How a child finds its family, and what it knows of itself.

use super::embryo;
use super::household::{self, household};
use super::kept::Kept;
use super::start::Method;
use super::zygote::Zygote;
use crate::error::{Error, Result};
use crate::memory::slots::ProcWord;
use crate::memory::{Family, Parcel};
use crate::sys::process;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The one variable that tells a program that it was started as a child.
pub(super) const VARIABLE: &str = "PROCESSION_CHILD";

/// What a program was started for.
#[derive(Debug)]
pub enum Role {
    /// To be a child.
    Child(Started),
    /// To be a zygote: get ready, then call [`Zygote::serve`].
    Zygote(Zygote),
}

/// What a child was given by its parent.
#[derive(Debug)]
#[non_exhaustive]
pub struct Started {
    /// The family it is in now.
    pub family: &'static Family,
    /// The bytes from [`Start::payload`](super::Start::payload), with the handles that came along.
    pub payload: Parcel,
    /// The descriptors from [`Start::fds`](super::Start::fds).
    pub fds: Vec<OwnedFd>,
}

/// The process that started this one.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
    name: String,
    sentinel: Option<Kept>,
}

impl Parent {
    pub(super) fn new(pid: u32, name: String, sentinel: Option<OwnedFd>) -> Parent {
        Parent {
            pid,
            name,
            sentinel: sentinel.map(Kept::new),
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A descriptor that is readable once it ended.
    pub fn sentinel(&self) -> Option<BorrowedFd<'_>> {
        self.sentinel.as_ref().map(AsFd::as_fd)
    }
}

/// What a process knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Current {
    /// Its process number.
    pub pid: u32,
    /// Its name; empty for a root, and for a process that was forked without the engine.
    pub name: String,
    /// Its slot in the family.
    pub slot: u32,
    /// Its parent's process number, when the parent started it as a child.
    pub parent_pid: Option<u32>,
    /// Whether its parent's [`finish`](super::finish) ends it.
    pub daemon: bool,
    /// How it was started; `None` for a root, and for a process that was forked without the engine.
    pub method: Option<Method>,
}

/// What the calling process is in the family.
///
/// ```
/// let family = procession_core::family().create()?;
/// let current = procession_core::process::current(family)?;
/// assert_eq!((current.pid, current.method), (std::process::id(), None));
/// # Ok::<(), procession_core::Error>(())
/// ```
pub fn current(family: &'static Family) -> Result<Current> {
    let slot = family.process_slot()?;
    let place = family.process(slot);
    let (daemon, method) = embryo::flags_of(place);
    Ok(Current {
        pid: process::pid(),
        name: embryo::name_of(place),
        slot,
        parent_pid: parent().map(|parent| parent.pid),
        daemon,
        method: Method::from_bits(method),
    })
}

/// The process that started this one as a child; `None` in a root.
pub fn parent() -> Option<Arc<Parent>> {
    household(|house| house.parent.clone())
}

/// Looks whether this program was started as a child of a family, and if so joins it.
///
/// To be called first thing in `main`, before there are threads: it takes its variable out of the environment and owns
/// the descriptors that were left open for it. In a program that was started by hand it does nothing.
///
/// ```
/// assert!(procession_core::process::bootstrap()?.is_none());
/// # Ok::<(), procession_core::Error>(())
/// ```
pub fn bootstrap() -> Result<Option<Role>> {
    let Some(text) = process::take_variable(VARIABLE) else {
        return Ok(None);
    };
    let papers = text.to_str().and_then(Papers::parse);
    let papers = papers.ok_or(malformed("the variable cannot be read"))?;
    papers.present().map(Some)
}

/// Who starts a child: what the child will call its parent.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) sentinel: Arc<Kept>,
}

impl Origin {
    /// This process.
    pub(super) fn own(family: &'static Family) -> Result<Origin> {
        Ok(Origin {
            pid: process::pid(),
            name: embryo::name_of(family.process(family.process_slot()?)),
            sentinel: household::own_descriptor()?,
        })
    }

    pub(super) fn in_child(&self, sentinel: Option<OwnedFd>) -> Parent {
        Parent::new(self.pid, self.name.clone(), sentinel)
    }
}

/// The first steps of every child: hangs on the lifeline, then moves into its slot.
pub(super) fn arrive(
    family: &'static Family,
    (slot, generation): (u32, u32),
    lifeline: Option<OwnedFd>,
    parent: Parent,
) -> Result<()> {
    if let Some(line) = &lifeline {
        process::die_with(line.as_fd())?;
    }
    // DEATH: before this a given-up embryo, after it a process like any other.
    family.take_embryo(slot, generation)?;
    household(|house| {
        house.lifeline = lifeline.map(Kept::new);
        house.parent = Some(Arc::new(parent));
    });
    Ok(())
}

/// What the variable says: everything a program needs to find its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Papers {
    pub(super) arena: RawFd,
    pub(super) slot: u32,
    pub(super) generation: u32,
    pub(super) parent: u32,
    pub(super) sentinel: RawFd,
    pub(super) lifeline: Option<RawFd>,
    pub(super) locker: Option<(RawFd, RawFd)>,
    /// For a zygote, where requests come.
    pub(super) requests: Option<RawFd>,
    /// Block, start, length.
    pub(super) payload: Option<(u64, u64, u64)>,
    pub(super) fds: Vec<RawFd>,
}

impl Papers {
    pub(super) fn write(&self) -> String {
        use std::fmt::Write;
        let mut text = format!(
            "arena={},slot={},generation={},parent={},sentinel={}",
            self.arena, self.slot, self.generation, self.parent, self.sentinel
        );
        let _ = self.lifeline.map(|fd| write!(text, ",lifeline={fd}"));
        let _ = self.locker.map(|(a, b)| write!(text, ",locker={a}:{b}"));
        let _ = self.requests.map(|fd| write!(text, ",requests={fd}"));
        let _ = self
            .payload
            .map(|(block, start, length)| write!(text, ",payload={block}:{start}:{length}"));
        for fd in &self.fds {
            let _ = write!(text, ",fd={fd}");
        }
        text
    }

    pub(super) fn parse(text: &str) -> Option<Papers> {
        let mut papers = Papers {
            arena: -1,
            sentinel: -1,
            ..Papers::default()
        };
        for field in text.split(',') {
            let (name, value) = field.split_once('=')?;
            let numbers: Vec<u64> = value
                .split(':')
                .map(|number| number.parse().ok())
                .collect::<Option<_>>()?;
            let fd = |index: usize| RawFd::try_from(*numbers.get(index)?).ok();
            let small = || u32::try_from(numbers[0]).ok();
            match name {
                "arena" => papers.arena = fd(0)?,
                "slot" => papers.slot = small()?,
                "generation" => papers.generation = small()?,
                "parent" => papers.parent = small()?,
                "sentinel" => papers.sentinel = fd(0)?,
                "lifeline" => papers.lifeline = Some(fd(0)?),
                "locker" => papers.locker = Some((fd(0)?, fd(1)?)),
                "requests" => papers.requests = Some(fd(0)?),
                "payload" => {
                    let &[block, start, length] = numbers.as_slice() else {
                        return None;
                    };
                    papers.payload = Some((block, start, length));
                }
                "fd" => papers.fds.push(fd(0)?),
                _ => return None,
            }
        }
        Some(papers)
    }

    /// Joins the family in the place that was prepared.
    fn present(self) -> Result<Role> {
        let missing = || malformed("a descriptor was not left open");
        // All are owned before anything can fail.
        let adopt = process::adopt_fd;
        let lifeline = self.lifeline.map(|fd| adopt(fd).ok_or_else(missing));
        let sentinel = adopt(self.sentinel);
        let locker = self
            .locker
            .map(|(a, b)| adopt(a).zip(adopt(b)).ok_or_else(missing));
        let requests = self.requests.map(|fd| adopt(fd).ok_or_else(missing));
        let fds: Result<Vec<_>> = self
            .fds
            .iter()
            .map(|fd| adopt(*fd).ok_or_else(missing))
            .collect();
        let arena = adopt(self.arena).ok_or_else(missing)?;
        let (lifeline, fds) = (lifeline.transpose()?, fds?);

        let family = Family::open_for_child(arena, &crate::KINDS)?;
        let name = parent_name(family, self.slot);
        let parent = Parent::new(self.parent, name, sentinel);
        arrive(family, (self.slot, self.generation), lifeline, parent)?;
        if let Some((put, look)) = locker.transpose()? {
            family.set_locker(put, look);
        }
        let payload = unpack(family, self.payload)?;
        Ok(match requests.transpose()? {
            Some(requests) => Role::Zygote(Zygote::new(family, payload, requests)),
            None => Role::Child(Started {
                family,
                payload,
                fds,
            }),
        })
    }
}

/// The payload that lies in a block of this process's.
pub(super) fn unpack(family: &'static Family, place: Option<(u64, u64, u64)>) -> Result<Parcel> {
    match place {
        None => Ok(Parcel::from(Vec::new())),
        Some((block, start, length)) => Parcel::unpack(family, family.me()?, block, start, length),
    }
}

/// The name of the process whose child moves into the slot.
pub(super) fn parent_name(family: &'static Family, slot: u32) -> String {
    let place = family.processes().get(slot as usize);
    let word = place.map(|place| ProcWord::unpack(place.state.load(Ordering::Acquire)));
    let parent = word.and_then(|word| word.parent);
    let place = parent.and_then(|parent| family.processes().get(parent as usize));
    place.map_or_else(String::new, embryo::name_of)
}

fn malformed(why: &'static str) -> Error {
    Error::Malformed {
        what: VARIABLE,
        why,
    }
}
