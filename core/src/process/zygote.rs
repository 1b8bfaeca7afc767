//! A program that got ready once, waits, and forks itself for each child that is wanted.
//!
//! ```text
//! parent  ── request: slot, place of the payload; line, sentinel, lifeline, streams, descriptors ──▶  zygote
//!         ◀── on the line: the child's number, with its pidfd ─────────────────────────────────────
//!         ◀── on the line, once it ended: its exit code and peak memory ───────────────────────────
//! ```
//!
//! A zygote belongs to the process that started it and dies with it. Should it be killed, the children that it made
//! live on (their lifelines lead to their parents, not to it), nobody can tell any more how they end, and the next
//! start starts another zygote.

use super::bootstrap::{self, Origin, Parent, Started};
use super::child::Child;
use super::embryo::{self, Embryo};
use super::fork::UNBORN;
use super::household::household;
use super::kept::Kept;
use super::spawn;
use super::start::{Method, Start, Stdio};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::memory::slots::{ProcState, ProcWord};
use crate::memory::{Family, Parcel, object};
use crate::sys::poll::{self, Interest};
use crate::sys::process::{self, Ended, Forked};
use crate::sys::socket::{self, Received};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long a zygote may take to get ready, or to answer. One that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long to wait for the word on a child that was seen to end. A zygote gives it at once, unless it is stopped.
const GRACE: Duration = Duration::from_secs(10);

/// This process's way to a zygote.
#[derive(Debug)]
pub(super) struct Link {
    family: &'static Family,
    zygote: Child,
    requests: Kept,
}

impl Link {
    /// Whether the zygote ended, or does now.
    fn ends_soon(&self) -> Result<bool> {
        let pidfd = self.zygote.sentinel()?;
        poll::wait_one_calmly(pidfd, Interest::Readable, Deadline::after(GRACE))
    }

    /// Ends the zygote, which keeps nothing that could be lost.
    pub(super) fn end(&self) -> Result<()> {
        self.zygote.kill()?;
        self.zygote.join(Deadline::NEVER)?;
        Ok(())
    }
}

/// What a zygote starts with, kept until one is needed.
#[derive(Clone, Debug, Default)]
pub(super) struct Prelude {
    program: Option<PathBuf>,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    payload: Vec<u8>,
    /// Which standard streams are swallowed.
    null: [bool; 3],
}

/// Says what zygotes of this process, and of processes forked from it, are from now on: program, arguments,
/// environment, directory and payload are those of `start`, and its standard streams are null where those are.
///
/// Without it, a zygote is this program with the arguments of the [`Start`] that first needs one.
///
/// ```
/// use procession_core::process::{Method, Start, set_zygote};
///
/// set_zygote(&Start { args: vec!["--zygote".into()], ..Start::new(Method::Zygote) });
/// ```
pub fn set_zygote(start: &Start<'_>) {
    let prelude = Prelude {
        program: start.program.clone(),
        args: start.args.clone(),
        env: start.env.clone(),
        directory: start.directory.clone(),
        payload: start.payload.concat(),
        null: start.stdio.map(|stream| matches!(stream, Stdio::Null)),
    };
    household(|house| house.prelude = Some(prelude));
}

/// Has the family's zygote fork a child.
pub(super) fn start(family: &'static Family, start: &Start<'_>) -> Result<Child> {
    if start.env_clear {
        return Err(Error::Misuse {
            action: "start a process by zygote",
            why: "its environment begins as the zygote's",
        });
    }
    let mut why = "its zygote was killed twice while it started the child";
    for _ in 0..2 {
        let link = link(family, start)?;
        match request(&link, start)? {
            Answer::Born(child) => return Ok(*child),
            Answer::Unborn(errno) => {
                return Err(Error::os(
                    "fork in the zygote",
                    std::io::Error::from_raw_os_error(errno),
                ));
            }
            // It may be on its way out still: the next round starts another once it is gone.
            Answer::Gone if link.ends_soon()? => {}
            Answer::Gone => {
                why = "its zygote could not take the request: it has too many descriptors open";
                break;
            }
            Answer::Lost => {
                why = "its zygote was killed while it started the child";
                break;
            }
            Answer::Silent => {
                why = "its zygote does not answer";
                break;
            }
        }
    }
    Err(Error::StartFailed {
        method: Method::Zygote.name(),
        why: why.to_owned(),
    })
}

/// The way to a zygote that runs, started now if there is none.
fn link(family: &'static Family, start: &Start<'_>) -> Result<Arc<Link>> {
    let known = household(|house| house.zygotes.clone());
    for link in known
        .into_iter()
        .filter(|link| std::ptr::eq(link.family, family))
    {
        if link.zygote.poll()?.is_none() {
            return Ok(link);
        }
        household(|house| house.zygotes.retain(|known| !Arc::ptr_eq(known, &link)));
    }
    let link = Arc::new(found(family, start)?);
    // Two threads may have come to this at once: the second goes with the first's.
    let first = household(|house| {
        let same = |known: &&Arc<Link>| std::ptr::eq(known.family, family);
        match house.zygotes.iter().find(same) {
            Some(first) => Arc::clone(first),
            None => {
                house.zygotes.push(Arc::clone(&link));
                Arc::clone(&link)
            }
        }
    });
    if !Arc::ptr_eq(&first, &link) {
        link.end()?;
    }
    Ok(first)
}

/// Starts a zygote.
fn found(family: &'static Family, start: &Start<'_>) -> Result<Link> {
    let prelude = household(|house| house.prelude.clone()).unwrap_or_else(|| Prelude {
        program: start.program.clone(),
        args: start.args.clone(),
        ..Prelude::default()
    });
    let (ours, theirs) = Kept::make_pair(socket::pair)?;
    let payload: &[&[u8]] = &[&prelude.payload];
    let start = Start {
        name: "zygote",
        daemon: true,
        program: prelude.program,
        args: prelude.args,
        env: prelude.env,
        directory: prelude.directory,
        stdio: prelude
            .null
            .map(|null| if null { Stdio::Null } else { Stdio::Inherit }),
        payload,
        ..Start::new(Method::Zygote)
    };
    let zygote = spawn::spawn_with(family, &start, Some(theirs.as_fd()))?;
    Ok(Link {
        family,
        zygote,
        requests: ours,
    })
}

/// What became of a request.
enum Answer {
    Born(Box<Child>),
    /// The fork failed, with this error.
    Unborn(i32),
    /// The zygote died, and it is certain that no child came of it.
    Gone,
    /// The zygote died, and there may have been a child; it dies too.
    Lost,
    /// The zygote lives and says nothing.
    Silent,
}

fn request(link: &Link, start: &Start<'_>) -> Result<Answer> {
    let family = link.family;
    let letter = Letter::of(start);
    let letter = letter.write();
    let parts: Vec<&[u8]> = std::iter::once(letter.as_slice())
        .chain(start.payload.iter().copied())
        .collect();
    let embryo = Embryo::prepare(family, start, &parts)?;
    let origin = Origin::own(family)?;
    let streams = embryo::streams(&start.stdio)?;
    let (line, far_end) = Kept::make_pair(socket::pair)?;
    let (block, at, length) = embryo.payload.expect("a letter is never empty");
    let request = Request {
        slot: embryo.slot,
        generation: embryo.generation,
        parent: origin.pid,
        lifeline: embryo.lifeline.is_some(),
        streams: streams.each_ref().map(Option::is_some),
        fds: start.fds.len() as u8,
        block,
        start: at,
        length,
        letter: letter.len() as u64,
    };
    let mut fds = vec![far_end.as_fd(), origin.sentinel.as_fd()];
    fds.extend(embryo.lifeline.as_ref().map(|(read, _)| read.as_fd()));
    fds.extend(streams.iter().flatten().map(AsFd::as_fd));
    fds.extend(start.fds);
    let oom_kills = embryo::oom_kills();

    let patience = Deadline::after(PATIENCE);
    loop {
        match socket::send(link.requests.as_fd(), &[&request.write()], &fds) {
            Ok(true) => break,
            Ok(false) => {
                let requests = link.requests.as_fd();
                if !poll::wait_one_calmly(requests, Interest::Writable, patience)? {
                    return Ok(Answer::Silent);
                }
            }
            Err(Error::EndOfFile { .. }) => return Ok(Answer::Gone),
            Err(error) => return Err(error),
        }
    }
    drop(fds);
    drop(far_end);
    // DEATH: the request is with the zygote; it forks a child whose lifeline is cut and whose slot is given up.
    crate::fault::point("zygote.requested");
    let mut answer = [0; ANSWER];
    let mut pidfd = Vec::new();
    loop {
        match socket::recv(line.as_fd(), &mut answer, &mut pidfd, false)? {
            Received::Packet(ANSWER) => break,
            Received::Packet(_) | Received::End => {
                // No child can begin once the slot is given up; if that came too late, the cut lifeline ends it.
                return Ok(if embryo.give_up() {
                    Answer::Gone
                } else {
                    Answer::Lost
                });
            }
            Received::Nothing => {
                if !poll::wait_one_calmly(line.as_fd(), Interest::Readable, patience)? {
                    return Ok(Answer::Silent);
                }
            }
        }
    }
    let (code, pid) = read_answer(answer);
    match pidfd.pop() {
        Some(pidfd) if code == 0 => {
            let pidfd = Kept::new(pidfd);
            let child = embryo.born_as(pid as u32, pidfd, Some(line), start, oom_kills);
            Ok(Answer::Born(Box::new(child)))
        }
        _ if code != 0 => Ok(Answer::Unborn(code)),
        _ => {
            // The child is there and its descriptor was lost on the way: this process has no number free for it.
            process::kill_number(pid as u32);
            Err(Error::os("take up a child", rustix::io::Errno::MFILE))
        }
    }
}

/// How a child ended, as its zygote tells it on the line; `None` if the zygote is gone.
pub(super) fn ending(line: BorrowedFd<'_>) -> Result<Option<Ended>> {
    let grace = Deadline::after(GRACE);
    let mut answer = [0; ANSWER];
    loop {
        match socket::recv(line, &mut answer, &mut Vec::new(), false)? {
            Received::Packet(ANSWER) => {
                let (code, peak_memory) = read_answer(answer);
                return Ok(Some(Ended { code, peak_memory }));
            }
            Received::Packet(_) | Received::End => return Ok(None),
            Received::Nothing => {
                if !poll::wait_one_calmly(line, Interest::Readable, grace)? {
                    return Ok(None);
                }
            }
        }
    }
}

/// A zygote's answers: a code, and a number or a size.
const ANSWER: usize = 12;

fn write_answer(code: i32, number: u64) -> [u8; ANSWER] {
    let mut bytes = [0; ANSWER];
    bytes[..4].copy_from_slice(&code.to_ne_bytes());
    bytes[4..].copy_from_slice(&number.to_ne_bytes());
    bytes
}

fn read_answer(bytes: [u8; ANSWER]) -> (i32, u64) {
    let (code, number) = bytes.split_at(4);
    (
        i32::from_ne_bytes(code.try_into().expect("four bytes")),
        u64::from_ne_bytes(number.try_into().expect("eight bytes")),
    )
}

/// What a parent asks of a zygote, as it stands in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    slot: u32,
    generation: u32,
    parent: u32,
    lifeline: bool,
    streams: [bool; 3],
    /// Descriptors for the child itself.
    fds: u8,
    block: u64,
    start: u64,
    length: u64,
    /// Of the block's bytes, how many are the letter.
    letter: u64,
}

const REQUEST: usize = 56;
const REQUEST_MAGIC: u64 = u64::from_le_bytes(*b"zygote\0\x01");

impl Request {
    fn write(&self) -> [u8; REQUEST] {
        let streams = self.streams.iter().enumerate();
        let streams: u64 = streams.map(|(i, set)| u64::from(*set) << (i + 1)).sum();
        let words = [
            REQUEST_MAGIC,
            u64::from(self.slot) << 32 | u64::from(self.generation),
            u64::from(self.parent) << 32
                | u64::from(self.fds) << 8
                | u64::from(self.lifeline)
                | streams,
            self.block,
            self.start,
            self.length,
            self.letter,
        ];
        let mut bytes = [0; REQUEST];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Request> {
        let bytes: &[u8; REQUEST] = bytes.try_into().ok()?;
        let word = |index: usize| {
            u64::from_ne_bytes(bytes[index * 8..][..8].try_into().expect("eight bytes"))
        };
        (word(0) == REQUEST_MAGIC).then(|| Request {
            slot: (word(1) >> 32) as u32,
            generation: word(1) as u32,
            parent: (word(2) >> 32) as u32,
            lifeline: word(2) & 1 != 0,
            streams: [1, 2, 3].map(|bit| word(2) >> bit & 1 != 0),
            fds: (word(2) >> 8) as u8,
            block: word(3),
            start: word(4),
            length: word(5),
            letter: word(6),
        })
    }
}

/// What of a [`Start`] the child itself sets up; it stands before the payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Letter {
    directory: Option<PathBuf>,
    env: Vec<(OsString, Option<OsString>)>,
}

impl Letter {
    fn of(start: &Start<'_>) -> Letter {
        Letter {
            directory: start.directory.clone(),
            env: start.env.clone(),
        }
    }

    /// Strings, each closed by a zero, after a letter that says what follows.
    fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut put = |what: u8, texts: &[&OsStr]| {
            bytes.push(what);
            for text in texts {
                bytes.extend(text.as_bytes().iter().filter(|byte| **byte != 0));
                bytes.push(0);
            }
        };
        if let Some(directory) = &self.directory {
            put(b'd', &[directory.as_os_str()]);
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => put(b's', &[name, value]),
                None => put(b'r', &[name]),
            }
        }
        put(b'.', &[]);
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Letter> {
        let mut letter = Letter::default();
        let mut rest = bytes;
        loop {
            let (what, after) = rest.split_first()?;
            rest = after;
            let mut text = || {
                let end = rest.iter().position(|byte| *byte == 0)?;
                let text = OsString::from_vec(rest[..end].to_vec());
                rest = &rest[end + 1..];
                Some(text)
            };
            match what {
                b'd' => letter.directory = Some(text()?.into()),
                b's' => {
                    let name = text()?;
                    letter.env.push((name, Some(text()?)));
                }
                b'r' => letter.env.push((text()?, None)),
                b'.' => return rest.is_empty().then_some(letter),
                _ => return None,
            }
        }
    }
}

/// This process, as a zygote that is getting ready.
#[derive(Debug)]
pub struct Zygote {
    family: &'static Family,
    payload: Parcel,
    requests: OwnedFd,
}

/// A child of the zygote's whose end is to be told.
struct Ward {
    pidfd: Kept,
    line: Kept,
}

impl Zygote {
    pub(super) fn new(family: &'static Family, payload: Parcel, requests: OwnedFd) -> Zygote {
        Zygote {
            family,
            payload,
            requests,
        }
    }

    /// The family that it serves.
    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The bytes from [`set_zygote`]: what to get ready.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Waits for requests and forks children, in each of which it returns. In the zygote itself it never does.
    ///
    /// The process must have one thread: what others had locked would stay locked in the children.
    pub fn serve(self) -> Result<Started> {
        let Zygote {
            family,
            payload,
            requests,
        } = self;
        drop(payload);
        // A terminal's Ctrl-C is for the program's processes; this one goes when its parent goes.
        process::hold_back_terminal();
        let requests = Kept::new(requests);
        let mut wards: Vec<Ward> = Vec::new();
        loop {
            let mut watched = vec![(requests.as_fd(), Interest::Readable)];
            watched.extend(
                wards
                    .iter()
                    .map(|ward| (ward.pidfd.as_fd(), Interest::Readable)),
            );
            match poll::wait(&watched, Deadline::NEVER) {
                Ok(_) | Err(Error::Interrupted { .. }) => {}
                Err(error) => return Err(error),
            }
            wards.retain(|ward| !tell_end(ward));
            let mut packet = [0; REQUEST];
            let mut fds = Vec::new();
            match socket::recv(requests.as_fd(), &mut packet, &mut fds, false)? {
                Received::Nothing => {}
                Received::End => process::exit_now(0),
                Received::Packet(length) => {
                    let order = Request::read(&packet[..length.min(REQUEST)])
                        .and_then(|request| Order::sort(request, fds));
                    // What came without all of its descriptors is not answered: its sender finds the line closed.
                    let Some(order) = order else { continue };
                    match order.fulfil(family) {
                        Outcome::Child(started) => return Ok(*started),
                        Outcome::Zygote(ward) => wards.extend(ward),
                    }
                }
            }
        }
    }
}

/// Tells how a child ended, if it has.
fn tell_end(ward: &Ward) -> bool {
    match process::collect(ward.pidfd.as_fd()) {
        Ok(None) => false,
        Ok(Some(ended)) => {
            // DEATH: collected and not told: its parent finds the line closed, and the ending is unknown.
            crate::fault::point("zygote.collected");
            let _ = socket::send(
                ward.line.as_fd(),
                &[&write_answer(ended.code, ended.peak_memory)],
                &[],
            );
            true
        }
        Err(_) => true,
    }
}

/// A request with its descriptors, sorted.
struct Order {
    request: Request,
    line: Kept,
    sentinel: OwnedFd,
    lifeline: Option<OwnedFd>,
    streams: [Option<OwnedFd>; 3],
    fds: Vec<OwnedFd>,
}

/// The two sides of a zygote's fork.
enum Outcome {
    Child(Box<Started>),
    Zygote(Option<Ward>),
}

impl Order {
    fn sort(request: Request, fds: Vec<OwnedFd>) -> Option<Order> {
        let mut fds = fds.into_iter();
        let line = Kept::new(fds.next()?);
        let sentinel = fds.next()?;
        let lifeline = if request.lifeline {
            Some(fds.next()?)
        } else {
            None
        };
        let mut streams = [None, None, None];
        for (place, wanted) in streams.iter_mut().zip(request.streams) {
            if wanted {
                *place = Some(fds.next()?);
            }
        }
        let whole = fds.len() == usize::from(request.fds);
        whole.then(|| Order {
            request,
            line,
            sentinel,
            lifeline,
            streams,
            fds: fds.collect(),
        })
    }

    fn fulfil(self, family: &'static Family) -> Outcome {
        if let Err(error) = self.welcome(family) {
            return self.refuse(&error);
        }
        // SAFETY: a zygote has one thread, by the contract of `serve`.
        #[expect(unsafe_code, reason = "forks a process that has one thread")]
        let forked = unsafe { process::fork() };
        match forked {
            Err(error) => self.refuse(&error),
            Ok(Forked::Child) => match self.begin(family) {
                Ok(started) => Outcome::Child(Box::new(started)),
                Err(_) => process::exit_now(UNBORN),
            },
            Ok(Forked::Parent(pid)) => match Kept::make(|| process::pidfd(pid)) {
                Ok(pidfd) => {
                    // DEATH: forked and not told: the parent finds the line closed, gives the slot up and cuts the
                    // lifeline.
                    crate::fault::point("zygote.forked");
                    let answer = write_answer(0, pid.into());
                    let _ = socket::send(self.line.as_fd(), &[&answer], &[pidfd.as_fd()]);
                    Outcome::Zygote(Some(Ward {
                        pidfd,
                        line: self.line,
                    }))
                }
                Err(error) => {
                    process::abandon(pid);
                    self.refuse(&error)
                }
            },
        }
    }

    /// Sets the child's bits for what this process is attached to, if the child is still wanted.
    fn welcome(&self, family: &'static Family) -> Result<()> {
        let place = family.processes().get(self.request.slot as usize);
        let word = place.map(|place| ProcWord::unpack(place.state.load(Ordering::Acquire)));
        match word {
            Some(word)
                if word.state == ProcState::Embryo
                    && word.generation == self.request.generation =>
            {
                object::attach_for_child(family, family.me()?, self.request.slot)
            }
            _ => Err(Error::Misuse {
                action: "fork in the zygote",
                why: "the parent gave the child up",
            }),
        }
    }

    fn refuse(&self, error: &Error) -> Outcome {
        let code = match error {
            Error::Os { source, .. } => source.raw_os_error(),
            _ => None,
        };
        // `EAGAIN`, where the error is not the system's: a limit of the family.
        let answer = write_answer(code.unwrap_or(11), 0);
        let _ = socket::send(self.line.as_fd(), &[&answer], &[]);
        Outcome::Zygote(None)
    }

    /// In the child.
    fn begin(self, family: &'static Family) -> Result<Started> {
        process::unblock_signals();
        let request = self.request;
        let parent = Parent::new(
            request.parent,
            bootstrap::parent_name(family, request.slot),
            Some(self.sentinel),
        );
        let place = (request.slot, request.generation);
        bootstrap::arrive(family, place, self.lifeline, parent)?;
        let block = Some((request.block, request.start, request.length));
        let mut payload = bootstrap::unpack(family, block)?;
        let letter = usize::try_from(request.letter)
            .ok()
            .and_then(|length| Letter::read(payload.get(..length)?));
        let letter = letter.ok_or(Error::Malformed {
            what: "a request to the zygote",
            why: "its letter cannot be read",
        })?;
        payload.cut_front(request.letter);
        embryo::redirect(&self.streams, letter.directory.as_deref())?;
        for (name, value) in &letter.env {
            process::set_variable(name, value.as_deref());
        }
        Ok(Started {
            family,
            payload,
            fds: self.fds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let request = Request {
            slot: 7,
            generation: 0xff_fffe,
            parent: 1234,
            lifeline: true,
            streams: [false, true, true],
            fds: 48,
            block: 1 << 40,
            start: 16,
            length: 3,
            letter: 1,
        };
        assert_eq!(Request::read(&request.write()), Some(request));
        assert_eq!(Request::read(&[0; REQUEST]), None);
    }

    #[test]
    fn a_letter_is_read_as_it_was_written() {
        let letter = Letter {
            directory: Some("/".into()),
            env: vec![
                ("A".into(), Some("1=2".into())),
                ("B".into(), None),
                ("C".into(), Some("".into())),
            ],
        };
        assert_eq!(Letter::read(&letter.write()), Some(letter.clone()));
        let bytes = letter.write();
        for cut in 0..bytes.len() {
            assert_eq!(Letter::read(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}
