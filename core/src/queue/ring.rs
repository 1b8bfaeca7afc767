//! The flavor in shared memory: two latches over linked segments of entries.
//!
//! ```text
//! body      line 0  limits, flags               read by all
//!           line 1  latch, last segment         producers
//!           line 2  latch, head, first segment  consumers
//!           line 3  the words on which they sleep; what is done
//!           line 4  tail                        from producers to consumers, who wait for it
//! segment   next, number of its first entry, capacity; then entries of 64 bytes
//! entry     block (0: inline) · length and tag · 48 bytes
//! ```
//!
//! Entries are numbered from 0 for ever. The messages in the queue are those from `head` to `tail`; putting one is the
//! store of `tail`, taking one the store of `head`. Everything else is written before, or derived, or described by an
//! intent. An inline message needs no intent: before the store it is nowhere, after it it is in the queue.

use super::doorbell::{self, Doorbell};
use super::message::{Header, Lease, Message, Prepared, pid_of};
use super::{OnDeath, Options};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::fault;
use crate::memory::block::State;
use crate::memory::family::{Family, Me};
use crate::memory::fsck::Fsck;
use crate::memory::intent::{Intent, Op};
use crate::memory::latch::{Acquired, Latch};
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::memory::park::{self, Spin, Watch};
use crate::memory::reclaim;
use crate::sys::futex::{self, Wake};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::Duration;

/// This kind's number.
pub(crate) const QUEUE: u32 = 7;

pub(crate) const KIND: Kind = Kind {
    resume,
    destroy,
    lost,
    check,
    forget: Some(forget),
    ..Kind::plain("queue")
};

shared! {
    pub(crate) struct Body: 320 {
        flags: AtomicU32,
        closed: AtomicU32,
        /// Most messages inside; 0 without limit.
        max_items: AtomicU64,
        /// The handle of the queue that takes messages whose holder died; kept alive by this word. 0 for none.
        dead_letters: AtomicU64,
        /// This queue's own handle.
        handle: AtomicU64,
        /// The doorbell's ticket; kept alive by this word. 0 for none.
        pub(super) doorbell: AtomicU64,
        line0: [AtomicU64; 3],

        tail_latch: Latch,
        tail_segment: AtomicU64,
        /// What `head` was when a producer last had to know; never more than it is.
        head_seen: AtomicU64,
        line1: [AtomicU64; 5],

        pub(super) head_latch: Latch,
        /// The number of the next message to be taken. Stored first: the commit of a get.
        head: AtomicU64,
        head_segment: AtomicU64,
        /// What `tail` was when a consumer last had to know; never more than it is.
        tail_seen: AtomicU64,
        line2: [AtomicU64; 4],

        /// Consumers sleep here until there is a message.
        ready: Bell,
        /// Producers sleep here until there is room.
        space: Bell,
        /// Sleepers wait here until all is done.
        idle: Bell,
        done_latch: Latch,
        /// How many messages are finished with, in a joinable queue.
        done: AtomicU64,
        line3: [AtomicU64; 3],

        /// The number of the next message to be put. Stored last: the commit of a put. On a line of its own, because
        /// idle consumers look at it all the time: the latch is not to travel with it.
        tail: AtomicU64,
        line4: [AtomicU64; 7],
    }
}

const JOINABLE: u32 = 1;
/// Messages are leased to who takes them: their block stays in the arena until it is done or given back.
const LEASED: u32 = 2;
const REDELIVER: u32 = 4;
const DEAD_LETTERS: u32 = 8;

shared! {
    struct Segment: 64 {
        /// The segment after this one, 0 while it is the last.
        next: AtomicU64,
        /// The number of its first entry.
        first: AtomicU64,
        capacity: AtomicU64,
        reserved: [AtomicU64; 5],
    }
}

shared! {
    struct Entry: 64 {
        /// Where the message lies; 0: in `words`.
        block: AtomicU64,
        header: AtomicU64,
        words: [AtomicU64; 6],
    }
}

/// Entries of a queue's first segment and of all others: blocks of 1 KiB and 8 KiB.
const CAPACITY_FIRST: u64 = 15;
const CAPACITY: u64 = 127;

shared! {
    /// A word to sleep on until something was put, taken or done.
    ///
    /// ```text
    ///  31 .. 1  counts wakes, so that a wake meets also who is about to sleep
    ///  0        somebody may sleep
    /// ```
    struct Bell: 8 {
        word: AtomicU32,
        padding: AtomicU32,
    }
}

const WAITERS: u32 = 1;

impl Bell {
    /// Says that somebody will sleep, and the value to sleep on. After it, look once more at what is waited for.
    fn listen(&self) -> u32 {
        let seen = self.word.load(Ordering::Relaxed);
        let seen = if seen & WAITERS == 0 {
            self.word.fetch_or(WAITERS, Ordering::Relaxed) | WAITERS
        } else {
            seen
        };
        // ORDERING: pairs with the fence in `ring`: either the sleeper sees what was published, or the publisher sees
        // the sleeper.
        fence(Ordering::SeqCst);
        seen
    }

    /// Wakes up to `count` sleepers, if there are any. What they wait for was published before.
    #[inline]
    fn ring(&self, count: u32) {
        fence(Ordering::SeqCst);
        if self.word.load(Ordering::Relaxed) & WAITERS != 0 {
            self.ring_loud(count);
        }
    }

    #[cold]
    fn ring_loud(&self, count: u32) {
        let rung = self.word.fetch_add(2, Ordering::Relaxed).wrapping_add(2);
        if futex::wake(&self.word, count) == 0 {
            // Nobody sleeps. Who listened meanwhile has changed nothing here, but will find the word changed.
            let _ = self.word.compare_exchange(
                rung,
                rung & !WAITERS,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
    }
}

/// `[body, tail, count]`: messages with blocks are being put. Undone unless `tail` has moved.
const PUT: Op = Op {
    kind: QUEUE,
    code: 1,
};
/// `[body, head, count]`: messages with blocks are being taken. Finished if `head` has moved.
const GET: Op = Op {
    kind: QUEUE,
    code: 2,
};
/// `[body, last segment or 0, new segment]`: a segment is being linked. Finished.
const LINK: Op = Op {
    kind: QUEUE,
    code: 3,
};
/// `[body, segment, next or 0]`: a segment is being unlinked. Finished.
const UNLINK: Op = Op {
    kind: QUEUE,
    code: 4,
};
/// `[body, done before, block or 0, holder]`: a message is being counted as done. Finished.
const DONE: Op = Op {
    kind: QUEUE,
    code: 5,
};
/// `[body, done before, block, holder, body of the target, tail of the target]`: a leased message goes back. Finished;
/// once the target's `tail` has moved the message is a consumer's, and only the count is left to do.
const RETURN: Op = Op {
    kind: QUEUE,
    code: 6,
};

/// A queue in the arena.
#[derive(Clone)]
pub(crate) struct Ring {
    attached: Attached,
    body: &'static Body,
    /// Shared by the copies of this process.
    doorbell: Arc<Doorbell>,
}

impl Ring {
    pub(crate) fn create(family: &'static Family, options: &Options) -> Result<Ring> {
        let (mut flags, mut dead_letters) = (0, None);
        if options.joinable {
            flags |= JOINABLE | LEASED;
        }
        match options.on_death {
            OnDeath::Drop => {}
            OnDeath::Redeliver => flags |= REDELIVER | LEASED,
            OnDeath::DeadLetters(queue) => {
                flags |= DEAD_LETTERS | LEASED;
                dead_letters = Some(object::attach(family, QUEUE, queue)?);
            }
        }
        let attached = object::create(family, QUEUE, size_of::<Body>() as u64, |_, offset| {
            let body = family.region().view::<Body>(offset)?;
            body.flags.store(flags, Ordering::Release);
            body.max_items
                .store(options.max_items.unwrap_or(0), Ordering::Release);
            Ok(())
        })?;
        let ring = Ring::new(attached)?;
        ring.body
            .handle
            .store(ring.handle().to_bits(), Ordering::Release);
        if let Some(target) = dead_letters {
            let place = ring.attached.body() + std::mem::offset_of!(Body, dead_letters) as u64;
            object::keep(family, family.me()?, place, target.handle())?;
        }
        Ok(ring)
    }

    pub(crate) fn attach(family: &'static Family, handle: Handle) -> Result<Ring> {
        Ring::new(object::attach(family, QUEUE, handle)?)
    }

    fn new(attached: Attached) -> Result<Ring> {
        let body = attached.view::<Body>()?;
        Ok(Ring {
            attached,
            body,
            doorbell: Arc::default(),
        })
    }

    pub(crate) fn family(&self) -> &'static Family {
        self.attached.family()
    }

    pub(crate) fn handle(&self) -> Handle {
        self.attached.handle()
    }

    /// The descriptor for those who poll.
    pub(crate) fn doorbell(&self, me: Me) -> Result<BorrowedFd<'_>> {
        self.doorbell
            .fd(self.family(), me, self.body, self.body_offset())
    }

    pub(crate) fn body_offset(&self) -> u64 {
        self.attached.body()
    }

    fn has(&self, flag: u32) -> bool {
        self.body.flags.load(Ordering::Relaxed) & flag != 0
    }

    /// The handle that messages of this queue must carry, if they are leased.
    pub(crate) fn leased_by(&self) -> Option<Handle> {
        self.has(LEASED).then(|| self.handle())
    }

    pub(crate) fn redelivers(&self) -> bool {
        self.has(REDELIVER)
    }

    pub(crate) fn is_joinable(&self) -> bool {
        self.has(JOINABLE)
    }

    pub(crate) fn max_items(&self) -> Option<u64> {
        Some(self.body.max_items.load(Ordering::Relaxed)).filter(|max| *max > 0)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.body.is_closed()
    }

    pub(crate) fn length(&self) -> u64 {
        self.body.length()
    }

    pub(crate) fn unfinished(&self) -> u64 {
        loop {
            let done = self.body.done.load(Ordering::Acquire);
            let tail = self.body.tail.load(Ordering::Acquire);
            if self.body.done.load(Ordering::Acquire) == done {
                return tail.saturating_sub(done);
            }
        }
    }

    /// Puts messages in order, waiting for room; returns how many before the deadline. The blocks of those are not the caller's any more.
    ///
    /// reserve → copy (done in [`Prepared`]) → publish → wake
    pub(crate) fn put(
        &self,
        me: Me,
        messages: &mut [Prepared],
        deadline: Deadline,
    ) -> Result<usize> {
        let mut put = 0;
        while put < messages.len() {
            match self.put_some(me, &mut messages[put..], deadline) {
                Ok(count) => put += count,
                Err(error) if put == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(put)
    }

    /// [`Ring::put`] of one message that lies in its entry, without the moves that many and large ones need.
    pub(crate) fn put_inline(
        &self,
        me: Me,
        header: Header,
        words: &[u64; 6],
        deadline: Deadline,
    ) -> Result<()> {
        let family = self.family();
        loop {
            let Some((tail, _, segment)) = self.reserve(me, deadline)? else {
                continue;
            };
            let entry = match segment.entry(family, tail) {
                Ok(entry) => entry,
                Err(error) => {
                    self.body.tail_latch.release(family, me);
                    return Err(error);
                }
            };
            fill_inline(entry, header, words);
            self.publish(me, tail, 1, false);
            return Ok(());
        }
    }

    fn put_some(&self, me: Me, messages: &mut [Prepared], deadline: Deadline) -> Result<usize> {
        let (family, body) = (self.family(), self.body);
        let Some((tail, room, segment)) = self.reserve(me, deadline)? else {
            return Ok(0);
        };
        let count = (messages.len() as u64)
            .min(room)
            .min(segment.capacity() - (tail - segment.first()));
        let messages = &mut messages[..count as usize];
        let described = messages
            .iter()
            .any(|message| matches!(message, Prepared::Block { .. }));
        if described {
            family.intend(me, PUT, &[self.body_offset(), tail, count]);
        }
        let mut failed = None;
        for (index, message) in messages.iter().enumerate() {
            let entry = segment
                .entry(family, tail + index as u64)
                .and_then(|entry| fill(family, entry, message));
            failed = failed.or(entry.err());
        }
        if let Some(error) = failed {
            undo_put(family, body, tail, count, me.process);
            family.fulfil(me);
            body.tail_latch.release(family, me);
            return Err(error);
        }
        self.publish(me, tail, count, described);
        Ok(count as usize)
    }

    /// Takes the tail latch once there is room; returns `tail`, room for how many, and the segment that `tail` lies in.
    /// `None` if the caller should try again.
    #[inline]
    fn reserve(&self, me: Me, deadline: Deadline) -> Result<Option<(u64, u64, SegmentAt)>> {
        let (family, body) = (self.family(), self.body);
        let (tail, room) = self.enter_with_room(me, deadline)?;
        match body.room(family, me, self.body_offset(), tail) {
            Ok(segment) => Ok(Some((tail, room, segment))),
            Err(error) => {
                body.tail_latch.release(family, me);
                self.retry_after_sweep(me, error).map(|()| None)
            }
        }
    }

    /// Makes `count` filled entries messages, leaves the tail latch and wakes.
    #[inline]
    fn publish(&self, me: Me, tail: u64, count: u64, described: bool) {
        let (family, body) = (self.family(), self.body);
        let thread = family.thread(me.slot);
        // DEATH: published and nobody woken: `wake_owed` makes recovery wake for us. Set before, so that there is no
        // moment between.
        thread.wake_owed.store(
            family.region().offset_of(&body.ready.word),
            Ordering::Release,
        );
        fault::point("ring.filled");
        // ORDERING: Release pairs with the Acquire loads of `tail` by consumers: who sees it sees the entries.
        body.tail.store(tail + count, Ordering::Release);
        if described {
            family.fulfil(me);
        }
        body.tail_latch.release(family, me);
        fault::point("ring.published");
        body.ready.ring(count.min(u32::MAX.into()) as u32);
        self.doorbell.ring(family, body);
        thread.wake_owed.store(0, Ordering::Release);
    }

    /// After an allocation failed inside the latch: frees what the dead own, and says to try again.
    #[cold]
    fn retry_after_sweep(&self, me: Me, error: Error) -> Result<()> {
        let family = self.family();
        if !matches!(error, Error::Exhausted { .. }) {
            return Err(error);
        }
        // A block of a segment's size can be had: then so can the segment, most likely.
        let probe = family.or_sweep(me, || family.allocate(me, segment_length(CAPACITY)));
        family.free(me, probe.map_err(|_| error)?.offset);
        Ok(())
    }

    /// Takes the tail latch once there is room; returns `tail`, and room for how many.
    #[inline]
    fn enter_with_room(&self, me: Me, deadline: Deadline) -> Result<(u64, u64)> {
        let (family, body) = (self.family(), self.body);
        let mut slept = false;
        let answer = loop {
            if let Err(error) = enter(family, me, &body.tail_latch, deadline) {
                break Err(error);
            }
            if self.is_closed() {
                body.tail_latch.release(family, me);
                break Err(Error::Closed { what: "the queue" });
            }
            let tail = body.tail.load(Ordering::Relaxed);
            let room = self.room_after(tail);
            if room > 0 {
                break Ok((tail, room));
            }
            body.tail_latch.release(family, me);
            let has_room =
                || !self.is_full_at(body.tail.load(Ordering::Acquire)) || self.is_closed();
            if let Err(error) = sleep(
                family,
                me,
                &body.space,
                has_room,
                &mut slept,
                deadline,
                "room in the queue",
            ) {
                break Err(error);
            }
        };
        awake(family, me, &body.space, slept, answer.is_err());
        answer
    }

    /// How many may be put after `tail`, at least. Inside the tail latch.
    fn room_after(&self, tail: u64) -> u64 {
        let Some(max) = self.max_items() else {
            return u64::MAX;
        };
        // Consumers write their line with every get: it is looked at only when what was seen of it says "full".
        let seen = self.body.head_seen.load(Ordering::Relaxed);
        match max.saturating_sub(tail.wrapping_sub(seen)) {
            0 => {
                let head = self.body.head.load(Ordering::Acquire);
                self.body.head_seen.store(head, Ordering::Release);
                max.saturating_sub(tail.wrapping_sub(head))
            }
            room => room,
        }
    }

    fn is_full_at(&self, tail: u64) -> bool {
        self.max_items()
            .is_some_and(|max| tail.wrapping_sub(self.body.head.load(Ordering::Acquire)) >= max)
    }

    /// Takes up to `most` messages, waiting for the first.
    ///
    /// claim → copy → release → wake
    pub(crate) fn get(
        &self,
        me: Me,
        most: u64,
        deadline: Deadline,
        into: &mut impl FnMut(Message),
    ) -> Result<()> {
        let (family, body) = (self.family(), self.body);
        let mut slept = false;
        let answer = loop {
            match self.get_some(me, most, deadline, into) {
                Ok(0) => {}
                Ok(_) => break Ok(()),
                Err(error) => break Err(error),
            }
            if self.is_over() {
                break Err(Error::Closed { what: "the queue" });
            }
            let has_message = || body.length() > 0 || self.is_over();
            let slice = if self.has(REDELIVER) {
                // A message may come back from a process whose death nobody else is looking for.
                deadline.min(Deadline::after(REDELIVERY_BELT))
            } else {
                deadline
            };
            match sleep(
                family,
                me,
                &body.ready,
                has_message,
                &mut slept,
                slice,
                "a message",
            ) {
                Ok(()) => {}
                Err(Error::TimedOut { .. }) if !deadline.has_passed() => family.sweep(me),
                Err(error) => break Err(error),
            }
        };
        awake(family, me, &body.ready, slept, answer.is_err());
        answer
    }

    /// Whether no message will come any more: closed, empty, and nothing on loan that may come back.
    fn is_over(&self) -> bool {
        self.is_closed()
            && self.body.length() == 0
            && (!self.has(REDELIVER) || self.unfinished() == 0)
    }

    fn get_some(
        &self,
        me: Me,
        most: u64,
        deadline: Deadline,
        into: &mut impl FnMut(Message),
    ) -> Result<u64> {
        let (family, body) = (self.family(), self.body);
        if !body.may_have_messages() {
            self.doorbell.hush(family, body);
            return Ok(0);
        }
        enter(family, me, &body.head_latch, deadline)?;
        let taken = take(
            family,
            me,
            body,
            self.body_offset(),
            most,
            self.has(LEASED),
            into,
        );
        body.head_latch.release(family, me);
        let taken = taken?;
        self.doorbell.hush(family, body);
        if taken > 0 && self.max_items().is_some() {
            // DEATH: room that no producer was told of: they look again after a belt at most.
            body.space.ring(taken.min(u32::MAX.into()) as u32);
        }
        Ok(taken)
    }

    /// Refuses further puts; those who wait for a message that will not come are told.
    pub(crate) fn close(&self, me: Me) -> Result<()> {
        let (family, body) = (self.family(), self.body);
        // Inside the latch, so that no put that has begun ends after the close.
        enter(family, me, &body.tail_latch, Deadline::NEVER)?;
        body.closed.store(1, Ordering::Release);
        body.tail_latch.release(family, me);
        body.ready.ring(u32::MAX);
        body.space.ring(u32::MAX);
        self.doorbell.ring(family, body);
        Ok(())
    }

    /// Counts one message as done; `block` is the leased one that it is about, if it is known.
    pub(crate) fn task_done(&self, me: Me, block: Option<u64>) -> Result<()> {
        finish(
            self.family(),
            me,
            self.body,
            self.body_offset(),
            block,
            me.process,
        )
    }

    /// Gives a leased message back to the queue, to be taken by someone else.
    pub(crate) fn give_back(&self, me: Me, block: u64) -> Result<()> {
        put_back(
            self.family(),
            me,
            self.body_offset(),
            self.body_offset(),
            block,
            me.process,
        )
    }

    /// Waits until every message that was put is done.
    pub(crate) fn join(&self, me: Me, deadline: Deadline) -> Result<()> {
        let (family, body) = (self.family(), self.body);
        let mut slept = false;
        let answer = loop {
            if self.unfinished() == 0 {
                break Ok(());
            }
            // A process that died with messages in its hands finishes them by being reclaimed.
            let slice = deadline.min(Deadline::after(REDELIVERY_BELT));
            match sleep(
                family,
                me,
                &body.idle,
                || self.unfinished() == 0,
                &mut slept,
                slice,
                "a queue's tasks",
            ) {
                Ok(()) => {}
                Err(Error::TimedOut { .. }) if !deadline.has_passed() => family.sweep(me),
                Err(error) => break Err(error),
            }
        };
        awake(family, me, &body.idle, slept, false);
        answer
    }
}

/// How often those who wait for the finish of others' work look after the others' lives.
const REDELIVERY_BELT: Duration = Duration::from_millis(100);

/// How long an operation that must not wait still waits for someone inside a latch.
const LATCH_GRACE: Duration = Duration::from_millis(200);

#[inline]
fn enter(family: &'static Family, me: Me, latch: &Latch, deadline: Deadline) -> Result<()> {
    // Whatever a dead holder had begun was finished or undone by its recovery, before the latch opened.
    let (Acquired::Clean | Acquired::OwnerDied) = if latch.try_enter(me) {
        Acquired::Clean
    } else {
        latch.acquire(
            family,
            me,
            "a queue",
            deadline.max(Deadline::after(LATCH_GRACE)),
        )?
    };
    Ok(())
}

/// Sleeps until `ready` holds. Marks that the caller slept, and on what, until [`awake`].
fn sleep(
    family: &'static Family,
    me: Me,
    bell: &Bell,
    ready: impl Fn() -> bool,
    slept: &mut bool,
    deadline: Deadline,
    what: &'static str,
) -> Result<()> {
    if deadline == Deadline::PASSED {
        return if ready() {
            Ok(())
        } else {
            Err(Error::TimedOut { what })
        };
    }
    let mut spin = Spin::before(deadline);
    loop {
        if ready() {
            return Ok(());
        }
        if spin.again() {
            continue;
        }
        if deadline.has_passed() {
            return Err(Error::TimedOut { what });
        }
        let seen = bell.listen();
        if ready() {
            return Ok(());
        }
        if !*slept {
            // DEATH: woken and dead before taking anything: recovery wakes another in our place.
            let offset = family.region().offset_of(&bell.word);
            family
                .thread(me.slot)
                .answering
                .store(offset, Ordering::Release);
            *slept = true;
        }
        match park::park(family, &bell.word, seen, Watch::Nobody, deadline) {
            Wake::Look => {}
            Wake::TimedOut => return Err(Error::TimedOut { what }),
            Wake::Interrupted => return Err(Error::Interrupted { what }),
        }
    }
}

/// Ends what [`sleep`] marked. Who leaves with nothing may have been woken all the same, and passes that on.
fn awake(family: &'static Family, me: Me, bell: &Bell, slept: bool, empty_handed: bool) {
    if slept {
        if empty_handed {
            bell.ring(1);
        }
        family.thread(me.slot).answering.store(0, Ordering::Release);
    }
}

impl Body {
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) != 0
    }

    /// Messages inside, exactly, at some moment during the call.
    pub(super) fn length(&self) -> u64 {
        loop {
            let head = self.head.load(Ordering::Acquire);
            let tail = self.tail.load(Ordering::Acquire);
            if self.head.load(Ordering::Acquire) == head {
                return tail.saturating_sub(head);
            }
        }
    }

    /// Whether it is worth a look inside the head latch.
    #[inline]
    fn may_have_messages(&self) -> bool {
        self.tail_seen.load(Ordering::Relaxed) > self.head.load(Ordering::Relaxed)
            || self.length() > 0
    }

    /// Messages for consumers: `most` if there are as many, or else all. Inside the head latch.
    #[inline]
    fn there_are(&self, head: u64, most: u64) -> u64 {
        // ORDERING: Acquire pairs with the Release below, for a consumer may have died in between, without the release
        // of the latch.
        let seen = self.tail_seen.load(Ordering::Acquire).saturating_sub(head);
        if seen >= most {
            return most;
        }
        // ORDERING: Acquire pairs with the Release of `tail` in `put_some`.
        let tail = self.tail.load(Ordering::Acquire);
        self.tail_seen.store(tail, Ordering::Release);
        tail.saturating_sub(head).min(most)
    }

    /// The segment with a place for entry `tail`, linking a new one if the last is full. Inside the tail latch.
    fn room(&self, family: &'static Family, me: Me, body: u64, tail: u64) -> Result<SegmentAt> {
        let last = self.tail_segment.load(Ordering::Relaxed);
        if last != 0 {
            let segment = SegmentAt::new(family, last)?;
            if tail - segment.first() < segment.capacity() {
                return Ok(segment);
            }
        }
        let capacity = if tail == 0 { CAPACITY_FIRST } else { CAPACITY };
        let length = segment_length(capacity);
        let offset = family.allocate(me, length)?.offset;
        family.region().zero(offset, length)?;
        let segment = family.region().view::<Segment>(offset)?;
        segment.first.store(tail, Ordering::Release);
        segment.capacity.store(capacity, Ordering::Release);
        let args = [body, last, offset];
        family.intend(me, LINK, &args);
        link(family, &args);
        family.fulfil(me);
        SegmentAt::new(family, offset)
    }
}

fn segment_length(capacity: u64) -> u64 {
    (capacity + 1) * 64
}

/// A segment, and where it lies.
#[derive(Clone, Copy)]
struct SegmentAt {
    offset: u64,
    segment: &'static Segment,
}

impl SegmentAt {
    #[inline]
    fn new(family: &'static Family, offset: u64) -> Result<SegmentAt> {
        Ok(SegmentAt {
            offset,
            segment: family.region().view(offset)?,
        })
    }

    fn first(self) -> u64 {
        self.segment.first.load(Ordering::Relaxed)
    }

    fn capacity(self) -> u64 {
        self.segment.capacity.load(Ordering::Relaxed).min(CAPACITY)
    }

    fn next(self) -> u64 {
        self.segment.next.load(Ordering::Acquire)
    }

    #[inline]
    fn entry(self, family: &'static Family, number: u64) -> Result<&'static Entry> {
        let index = number.wrapping_sub(self.first());
        if index >= self.capacity() {
            return Err(Error::Damaged {
                offset: self.offset,
                why: "a queue's entry lies outside its segment",
            });
        }
        family.region().view(self.offset + 64 + index * 64)
    }
}

/// Writes a message into a free entry. Its block is named first and shared then, so that whoever undoes finds it.
fn fill(family: &'static Family, entry: &Entry, message: &Prepared) -> Result<()> {
    match *message {
        Prepared::Inline { header, ref words } => fill_inline(entry, header, words),
        Prepared::Block { header, offset } => {
            entry.header.store(header.pack(), Ordering::Release);
            entry.block.store(offset, Ordering::Release);
            // DEATH: named but still private, or shared but not published: undoing the put makes it private again.
            fault::point("ring.named");
            family.transfer(offset, State::Shared, 0)?;
        }
    }
    Ok(())
}

#[inline]
fn fill_inline(entry: &Entry, header: Header, words: &[u64; 6]) {
    entry.block.store(0, Ordering::Release);
    entry.header.store(header.pack(), Ordering::Release);
    for (place, word) in entry.words.iter().zip(words) {
        place.store(*word, Ordering::Release);
    }
}

/// Takes up to `most` messages out. Inside the head latch.
fn take(
    family: &'static Family,
    me: Me,
    body: &Body,
    body_offset: u64,
    most: u64,
    leased: bool,
    into: &mut impl FnMut(Message),
) -> Result<u64> {
    let head = body.head.load(Ordering::Relaxed);
    let there = body.there_are(head, most);
    if there == 0 {
        return Ok(0);
    }
    let segment = first_segment(family, me, body, body_offset, head)?;
    let count = there.min(segment.capacity() - (head - segment.first()));
    if count == 1 {
        let entry = segment.entry(family, head)?;
        if entry.block.load(Ordering::Relaxed) == 0 {
            let message = read_inline(entry)?;
            // The commit. What dies after it dies with the message in its hands.
            body.head.store(head + 1, Ordering::Release);
            into(message);
            return Ok(1);
        }
    }
    let entries = (0..count)
        .map(|index| segment.entry(family, head + index))
        .collect::<Result<Vec<_>>>()?;
    let described = entries
        .iter()
        .any(|entry| entry.block.load(Ordering::Relaxed) != 0);
    if !described {
        let messages = entries
            .iter()
            .map(|entry| read_inline(entry))
            .collect::<Result<Vec<_>>>()?;
        body.head.store(head + count, Ordering::Release);
        messages.into_iter().for_each(into);
        return Ok(count);
    }
    family.intend(me, GET, &[body_offset, head, count]);
    body.head.store(head + count, Ordering::Release);
    // DEATH: taken and owned by nobody; recovery makes the blocks the dead process's, and reclaim frees or returns them.
    fault::point("ring.taken");
    let state = if leased {
        State::Leased
    } else {
        State::Private
    };
    for entry in &entries {
        own(family, entry, state, me.process);
    }
    family.fulfil(me);
    for entry in entries {
        let block = entry.block.load(Ordering::Relaxed);
        into(if block == 0 {
            read_inline(entry)?
        } else {
            let header = Header::unpack(entry.header.load(Ordering::Relaxed));
            Message::block(family, me, header, block, leased)?
        });
    }
    Ok(count)
}

#[inline]
fn read_inline(entry: &Entry) -> Result<Message> {
    let header = Header::unpack(entry.header.load(Ordering::Relaxed));
    Message::inline(
        header,
        std::array::from_fn(|i| entry.words[i].load(Ordering::Relaxed)),
    )
}

/// The segment that holds entry `head`, unlinking the one before it if that is used up. Inside the head latch.
fn first_segment(
    family: &'static Family,
    me: Me,
    body: &Body,
    body_offset: u64,
    head: u64,
) -> Result<SegmentAt> {
    loop {
        let segment = SegmentAt::new(family, body.head_segment.load(Ordering::Acquire))?;
        if head - segment.first() < segment.capacity() {
            return Ok(segment);
        }
        let next = segment.next();
        if next == 0 {
            return Err(Error::Damaged {
                offset: segment.offset,
                why: "a queue's messages end before its tail",
            });
        }
        drop_segment(family, me, body_offset, segment.offset, next);
    }
}

fn drop_segment(family: &'static Family, me: Me, body: u64, segment: u64, next: u64) {
    let args = [body, segment, next];
    family.intend(me, UNLINK, &args);
    unlink(family, &args, me.process);
    family.fulfil(me);
    family.free(me, segment);
}

/// Makes the block of a taken entry a process's own.
fn own(family: &Family, entry: &Entry, state: State, process: u32) {
    let block = entry.block.load(Ordering::Relaxed);
    if block == 0 {
        return;
    }
    let leased = Header::unpack(entry.header.load(Ordering::Relaxed)).leased;
    let state = if leased { state } else { State::Private };
    if let Ok(owner) = family.owner_of(block)
        && owner.state == State::Shared
    {
        let _ = family.transfer(block, state, process);
    }
}

/// Counts a message as done; its block is the caller's, private, from then on.
fn finish(
    family: &'static Family,
    me: Me,
    body: &Body,
    body_offset: u64,
    block: Option<u64>,
    holder: u32,
) -> Result<()> {
    enter(family, me, &body.done_latch, Deadline::NEVER)?;
    let done = body.done.load(Ordering::Relaxed);
    if block.is_none() && done >= body.tail.load(Ordering::Acquire) {
        body.done_latch.release(family, me);
        return Err(Error::NotHeld {
            what: "a queue's task",
            why: "`task_done` was called more often than `put`",
        });
    }
    let args = [body_offset, done, block.unwrap_or(0), holder.into()];
    family.thread(me.slot).wake_owed.store(
        family.region().offset_of(&body.idle.word),
        Ordering::Release,
    );
    family.intend(me, DONE, &args);
    apply_done(family, &args, me.process);
    family.fulfil(me);
    body.done_latch.release(family, me);
    if done + 1 >= body.tail.load(Ordering::Acquire) {
        body.idle.ring(u32::MAX);
        if body.closed.load(Ordering::Acquire) != 0 {
            // The last loan is over: those who waited for it to come back learn that nothing comes.
            body.ready.ring(u32::MAX);
        }
    }
    family.thread(me.slot).wake_owed.store(0, Ordering::Release);
    Ok(())
}

/// Puts a leased block that `holder` has to the tail of `target`, and counts it as done in its own queue.
fn put_back(
    family: &'static Family,
    me: Me,
    from: u64,
    target: u64,
    block: u64,
    holder: u32,
) -> Result<()> {
    let (from_body, target_body) = (
        family.region().view::<Body>(from)?,
        family.region().view::<Body>(target)?,
    );
    enter(family, me, &target_body.tail_latch, Deadline::NEVER)?;
    let tail = target_body.tail.load(Ordering::Relaxed);
    if let Err(error) = target_body.room(family, me, target, tail) {
        target_body.tail_latch.release(family, me);
        return Err(error);
    }
    if let Err(error) = enter(family, me, &from_body.done_latch, Deadline::NEVER) {
        target_body.tail_latch.release(family, me);
        return Err(error);
    }
    let done = from_body.done.load(Ordering::Relaxed);
    let args = [from, done, block, holder.into(), target, tail];
    family.thread(me.slot).wake_owed.store(
        family.region().offset_of(&target_body.ready.word),
        Ordering::Release,
    );
    family.intend(me, RETURN, &args);
    apply_return(family, &args);
    family.fulfil(me);
    from_body.done_latch.release(family, me);
    target_body.tail_latch.release(family, me);
    target_body.ready.ring(1);
    doorbell::ring_again(family, target_body);
    if from != target {
        from_body.idle.ring(u32::MAX);
    }
    family.thread(me.slot).wake_owed.store(0, Ordering::Release);
    Ok(())
}

fn link(family: &Family, args: &[u64]) {
    let &[body, last, segment, ..] = args else {
        return;
    };
    let Ok(body) = family.region().view::<Body>(body) else {
        return;
    };
    let _ = family.transfer(segment, State::Shared, 0);
    match last {
        0 => body.head_segment.store(segment, Ordering::Release),
        last => {
            if let Ok(last) = family.region().view::<Segment>(last) {
                last.next.store(segment, Ordering::Release);
            }
        }
    }
    // DEATH: each of these stores is made again by recovery.
    fault::point("ring.linked");
    body.tail_segment.store(segment, Ordering::Release);
}

fn unlink(family: &Family, args: &[u64], process: u32) {
    let &[body, segment, next, ..] = args else {
        return;
    };
    let Ok(body) = family.region().view::<Body>(body) else {
        return;
    };
    body.head_segment.store(next, Ordering::Release);
    if next == 0 {
        body.tail_segment.store(0, Ordering::Release);
    }
    fault::point("ring.unlinked");
    if family
        .owner_of(segment)
        .is_ok_and(|owner| owner.state == State::Shared)
    {
        let _ = family.transfer(segment, State::Private, process);
    }
}

fn undo_put(family: &Family, body: &Body, tail: u64, count: u64, process: u32) {
    let Ok(segment) = family
        .region()
        .view::<Segment>(body.tail_segment.load(Ordering::Acquire))
    else {
        return;
    };
    let offset = body.tail_segment.load(Ordering::Acquire);
    let first = segment.first.load(Ordering::Acquire);
    for number in tail..tail + count {
        let index = number.wrapping_sub(first);
        if index >= segment.capacity.load(Ordering::Acquire).min(CAPACITY) {
            return;
        }
        let Ok(entry) = family.region().view::<Entry>(offset + 64 + index * 64) else {
            return;
        };
        let block = entry.block.load(Ordering::Acquire);
        if block != 0
            && family
                .owner_of(block)
                .is_ok_and(|owner| owner.state == State::Shared)
        {
            let _ = family.transfer(block, State::Private, process);
        }
        entry.block.store(0, Ordering::Release);
    }
}

fn apply_done(family: &Family, args: &[u64], process: u32) {
    let &[body, done, block, holder, ..] = args else {
        return;
    };
    if let Ok(body) = family.region().view::<Body>(body) {
        body.done.store(done + 1, Ordering::Release);
    }
    fault::point("ring.done");
    if block != 0
        && let Ok(owner) = family.owner_of(block)
        && owner.state == State::Leased
        && u64::from(owner.process) == holder
    {
        let _ = family.transfer(block, State::Private, process);
    }
}

fn apply_return(family: &Family, args: &[u64]) {
    let &[from, done, block, _holder, target, tail, ..] = args else {
        return;
    };
    let (Ok(from), Ok(to)) = (
        family.region().view::<Body>(from),
        family.region().view::<Body>(target),
    ) else {
        return;
    };
    if to.tail.load(Ordering::Acquire) == tail {
        publish_returned(family, to, block, tail);
    }
    // DEATH: the message is in the queue, maybe in a consumer's hands already, and not counted.
    fault::point("ring.returned");
    // After `tail`: counted first, the queue would look finished for a moment.
    from.done.store(done + 1, Ordering::Release);
}

/// Writes a leased block into entry `tail`, and publishes it. Inside the tail latch.
fn publish_returned(family: &Family, to: &Body, block: u64, tail: u64) {
    let Ok(lease) = lease_of(family, block) else {
        return;
    };
    let offset = to.tail_segment.load(Ordering::Acquire);
    let Ok(segment) = family.region().view::<Segment>(offset) else {
        return;
    };
    let index = tail.wrapping_sub(segment.first.load(Ordering::Acquire));
    let Ok(entry) = family
        .region()
        .view::<Entry>(offset + 64 + index.min(CAPACITY) * 64)
    else {
        return;
    };
    lease
        .queue
        .store(to.handle.load(Ordering::Acquire), Ordering::Release);
    entry
        .header
        .store(lease.header.load(Ordering::Acquire), Ordering::Release);
    entry.block.store(block, Ordering::Release);
    let _ = family.transfer(block, State::Shared, 0);
    to.tail.store(tail + 1, Ordering::Release);
}

/// The lease in front of a block's message.
fn lease_of(family: &Family, block: u64) -> Result<&'static Lease> {
    let (found, owner) = family.block_at(block)?;
    family
        .region()
        .view(reclaim::lease_place(family, block, owner, found.capacity))
}

fn resume(family: &Family, intent: &Intent) {
    let [body, number, count, ..] = intent.args;
    match intent.op {
        PUT => {
            let Ok(body) = family.region().view::<Body>(body) else {
                return;
            };
            if body.tail.load(Ordering::Acquire) == number {
                undo_put(family, body, number, count, intent.process);
            }
        }
        GET => {
            let Ok(body) = family.region().view::<Body>(body) else {
                return;
            };
            if body.head.load(Ordering::Acquire) != number {
                resume_get(family, body, number, count, intent.process);
            }
        }
        LINK => link(family, &intent.args),
        UNLINK => unlink(family, &intent.args, intent.process),
        DONE => apply_done(family, &intent.args, intent.process),
        RETURN => apply_return(family, &intent.args),
        _ => {}
    }
}

/// A get whose commit happened: the blocks become the dead process's.
fn resume_get(family: &Family, body: &Body, head: u64, count: u64, process: u32) {
    let offset = body.head_segment.load(Ordering::Acquire);
    let Ok(segment) = family.region().view::<Segment>(offset) else {
        return;
    };
    let leased = body.flags.load(Ordering::Relaxed) & LEASED != 0;
    let state = if leased {
        State::Leased
    } else {
        State::Private
    };
    for number in head..head + count {
        let index = number.wrapping_sub(segment.first.load(Ordering::Acquire));
        if index >= segment.capacity.load(Ordering::Acquire).min(CAPACITY) {
            return;
        }
        if let Ok(entry) = family.region().view::<Entry>(offset + 64 + index * 64) {
            own(family, entry, state, process);
        }
    }
}

/// Frees what is left in a queue that nobody can reach any more.
fn destroy(family: &'static Family, me: Me, offset: u64) {
    let Ok(body) = family.region().view::<Body>(offset) else {
        return;
    };
    // Taken like any other, so that a death in the middle is one that recovery knows.
    loop {
        let mut messages = Vec::new();
        let (Acquired::Clean | Acquired::OwnerDied) = body.head_latch.enter(family, me);
        let taken = take(family, me, body, offset, u64::MAX, false, &mut |message| {
            messages.push(message)
        });
        body.head_latch.release(family, me);
        if !matches!(taken, Ok(count) if count > 0) {
            break;
        }
    }
    // Two may be left: a put may have linked one and died, or failed, before anything stood in it.
    let (Acquired::Clean | Acquired::OwnerDied) = body.head_latch.enter(family, me);
    loop {
        let segment = body.head_segment.load(Ordering::Acquire);
        if segment == 0 {
            break;
        }
        let Ok(next) = SegmentAt::new(family, segment).map(SegmentAt::next) else {
            break;
        };
        drop_segment(family, me, offset, segment, next);
    }
    body.head_latch.release(family, me);
    object::let_go(
        family,
        me,
        offset + std::mem::offset_of!(Body, dead_letters) as u64,
    );
    object::let_go(
        family,
        me,
        offset + std::mem::offset_of!(Body, doorbell) as u64,
    );
}

/// A process died with a leased message: to the queue again, to the dead letters, or done.
fn lost(family: &'static Family, me: Me, block: u64) -> bool {
    let (Ok(lease), Ok(owner)) = (lease_of(family, block), family.owner_of(block)) else {
        return true;
    };
    let handle = Handle::from_bits(lease.queue.load(Ordering::Acquire));
    let Ok(ring) = Ring::attach(family, handle) else {
        let _ = family.transfer(block, State::Private, me.process);
        family.free(me, block);
        return true;
    };
    lease
        .victim
        .store(pid_of(family, owner.process).into(), Ordering::Release);
    let here = ring.body_offset();
    let returned = if ring.has(DEAD_LETTERS) {
        let letters = Handle::from_bits(ring.body.dead_letters.load(Ordering::Acquire));
        Ring::attach(family, letters).and_then(|target| {
            put_back(family, me, here, target.body_offset(), block, owner.process)
        })
    } else if ring.has(REDELIVER) {
        put_back(family, me, here, here, block, owner.process)
    } else {
        finish(family, me, ring.body, here, Some(block), owner.process)
            .map(|()| family.free(me, block))
    };
    // Without memory for a segment the message stays where it is, and the dead process's slot with it, for the next try.
    returned.is_ok()
}

/// A process died, perhaps between a message and its ring.
fn forget(family: &'static Family, _me: Me, offset: u64, _process: u32) {
    if let Ok(body) = family.region().view::<Body>(offset) {
        doorbell::ring_again(family, body);
    }
}

fn check(family: &'static Family, offset: u64, fsck: &mut Fsck) {
    let Ok(body) = family.region().view::<Body>(offset) else {
        return;
    };
    for place in [&body.dead_letters, &body.doorbell] {
        let handle = place.load(Ordering::Acquire);
        if handle != 0 {
            fsck.refers(Handle::from_bits(handle));
        }
    }
    let (head, tail) = (
        body.head.load(Ordering::Acquire),
        body.tail.load(Ordering::Acquire),
    );
    let (head_seen, tail_seen) = (
        body.head_seen.load(Ordering::Acquire),
        body.tail_seen.load(Ordering::Acquire),
    );
    if head_seen > head || tail_seen > tail {
        fsck.fault(format!(
            "the queue at {offset:#x} has seen more than there is"
        ));
    }
    if head > tail {
        fsck.fault(format!(
            "the queue at {offset:#x} has its head {head} after its tail {tail}"
        ));
    }
    if body.done.load(Ordering::Acquire) > tail {
        fsck.fault(format!(
            "the queue at {offset:#x} is done with more than was put"
        ));
    }
    let mut next = body.head_segment.load(Ordering::Acquire);
    let mut last = 0;
    let mut number = head;
    while next != 0 {
        fsck.owns(next, "a queue's segments");
        let Ok(segment) = SegmentAt::new(family, next) else {
            return;
        };
        while number < tail && number - segment.first() < segment.capacity() {
            match segment.entry(family, number) {
                Ok(entry) => {
                    let block = entry.block.load(Ordering::Acquire);
                    if block != 0 {
                        fsck.owns(block, "a queue's messages");
                    }
                }
                Err(error) => fsck.fault(error.to_string()),
            }
            number += 1;
        }
        (last, next) = (next, segment.next());
    }
    if number != tail {
        fsck.fault(format!(
            "the queue at {offset:#x} ends at {number}, before its tail {tail}"
        ));
    }
    if last != body.tail_segment.load(Ordering::Acquire) {
        fsck.fault(format!(
            "the queue at {offset:#x} does not end with its last segment"
        ));
    }
}
