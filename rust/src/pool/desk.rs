//! Where outcomes are handed out to those who wait for them.
//!
//! The engine gives outcomes in the order in which jobs end, and somebody has to take them. There is no thread for that:
//! of those who wait for something, one takes outcomes for all (it *leads*), puts those of others where they look for
//! them, and when it has its own, wakes another to lead.

use crate::error::Result;
use crate::waiting::{in_time, through_signals};
use procession_core::pool::{JobId, JobOptions, Outcome, Pool as Engine};
use procession_core::{self as core, Deadline, Outgoing};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A pool's engine, and who waits for what.
pub(super) struct Desk {
    engine: Engine,
    workers: usize,
    state: Mutex<State>,
    /// Rung once the keeper has ended.
    over: Condvar,
}

/// Never held across a wait or a call of the engine that could take long.
#[derive(Default)]
struct State {
    /// Somebody takes outcomes.
    leading: bool,
    /// Who waits for the outcome of a job.
    tickets: HashMap<JobId, InboxId>,
    inboxes: HashMap<InboxId, Inbox>,
    next_inbox: u64,
    /// How many are handing in a job whose number they do not know yet.
    submitting: usize,
    /// Outcomes without a ticket, which may be those of such jobs.
    early: HashMap<JobId, Outcome>,
    over: bool,
}

/// The place of one who waits, for one job or many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct InboxId(u64);

#[derive(Default)]
struct Inbox {
    outcomes: VecDeque<Outcome>,
    /// Rung when there is one more, or nobody leads any more.
    bell: Arc<Condvar>,
    sleeping: bool,
}

impl State {
    fn deliver(&mut self, outcome: Outcome) {
        let Some(id) = self.tickets.remove(&outcome.job) else {
            if self.submitting > 0 {
                self.early.insert(outcome.job, outcome);
            }
            return;
        };
        if let Some(inbox) = self.inboxes.get_mut(&id) {
            inbox.outcomes.push_back(outcome);
            inbox.bell.notify_one();
        }
    }

    fn take(&mut self, id: InboxId) -> Option<Outcome> {
        self.inboxes.get_mut(&id)?.outcomes.pop_front()
    }

    /// Wakes one who sleeps, to lead, if nobody does.
    fn pass_on(&self) {
        if !self.leading
            && let Some(inbox) = self.inboxes.values().find(|inbox| inbox.sleeping)
        {
            inbox.bell.notify_one();
        }
    }
}

impl Desk {
    pub(super) fn new(engine: Engine, workers: usize) -> Desk {
        Desk {
            engine,
            workers,
            state: Mutex::default(),
            over: Condvar::new(),
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(super) fn workers(&self) -> usize {
        self.workers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new place to wait at.
    pub(super) fn open(&self) -> InboxId {
        let mut state = self.state();
        let id = InboxId(state.next_inbox);
        state.next_inbox += 1;
        state.inboxes.insert(id, Inbox::default());
        id
    }

    /// Gives the place up, and what would have come there.
    pub(super) fn close(&self, id: InboxId) {
        let mut state = self.state();
        state.inboxes.remove(&id);
        state.tickets.retain(|_, waiting| *waiting != id);
        // It may have been woken to lead.
        state.pass_on();
        drop(state);
        self.sweep();
    }

    /// Hands in a job, whose outcome comes to this place.
    pub(super) fn submit(
        &self,
        id: InboxId,
        job: Outgoing<'_>,
        options: JobOptions,
    ) -> core::Result<JobId> {
        self.state().submitting += 1;
        let submitted = self.engine.submit(job, options);
        let mut state = self.state();
        state.submitting -= 1;
        if let Ok(job) = submitted {
            state.tickets.insert(job, id);
            if let Some(outcome) = state.early.remove(&job) {
                state.deliver(outcome);
            }
        }
        if state.submitting == 0 {
            state.early.clear();
        }
        submitted
    }

    /// Waits for the next outcome that comes to this place; `None` if none does in time.
    pub(super) fn wait(&self, id: InboxId, deadline: Deadline) -> Result<Option<Outcome>> {
        let mut state = self.state();
        loop {
            if let Some(outcome) = state.take(id) {
                state.pass_on();
                return Ok(Some(outcome));
            }
            let in_time;
            (state, in_time) = self.lead_or_sleep(state, id, deadline);
            if !matches!(in_time, Ok(true)) {
                state.pass_on();
                in_time?;
                return Ok(state.take(id));
            }
        }
    }

    /// Waits until no job is without an outcome; whether that is so.
    fn wait_until_idle(&self, deadline: Deadline) -> Result<bool> {
        let id = self.open();
        let mut state = self.state();
        let idle = loop {
            if self.engine.pending() == 0 {
                break Ok(true);
            }
            let in_time;
            (state, in_time) = self.lead_or_sleep(state, id, deadline);
            if !matches!(in_time, Ok(true)) {
                break in_time;
            }
        };
        drop(state);
        self.close(id);
        idle
    }

    /// Takes one outcome if nobody leads, or else waits for a word; false if time ran out.
    fn lead_or_sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        id: InboxId,
        deadline: Deadline,
    ) -> (MutexGuard<'a, State>, Result<bool>) {
        if state.leading {
            let in_time = !deadline.has_passed();
            return (
                if in_time {
                    sleep(state, id, deadline)
                } else {
                    state
                },
                Ok(in_time),
            );
        }
        state.leading = true;
        drop(state);
        let taken = in_time(through_signals(|| self.engine.outcome(deadline)));
        state = self.state();
        state.leading = false;
        match taken {
            Ok(Some(outcome)) => {
                state.deliver(outcome);
                (state, Ok(true))
            }
            Ok(None) => (state, Ok(false)),
            Err(error) => (state, Err(error.into())),
        }
    }

    /// Takes the outcomes that are there, if nobody leads.
    pub(super) fn sweep(&self) {
        let mut state = self.state();
        while !state.leading {
            state.leading = true;
            drop(state);
            let taken = self.engine.outcome(Deadline::PASSED);
            state = self.state();
            state.leading = false;
            match taken {
                Ok(outcome) => state.deliver(outcome),
                Err(_) => break,
            }
        }
        state.pass_on();
    }

    /// Whether an outcome is there.
    pub(super) fn has_come(&self, id: InboxId) -> bool {
        self.sweep();
        let state = self.state();
        let inbox = state.inboxes.get(&id);
        inbox.is_some_and(|inbox| !inbox.outcomes.is_empty())
    }

    /// The keeper has ended: all workers have.
    pub(super) fn note_over(&self) {
        self.state().over = true;
        self.over.notify_all();
    }

    /// Waits until a closed pool's jobs are done and its keeper has ended; whether it has.
    pub(super) fn wait_until_over(&self, deadline: Deadline) -> Result<bool> {
        if !self.wait_until_idle(deadline)? {
            return Ok(false);
        }
        let mut state = self.state();
        while !state.over {
            state = match deadline.remaining() {
                None => self
                    .over
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(rest) if rest.is_zero() => return Ok(false),
                Some(rest) => {
                    let woken = self.over.wait_timeout(state, rest);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        Ok(true)
    }
}

/// Sleeps until something comes to this place, or it should lead.
fn sleep(
    mut state: MutexGuard<'_, State>,
    id: InboxId,
    deadline: Deadline,
) -> MutexGuard<'_, State> {
    let Some(inbox) = state.inboxes.get_mut(&id) else {
        return state;
    };
    inbox.sleeping = true;
    let bell = Arc::clone(&inbox.bell);
    let mut state = match deadline.remaining() {
        None => bell.wait(state).unwrap_or_else(PoisonError::into_inner),
        Some(rest) => {
            let woken = bell.wait_timeout(state, rest);
            woken.unwrap_or_else(PoisonError::into_inner).0
        }
    };
    if let Some(inbox) = state.inboxes.get_mut(&id) {
        inbox.sleeping = false;
    }
    state
}
