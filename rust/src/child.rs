//! The other side of a start: what a child does with what its parent gave it.

use crate::codec::{self, Named};
use crate::error::Result;
use crate::image::{Build, Image};
use crate::task::{self, Call, Fate, Ran};
use crate::{program, waiting};
use procession_core::process::Started;
use procession_core::{Deadline, Parcel, Queue};
use serde::{Deserialize, Serialize};
use std::io::Write;

/// The first word of a parent to its child, which every build understands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Greeting {
    /// The build that the parent is.
    build: Build,
    /// The queue on which it waits for the report.
    reply: Option<Named>,
}

/// What a child is to do. The task's arguments follow.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) call: Call,
    /// The real standard output is the first of its descriptors: a test harness has written into the other.
    pub(crate) swaps_stdout: bool,
}

/// What a child exits with that returned, that panicked, and that could not do what it was asked.
const DONE: i32 = 0;
const PANICKED: i32 = 101;
const REFUSED: i32 = 70;

impl Greeting {
    pub(crate) fn new(reply: Option<&Queue>) -> Greeting {
        Greeting {
            build: Image::own().build().clone(),
            reply: reply.map(|queue| Named(queue.handle())),
        }
    }
}

/// Does what the parent asked, and ends.
pub(crate) fn run(started: Started) -> ! {
    program::join(started.family);
    let code = obey(started);
    // The result is out; what cannot be done about children now could be done by nobody.
    let _ = program::finish();
    std::process::exit(code)
}

#[expect(
    clippy::print_stderr,
    reason = "a parent that cannot be answered can only be shown"
)]
fn obey(started: Started) -> i32 {
    let Started {
        family,
        payload,
        mut fds,
        ..
    } = started;
    let (greeting, rest): (Greeting, _) = match codec::decode_first(&payload) {
        Ok(decoded) => decoded,
        Err(error) => {
            eprintln!("procession: this process was started by something else: {error}");
            return REFUSED;
        }
    };
    let rest = payload.len() - rest.len();
    let reply = greeting
        .reply
        .map(|Named(handle)| Queue::attach(family, handle));
    let reply = match reply.transpose() {
        Ok(reply) => reply,
        Err(error) => {
            eprintln!("procession: nobody waits for this process: {error}");
            return REFUSED;
        }
    };
    let mut code = REFUSED;
    let mut take = |ran: &Ran| code = answer(reply.as_ref(), ran);
    match prepare(&greeting.build, &payload[rest..]) {
        Ok((order, length)) => {
            if order.swaps_stdout && !fds.is_empty() {
                // What the harness has not written yet is swallowed.
                let _ = std::io::stdout().flush();
                let _ = rustix::stdio::dup2_stdout(fds.remove(0));
            }
            let arguments = Rest {
                payload,
                start: rest + length,
            };
            match order.call.entry() {
                Some(entry) => entry(Box::new(arguments), &mut take),
                None => take(&task::refuse_because(
                    "the function does not lie in this program".into(),
                )),
            }
        }
        Err(refused) => take(&refused),
    }
    code
}

/// Reads the order of a parent that is the same build; also how long it is.
fn prepare(build: &Build, bytes: &[u8]) -> Result<(Order, usize), Ran> {
    let own = Image::own().build();
    if build != own {
        return Err(task::refuse_because(format!(
            "this process runs another build of the program than its parent: {own} instead of {build}"
        )));
    }
    match codec::decode_first(bytes) {
        Ok((order, rest)) => Ok((order, bytes.len() - rest.len())),
        Err(error) => Err(task::refuse(&error)),
    }
}

/// Sends the report; what the process should exit with.
pub(crate) fn answer(reply: Option<&Queue>, ran: &Ran) -> i32 {
    let Some(reply) = reply else {
        return code(ran.fate);
    };
    let send = |ran: &Ran| {
        ran.report.send(|message| {
            waiting::through_signals(|| reply.put_message(message, Deadline::NEVER))
        })
    };
    match send(ran) {
        Ok(()) => code(ran.fate),
        Err(error) => {
            // Too large for the memory there is, or it names an object that is gone. The reason is short; should even
            // that not go out, the exit code tells.
            let _ = send(&task::refuse(&error));
            REFUSED
        }
    }
}

fn code(fate: Fate) -> i32 {
    match fate {
        Fate::Returned => DONE,
        Fate::Panicked => PANICKED,
        Fate::Refused => REFUSED,
    }
}

/// What follows in a payload.
struct Rest {
    payload: Parcel,
    start: usize,
}

impl AsRef<[u8]> for Rest {
    fn as_ref(&self) -> &[u8] {
        &self.payload[self.start..]
    }
}
