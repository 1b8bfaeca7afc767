//! Messages in order, many writers and many readers.
//!
//! A [`Queue`] has one flavor so far: `ring`, in shared memory. Start with [`Queue::put`] and [`Queue::get`], which
//! mirror each other: reserve → copy → publish → wake, claim → copy → release → wake. `message` is what travels.
//!
//! This room knows nothing of objects: it carries bytes, a tag that says what they are, and handles.

mod doorbell;
pub(crate) mod message;
pub(crate) mod ring;

use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::memory::family::{Family, Me};
use crate::memory::object::Handle;
use crate::tag::Tag;
pub use message::Message;
use message::{Held, Prepared};
use ring::Ring;
use std::any::Any;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// What becomes of a message whose holder died before it was done with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDeath {
    /// It is gone with its holder, as in the standard library. In a joinable queue it counts as done.
    #[default]
    Drop,
    /// It goes to the end of the queue again, for another consumer.
    Redeliver,
    /// It goes to the end of another queue, with the number of the process that died ([`Message::victim`]).
    DeadLetters(Handle),
}

/// How a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The most messages inside; `None` without limit: then putting never waits.
    pub max_items: Option<u64>,
    /// Whether messages are counted until they are done, for [`Queue::join`].
    pub joinable: bool,
    /// What becomes of messages whose holder died.
    pub on_death: OnDeath,
}

/// A message that is about to be put: what its bytes are, the bytes in parts, and the handles in it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// What the bytes are.
    pub tag: Tag,
    /// The bytes, in as many pieces as they come.
    pub parts: &'a [&'a [u8]],
    /// Objects that the message names. They live at least until the message is dropped by its receiver.
    pub handles: &'a [Handle],
}

impl<'a> Outgoing<'a> {
    /// Bytes without handles.
    pub fn bytes(tag: Tag, parts: &'a [&'a [u8]]) -> Outgoing<'a> {
        Outgoing {
            tag,
            parts,
            handles: &[],
        }
    }
}

/// A queue of messages between any processes of a family.
///
/// What was put stays put: the death of the writer takes nothing back. A message is got by one reader, whole.
///
/// ```
/// use procession_core::{Deadline, Queue, Tag};
///
/// let family = procession_core::family().create()?;
/// let queue = Queue::create(family, &Default::default())?;
/// queue.put(Tag::RAW, &[b"hello, ", b"world"], Deadline::NEVER)?;
/// assert_eq!(queue.len(), 1);
/// assert_eq!(queue.get(Deadline::NEVER)?.bytes(), b"hello, world");
/// assert!(queue.get(Deadline::PASSED).unwrap_err().is_timeout());
/// # Ok::<(), procession_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Queue {
    ring: Ring,
}

impl Queue {
    /// Creates a queue.
    pub fn create(family: &'static Family, options: &Options) -> Result<Queue> {
        Ok(Queue {
            ring: Ring::create(family, options)?,
        })
    }

    /// Attaches to the queue of a handle.
    pub fn attach(family: &'static Family, handle: Handle) -> Result<Queue> {
        Ok(Queue {
            ring: Ring::attach(family, handle)?,
        })
    }

    /// The name by which other processes attach.
    pub fn handle(&self) -> Handle {
        self.ring.handle()
    }

    /// The family it belongs to.
    pub fn family(&self) -> &'static Family {
        self.ring.family()
    }

    /// Puts a message at the tail, waiting for room until `deadline`.
    ///
    /// Fails with [`Error::TimedOut`] if there is no room in time, [`Error::Closed`] after [`Queue::close`],
    /// [`Error::Exhausted`] if the arena is full; then nothing was put.
    pub fn put(&self, tag: Tag, parts: &[&[u8]], deadline: Deadline) -> Result<()> {
        self.put_message(Outgoing::bytes(tag, parts), deadline)
    }

    /// [`Queue::put`] for a message with handles.
    pub fn put_message(&self, message: Outgoing<'_>, deadline: Deadline) -> Result<()> {
        let me = self.family().me()?;
        if self.ring.leased_by().is_none()
            && let Some((header, words)) = message::inline(&message)
        {
            return self.ring.put_inline(me, header, &words, deadline);
        }
        let mut one = [self.prepare(me, message)?];
        self.ring
            .put(me, &mut one, deadline)
            .map(|_| ())
            .inspect_err(|_| {
                let [message] = one;
                message.discard(self.family(), me);
            })
    }

    /// Puts messages in order under one latch and with one wake, waiting for room; returns how many were put before the
    /// deadline passed. None of them is put if one cannot be made (the arena is full, a handle is stale).
    pub fn put_many(&self, messages: &[Outgoing<'_>], deadline: Deadline) -> Result<usize> {
        let me = self.family().me()?;
        let mut prepared = Vec::with_capacity(messages.len());
        for message in messages {
            match self.prepare(me, *message) {
                Ok(message) => prepared.push(message),
                Err(error) => {
                    prepared
                        .into_iter()
                        .for_each(|message| message.discard(self.family(), me));
                    return Err(error);
                }
            }
        }
        let answer = self.ring.put(me, &mut prepared, deadline);
        let put = *answer.as_ref().unwrap_or(&0);
        prepared
            .drain(put..)
            .for_each(|message| message.discard(self.family(), me));
        answer
    }

    #[inline]
    fn prepare(&self, me: Me, message: Outgoing<'_>) -> Result<Prepared> {
        Prepared::new(self.family(), me, message, self.ring.leased_by())
    }

    /// Takes the message at the head, waiting for one until `deadline`.
    ///
    /// Fails with [`Error::TimedOut`] if none comes in time, [`Error::Closed`] when none will come any more.
    pub fn get(&self, deadline: Deadline) -> Result<Message> {
        let me = self.family().me()?;
        let mut one = None;
        self.ring
            .get(me, 1, deadline, &mut |message| one = Some(message))?;
        let message = one.ok_or_else(|| Error::Damaged {
            offset: self.ring.body_offset(),
            why: "a queue gave no message",
        })?;
        self.note_loans(std::slice::from_ref(&message))?;
        Ok(message)
    }

    /// Takes up to `most` messages under one latch, waiting only for the first.
    pub fn get_many(&self, most: usize, deadline: Deadline) -> Result<Vec<Message>> {
        let me = self.family().me()?;
        let mut messages = Vec::new();
        self.ring
            .get(me, most.max(1) as u64, deadline, &mut |message| {
                messages.push(message)
            })?;
        self.note_loans(&messages)?;
        Ok(messages)
    }

    /// Remembers the loans among the messages, for [`Queue::task_done`].
    #[inline]
    fn note_loans(&self, messages: &[Message]) -> Result<()> {
        if self.ring.leased_by().is_none() {
            return Ok(());
        }
        self.note_leased(messages)
    }

    fn note_leased(&self, messages: &[Message]) -> Result<()> {
        let mut leases = self.family().local_state()?.leases.lock();
        let loans = leases.entry(self.handle().to_bits()).or_default();
        for held in messages.iter().filter_map(Message::loan) {
            let held: Arc<dyn Any + Send + Sync> = held.clone();
            loans.push_back(held);
        }
        Ok(())
    }

    /// Counts the oldest message that this process took, and is not done with, as done.
    ///
    /// A process that took none may call it for one that another took, as in the standard library. Fails with
    /// [`Error::NotHeld`] if all that was put is done.
    pub fn task_done(&self) -> Result<()> {
        let me = self.family().me()?;
        loop {
            let oldest = {
                let mut leases = self.family().local_state()?.leases.lock();
                leases
                    .get_mut(&self.handle().to_bits())
                    .and_then(|loans| loans.pop_front())
            };
            match oldest.map(Arc::downcast::<Held>) {
                Some(Ok(held)) if held.is_of(me) && held.end_loan() => {
                    return self.ring.task_done(me, Some(held.offset()));
                }
                Some(_) => {}
                None => return self.ring.task_done(me, None),
            }
        }
    }

    /// Counts this message as done.
    pub fn done(&self, message: &Message) -> Result<()> {
        match self.take_loan(message)? {
            Some((me, held)) => self.ring.task_done(me, Some(held.offset())),
            None => Err(Error::NotHeld {
                what: "a queue's message",
                why: "it is not on loan, or was done already",
            }),
        }
    }

    /// Gives this message back to the end of the queue, for another consumer.
    pub fn give_back(&self, message: Message) -> Result<()> {
        match self.take_loan(&message)? {
            Some((me, held)) => {
                let returned = self
                    .family()
                    .or_sweep(me, || self.ring.give_back(me, held.offset()));
                held.forget();
                returned
            }
            None => Err(Error::NotHeld {
                what: "a queue's message",
                why: "it is not on loan, or was done already",
            }),
        }
    }

    /// Ends a message's loan in this process's books; `None` if there is none to end.
    fn take_loan(&self, message: &Message) -> Result<Option<(Me, Arc<Held>)>> {
        let me = self.family().me()?;
        let Some(held) = message.loan().filter(|held| held.is_of(me)) else {
            return Ok(None);
        };
        if !held.end_loan() {
            return Ok(None);
        }
        let mut leases = self.family().local_state()?.leases.lock();
        if let Some(loans) = leases.get_mut(&self.handle().to_bits()) {
            loans.retain(|other| !std::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(held)));
        }
        Ok(Some((me, held.clone())))
    }

    /// Waits until every message that was put into a joinable queue is done.
    pub fn join(&self, deadline: Deadline) -> Result<()> {
        if !self.ring.is_joinable() {
            return Err(Error::Misuse {
                action: "join a queue",
                why: "it was not created joinable",
            });
        }
        self.ring.join(self.family().me()?, deadline)
    }

    /// Refuses further puts. What is inside can still be got; then [`Queue::get`] fails with [`Error::Closed`].
    pub fn close(&self) -> Result<()> {
        self.ring.close(self.family().me()?)
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed()
    }

    /// A descriptor that polls readable while messages are inside, or the queue is closed: for event loops.
    ///
    /// It is made for the whole family at the first call; from then on each put costs a system call. Poll it, then
    /// [`Queue::get`] with [`Deadline::PASSED`] until that times out: the descriptor may be readable for nothing.
    /// Fails with [`Error::Exhausted`] when 256 descriptors wait in the family's locker.
    pub fn doorbell(&self) -> Result<BorrowedFd<'_>> {
        self.ring.doorbell(self.family().me()?)
    }

    /// How many messages are inside, exactly.
    pub fn len(&self) -> usize {
        self.ring.length() as usize
    }

    /// Whether no message is inside.
    pub fn is_empty(&self) -> bool {
        self.ring.length() == 0
    }

    /// Whether as many are inside as there may be.
    pub fn is_full(&self) -> bool {
        self.max_items()
            .is_some_and(|max| self.ring.length() >= max)
    }

    /// The most messages that may be inside, if there is a limit.
    pub fn max_items(&self) -> Option<u64> {
        self.ring.max_items()
    }

    /// Whether a message whose holder died goes to another ([`OnDeath::Redeliver`]).
    pub fn redelivers(&self) -> bool {
        self.ring.redelivers()
    }

    /// How many messages were put and are not done, in a joinable queue; in others, how many were ever put.
    pub fn unfinished(&self) -> u64 {
        self.ring.unfinished()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Queue");
        shown.field("len", &self.len());
        if let Some(max) = self.max_items() {
            shown.field("max_items", &max);
        }
        if self.ring.is_joinable() {
            shown.field("unfinished", &self.unfinished());
        }
        shown
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
