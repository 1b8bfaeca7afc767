//! What a child starts with.

use super::child::Child;
use super::{household, spawn, zygote};
use crate::error::{Error, Result};
use crate::memory::{Family, Handle};
use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// How a child comes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Method {
    /// A copy of this process, which goes on with a closure. See [`fork`](super::fork).
    Fork,
    /// A program from its beginning, which calls [`bootstrap`](super::bootstrap).
    Spawn,
    /// A copy of the family's zygote: a program that got ready once and waits.
    Zygote,
}

impl Method {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Method::Fork => "fork",
            Method::Spawn => "spawn",
            Method::Zygote => "zygote",
        }
    }

    pub(crate) fn from_bits(bits: u32) -> Option<Method> {
        match bits {
            1 => Some(Method::Fork),
            2 => Some(Method::Spawn),
            3 => Some(Method::Zygote),
            _ => None,
        }
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Method::Fork => 1,
            Method::Spawn => 2,
            Method::Zygote => 3,
        }
    }
}

/// What one of a child's standard streams is.
#[derive(Clone, Copy, Debug, Default)]
pub enum Stdio<'a> {
    /// The parent's.
    #[default]
    Inherit,
    /// Nothing to read; what is written is swallowed.
    Null,
    /// A copy of this descriptor.
    Fd(BorrowedFd<'a>),
}

/// The most descriptors that can be given to a child.
pub const FDS_MAX: usize = 48;

/// What a child starts with. What is not set is the parent's, or nothing.
///
/// ```
/// use procession_core::process::{Method, Start};
///
/// let start = Start {
///     name: "worker-1",
///     daemon: true,
///     payload: &[b"what to do"],
///     ..Start::new(Method::Spawn)
/// };
/// assert_eq!(start.name, "worker-1");
/// ```
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// How the child comes to be.
    pub method: Method,
    /// A name for people; the first 47 bytes of it are kept.
    pub name: &'a str,
    /// [`finish`](super::finish) ends it instead of waiting for it.
    pub daemon: bool,
    /// It outlives its parent.
    pub detached: bool,
    /// Variables to set in its environment, or with `None` to remove. Not for [`Method::Fork`].
    pub env: Vec<(OsString, Option<OsString>)>,
    /// Whether its environment has nothing but what `env` sets. For [`Method::Spawn`] alone.
    pub env_clear: bool,
    /// Where it starts.
    pub directory: Option<PathBuf>,
    /// Its standard input, output and error.
    pub stdio: [Stdio<'a>; 3],
    /// The program, this one if `None`. For [`Method::Spawn`] alone.
    pub program: Option<PathBuf>,
    /// The program's arguments, without its name. For [`Method::Spawn`] alone.
    pub args: Vec<OsString>,
    /// Bytes for it, joined: its [`Started::payload`](super::Started::payload). Not for [`Method::Fork`].
    pub payload: &'a [&'a [u8]],
    /// Objects that the payload speaks of: they live until the child has dropped its payload.
    pub handles: &'a [Handle],
    /// Descriptors for it, at most [`FDS_MAX`]. Not for [`Method::Fork`], which inherits.
    pub fds: &'a [BorrowedFd<'a>],
}

impl<'a> Start<'a> {
    /// A start by `method`, with everything as it usually is.
    pub fn new(method: Method) -> Start<'a> {
        Start {
            method,
            name: "",
            daemon: false,
            detached: false,
            env: Vec::new(),
            env_clear: false,
            directory: None,
            stdio: [Stdio::Inherit; 3],
            program: None,
            args: Vec::new(),
            payload: &[],
            handles: &[],
            fds: &[],
        }
    }
}

/// Starts a child whose program calls [`bootstrap`](super::bootstrap).
///
/// The answer comes before the child has begun: one that ends before it took up its work says so in
/// [`Exit::began`](super::Exit::began).
pub fn start(family: &'static Family, start: &Start<'_>) -> Result<Child> {
    household::collect_ended();
    if start.fds.len() > FDS_MAX {
        return Err(Error::TooLarge {
            what: "a list of descriptors",
            length: start.fds.len() as u64,
            limit: FDS_MAX as u64,
        });
    }
    match start.method {
        Method::Spawn => spawn::spawn(family, start),
        Method::Zygote => zygote::start(family, start),
        Method::Fork => Err(Error::Misuse {
            action: "start a process by fork",
            why: "a fork runs a closure: see `fork`",
        }),
    }
}
