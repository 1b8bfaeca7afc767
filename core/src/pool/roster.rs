//! The side that hands out jobs: who works here, what is owed to whom, and what to do when a worker ends.

use super::board::{Place, Shared, WorkerStats};
use super::job::{
    HEADER, Header, JobId, Kind, NUDGE, Outcome, RETURNED, Reply, START_FAILED, WorkerDied,
};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::memory::family::Family;
use crate::memory::lock::Lock;
use crate::memory::object::Handle;
use crate::process::{Child, Exit};
use crate::queue::{Message, OnDeath, Options as QueueOptions, Outgoing, Queue};
use crate::sys::poll::{self, Interest};
use crate::sys::{machine, process};
use crate::tag::Tag;
use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many workers; at most [`PLACES_MAX`](super::PLACES_MAX).
    pub workers: usize,
    /// After how many jobs a worker makes room for a new one; `None` never.
    pub jobs_per_worker: Option<u64>,
    /// After how many failed starts in a row the pool gives up.
    pub start_failures_max: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            workers: machine::processors(),
            jobs_per_worker: None,
            start_failures_max: 3,
        }
    }
}

/// How a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobOptions {
    /// How long it may run before its worker is killed.
    pub timeout: Option<Duration>,
    /// How often it is tried again after its worker died or was killed for it.
    pub retries: u32,
}

type Launch = dyn Fn(Place) -> Result<Child> + Send + Sync;

/// Workers, and the jobs that they are given.
///
/// The pool belongs to the process that created it. It does nothing by itself: [`Pool::tend`] must be called by someone
/// for the dead to be replaced, and [`Pool::outcome`] for results to be had.
pub struct Pool {
    shared: Shared,
    options: Options,
    launch: Box<Launch>,
    state: Lock<State>,
    next_job: AtomicU64,
    keeper: poll::Alarm,
    pid: u32,
}

/// What the pool knows beyond the arena. Nobody sleeps while holding it.
struct State {
    workers: Vec<Member>,
    pending: HashMap<u64, Pending>,
    /// Outcomes that no worker wrote.
    settled: VecDeque<Outcome>,
    /// Dead letters of workers whose end is not collected yet.
    letters: Vec<Message>,
    timed: usize,
    phase: Phase,
    start_failures: u32,
    start_failure: Option<String>,
}

#[derive(Default)]
struct Member {
    child: Option<Child>,
    /// The job for whose sake the pool killed this worker.
    killed_for: Option<u64>,
    restarts: u64,
    started: u64,
}

struct Pending {
    timeout: Option<Duration>,
    timed_out: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// No new jobs; what is pending will be done.
    Closing,
    /// Workers have no more to do, and end.
    Ending,
    Terminated,
    Broken(String),
}

impl Pool {
    /// Creates a pool and starts its workers by `launch`, which gives each its place.
    pub fn create(
        family: &'static Family,
        options: Options,
        launch: impl Fn(Place) -> Result<Child> + Send + Sync + 'static,
    ) -> Result<Pool> {
        let letters = Queue::create(family, &QueueOptions::default())?;
        let results = Queue::create(family, &QueueOptions::default())?;
        let on_death = OnDeath::DeadLetters(letters.handle());
        let jobs = Queue::create(
            family,
            &QueueOptions {
                on_death,
                ..QueueOptions::default()
            },
        )?;
        let per_worker = options.jobs_per_worker.unwrap_or(0);
        let shared = Shared::create(
            family,
            (jobs, results, letters),
            options.workers,
            per_worker,
        )?;
        let state = State {
            workers: std::iter::repeat_with(Member::default)
                .take(options.workers)
                .collect(),
            pending: HashMap::new(),
            settled: VecDeque::new(),
            letters: Vec::new(),
            timed: 0,
            phase: Phase::Open,
            start_failures: 0,
            start_failure: None,
        };
        let pool = Pool {
            shared,
            options,
            launch: Box::new(launch),
            state: Lock::new(state),
            next_job: AtomicU64::new(1),
            keeper: poll::Alarm::new()?,
            pid: process::pid(),
        };
        for index in 0..options.workers {
            // Dropping the pool ends those that have started.
            pool.start_worker(index)?;
        }
        Ok(pool)
    }

    /// The name by which a worker attaches.
    pub fn handle(&self) -> Handle {
        self.shared.handle()
    }

    /// Hands in a job. Its outcome comes out of [`Pool::outcome`], once.
    pub fn submit(&self, job: Outgoing<'_>, options: JobOptions) -> Result<JobId> {
        self.check_owner()?;
        let id = self.next_job.fetch_add(1, Ordering::Relaxed);
        {
            let mut state = self.state.lock();
            match &state.phase {
                Phase::Open => {}
                Phase::Broken(why) => {
                    return Err(Error::StartFailed {
                        method: "the pool",
                        why: why.clone(),
                    });
                }
                Phase::Closing | Phase::Ending | Phase::Terminated => {
                    return Err(Error::Closed { what: "the pool" });
                }
            }
            state.timed += usize::from(options.timeout.is_some());
            state.pending.insert(
                id,
                Pending {
                    timeout: options.timeout,
                    timed_out: false,
                },
            );
        }
        let header = Header {
            job: id,
            detail: options.retries.into(),
        }
        .pack();
        let mut parts = Vec::with_capacity(job.parts.len() + 1);
        parts.push(&header[..]);
        parts.extend_from_slice(job.parts);
        let put = self.shared.jobs.put_message(
            Outgoing {
                parts: &parts,
                ..job
            },
            Deadline::NEVER,
        );
        if let Err(error) = put {
            self.state.lock().settle(id);
            return Err(error);
        }
        if options.timeout.is_some() {
            // The keeper must look at the clock from now on.
            self.keeper.ring();
        }
        Ok(JobId(id))
    }

    /// Waits for the next job to end, whichever it is.
    pub fn outcome(&self, deadline: Deadline) -> Result<Outcome> {
        self.check_owner()?;
        loop {
            if let Some(outcome) = self.state.lock().settled.pop_front() {
                return Ok(outcome);
            }
            let message = self.shared.results.get(deadline)?;
            let header = Header::unpack(message.bytes())?;
            if header.detail == RETURNED && self.settle(header.job) {
                self.state.lock().start_failures = 0;
                return Ok(Outcome {
                    job: JobId(header.job),
                    kind: Kind::Returned(Reply { message }),
                });
            }
        }
    }

    /// Drops a job: one that waits is not run, the worker of one that runs is killed. False if it has ended already.
    pub fn cancel(&self, job: JobId) -> Result<bool> {
        self.check_owner()?;
        if !self.settle_with(job.0, Kind::Cancelled) {
            return Ok(false);
        }
        self.shared.cancel(job.0);
        self.kill_worker_of(job.0);
        Ok(true)
    }

    /// Drops a job that waits, and the outcome of one that runs: that goes on to its end. False if it has ended already.
    pub fn forget(&self, job: JobId) -> Result<bool> {
        self.check_owner()?;
        if !self.settle(job.0) {
            return Ok(false);
        }
        self.shared.cancel(job.0);
        Ok(true)
    }

    /// Kills the worker that runs a job, if one does.
    fn kill_worker_of(&self, job: u64) {
        let mut state = self.state.lock();
        for (member, line) in state.workers.iter_mut().zip(self.shared.places()) {
            if line.job.load(Ordering::Acquire) == job
                && let Some(child) = &member.child
            {
                // It may be done with that job and on to another by now: that one is then handed out again.
                member.killed_for = Some(job);
                let _ = child.kill();
            }
        }
    }

    /// One round of the keeper: waits until a worker ends, a job runs too long, or `deadline`; replaces the dead, and
    /// sees to what they held. False when the pool is over: closed or terminated, and all workers have ended.
    pub fn tend(&self, deadline: Deadline) -> Result<bool> {
        self.check_owner()?;
        let (children, until) = {
            let state = self.state.lock();
            let children: Vec<_> = state
                .workers
                .iter()
                .filter_map(|member| member.child.clone())
                .collect();
            if children.is_empty() && state.is_over() {
                return Ok(false);
            }
            let tick = if state.timed > 0 {
                Deadline::after(TIMEOUT_TICK)
            } else {
                Deadline::NEVER
            };
            (children, deadline.min(tick))
        };
        let mut fds = vec![(self.keeper.as_fd(), Interest::Readable)];
        for child in &children {
            fds.push((child.sentinel()?, Interest::Readable));
        }
        poll::wait(&fds, until)?;
        self.keeper.clear();
        self.kill_overdue();
        self.replace_ended()?;
        self.settle_strays()?;
        let state = self.state.lock();
        Ok(!(state.is_over() && state.workers.iter().all(|member| member.child.is_none())))
    }

    /// Makes a [`Pool::tend`] that waits elsewhere return.
    pub fn wake_keeper(&self) {
        self.keeper.ring();
    }

    /// Kills workers whose job has run longer than it may.
    fn kill_overdue(&self) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        if state.timed == 0 {
            return;
        }
        let now = machine::monotonic_nanos();
        for (member, line) in state.workers.iter_mut().zip(self.shared.places()) {
            let (job, started) = (
                line.job.load(Ordering::Acquire),
                line.started.load(Ordering::Acquire),
            );
            let Some(pending) = state.pending.get_mut(&job) else {
                continue;
            };
            let overdue = pending
                .timeout
                .is_some_and(|timeout| now.saturating_sub(started) > nanos(timeout));
            // Read again: `started` may be the next job's.
            if overdue
                && !pending.timed_out
                && line.job.load(Ordering::Acquire) == job
                && let Some(child) = &member.child
            {
                pending.timed_out = true;
                member.killed_for = Some(job);
                let _ = child.kill();
            }
        }
    }

    /// Collects workers that ended, settles what they held, and fills their places.
    fn replace_ended(&self) -> Result<()> {
        for index in 0..self.options.workers {
            let ended = {
                let mut state = self.state.lock();
                let member = &mut state.workers[index];
                match member
                    .child
                    .as_ref()
                    .map(Child::poll)
                    .transpose()?
                    .flatten()
                {
                    Some(exit) => member
                        .child
                        .take()
                        .map(|child| (child.pid(), exit, member.killed_for.take())),
                    None => None,
                }
            };
            if let Some((pid, exit, killed_for)) = ended {
                self.bury_worker(index, pid, exit, killed_for)?;
            }
        }
        self.fill_places()
    }

    fn bury_worker(
        &self,
        index: usize,
        pid: u32,
        exit: Exit,
        killed_for: Option<u64>,
    ) -> Result<()> {
        let line = self.shared.place(index as u32)?;
        let ran = machine::monotonic_nanos().saturating_sub(line.started.load(Ordering::Acquire));
        let died = WorkerDied {
            pid,
            exit: Some(exit),
            ran: Duration::from_nanos(ran),
        };
        let began = line.ready.load(Ordering::Acquire) != 0;
        line.reset();
        self.read_letters()?;
        self.settle_letters(died, killed_for)?;
        let mut state = self.state.lock();
        state.workers[index].restarts += 1;
        if began {
            state.start_failures = 0;
        } else if killed_for.is_none() {
            state.start_failures += 1;
            let nobody_began = self
                .shared
                .places()
                .iter()
                .all(|line| line.ready.load(Ordering::Acquire) == 0);
            if state.start_failures >= self.options.start_failures_max
                && nobody_began
                && !state.is_over()
            {
                let last = state
                    .start_failure
                    .take()
                    .unwrap_or_else(|| describe(&died));
                let why = format!(
                    "{} workers in a row ended before their first job; the last: {last}",
                    state.start_failures
                );
                state.phase = Phase::Broken(why.clone());
                state.fail_all(|| Kind::Broken(why.clone()));
                drop(state);
                self.nudge();
            }
        }
        Ok(())
    }

    /// Takes the dead letters out of their queue. Someone else may have reclaimed a worker before the pool saw it end:
    /// its letter then waits for that.
    fn read_letters(&self) -> Result<()> {
        loop {
            let letter = match self.shared.letters.get(Deadline::PASSED) {
                Ok(letter) => letter,
                Err(error) if error.is_timeout() => return Ok(()),
                Err(error) => return Err(error),
            };
            let header = Header::unpack(letter.bytes())?;
            let mut state = self.state.lock();
            if header.job == 0 && header.detail == START_FAILED {
                let why = String::from_utf8_lossy(&letter.bytes()[HEADER..]).into_owned();
                state.start_failure = Some(why);
            } else {
                state.letters.push(letter);
            }
        }
    }

    /// Makes outcomes of a worker's letters, or hands the jobs out again.
    fn settle_letters(&self, died: WorkerDied, killed_for: Option<u64>) -> Result<()> {
        let letters: Vec<_> = {
            let mut state = self.state.lock();
            state
                .letters
                .extract_if(.., |letter| letter.victim() == Some(died.pid))
                .collect()
        };
        for letter in letters {
            self.settle_letter(Header::unpack(letter.bytes())?, &letter, died, killed_for)?;
        }
        Ok(())
    }

    /// Letters that came after their worker's end was dealt with: there was no memory for them at first.
    fn settle_strays(&self) -> Result<()> {
        self.read_letters()?;
        let strays: Vec<_> = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let works_here = |pid| {
                let children = state
                    .workers
                    .iter()
                    .filter_map(|member| member.child.as_ref());
                children.map(Child::pid).any(|worker| worker == pid)
            };
            state
                .letters
                .extract_if(.., |letter| !letter.victim().is_some_and(works_here))
                .collect()
        };
        for letter in strays {
            let died = WorkerDied {
                pid: letter.victim().unwrap_or(0),
                exit: None,
                ran: Duration::ZERO,
            };
            self.settle_letter(Header::unpack(letter.bytes())?, &letter, died, None)?;
        }
        Ok(())
    }

    fn settle_letter(
        &self,
        header: Header,
        letter: &Message,
        died: WorkerDied,
        killed_for: Option<u64>,
    ) -> Result<()> {
        let timed_out = match self.state.lock().pending.get_mut(&header.job) {
            // It has its outcome: answered in time, or cancelled.
            None => return Ok(()),
            Some(pending) => std::mem::take(&mut pending.timed_out),
        };
        // Killed for another job's sake, this one is not to blame and has not used up a try.
        let blameless = killed_for.is_some_and(|job| job != header.job);
        if blameless || header.detail > 0 {
            let tries = if blameless {
                header.detail
            } else {
                header.detail - 1
            };
            let again = Header {
                job: header.job,
                detail: tries,
            }
            .pack();
            let parts = [&again[..], &letter.bytes()[HEADER..]];
            let job = Outgoing {
                tag: letter.tag(),
                parts: &parts,
                handles: letter.handles(),
            };
            return self.shared.jobs.put_message(job, Deadline::NEVER);
        }
        let kind = if timed_out {
            Kind::TimedOut(died)
        } else {
            Kind::Lost(died)
        };
        self.settle_with(header.job, kind);
        Ok(())
    }

    /// Starts workers in places that are empty, as long as there is work to expect.
    fn fill_places(&self) -> Result<()> {
        for index in 0..self.options.workers {
            let wanted = {
                let state = self.state.lock();
                let wanted = match state.phase {
                    Phase::Open => true,
                    Phase::Closing => !state.pending.is_empty(),
                    Phase::Ending | Phase::Terminated | Phase::Broken(_) => false,
                };
                wanted && state.workers[index].child.is_none()
            };
            if wanted && let Err(error) = self.start_worker(index) {
                let mut state = self.state.lock();
                state.start_failures += 1;
                let why = format!("a worker could not be started: {error}");
                if state.start_failures >= self.options.start_failures_max {
                    state.phase = Phase::Broken(why.clone());
                    state.fail_all(|| Kind::Broken(why.clone()));
                    drop(state);
                    self.nudge();
                } else {
                    // Tried again at the next round.
                    self.keeper.ring();
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn start_worker(&self, index: usize) -> Result<()> {
        self.shared.place(index as u32)?.reset();
        let child = (self.launch)(Place {
            pool: self.handle(),
            index: index as u32,
        })?;
        let mut state = self.state.lock();
        let member = &mut state.workers[index];
        member.started = machine::monotonic_nanos();
        member.child = Some(child);
        Ok(())
    }

    /// Ends a job's wait for an outcome; false if it had one.
    fn settle(&self, job: u64) -> bool {
        let mut state = self.state.lock();
        let was_pending = state.settle(job);
        if state.phase == Phase::Closing && state.pending.is_empty() {
            state.phase = Phase::Ending;
            drop(state);
            self.let_workers_end();
        }
        was_pending
    }

    /// [`Pool::settle`], with an outcome that no worker wrote.
    fn settle_with(&self, job: u64, kind: Kind) -> bool {
        let was_pending = self.settle(job);
        if was_pending {
            self.state.lock().settled.push_back(Outcome {
                job: JobId(job),
                kind,
            });
            self.nudge();
        }
        was_pending
    }

    /// Makes whoever waits for results look at the settled ones.
    fn nudge(&self) {
        let header = Header {
            job: 0,
            detail: NUDGE,
        }
        .pack();
        // Without memory for 16 inline bytes the waiting one finds out at his deadline.
        let _ = self
            .shared
            .results
            .put(Tag::RAW, &[&header], Deadline::PASSED);
    }

    fn let_workers_end(&self) {
        let _ = self.shared.jobs.close();
        self.keeper.ring();
    }

    /// Refuses further jobs. Workers end when those that were handed in are done.
    pub fn close(&self) -> Result<()> {
        self.check_owner()?;
        let mut state = self.state.lock();
        if state.phase == Phase::Open {
            let idle = state.pending.is_empty();
            state.phase = if idle { Phase::Ending } else { Phase::Closing };
            drop(state);
            if idle {
                self.let_workers_end();
            }
        }
        Ok(())
    }

    /// Kills all workers. Jobs without a result end as [`Kind::Terminated`].
    pub fn terminate(&self) -> Result<()> {
        self.check_owner()?;
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Broken(_)) {
            state.phase = Phase::Terminated;
        }
        state.fail_all(|| Kind::Terminated);
        for member in &mut state.workers {
            if let Some(child) = &member.child {
                member.killed_for = Some(0);
                let _ = child.kill();
            }
        }
        drop(state);
        self.nudge();
        self.let_workers_end();
        Ok(())
    }

    /// Waits until all workers of a closed or terminated pool have ended.
    pub fn join(&self, deadline: Deadline) -> Result<()> {
        if self.state.lock().phase == Phase::Open {
            return Err(Error::Misuse {
                action: "join a pool",
                why: "it was neither closed nor terminated",
            });
        }
        while self.tend(deadline.min(Deadline::after(JOIN_TICK)))? {
            if deadline.has_passed() {
                return Err(Error::TimedOut {
                    what: "a pool's workers",
                });
            }
        }
        Ok(())
    }

    /// What each worker has done so far.
    pub fn stats(&self) -> Vec<WorkerStats> {
        let state = self.state.lock();
        let now = machine::monotonic_nanos();
        let since = |then: u64| Duration::from_nanos(now.saturating_sub(then));
        state
            .workers
            .iter()
            .zip(self.shared.places())
            .map(|(member, line)| {
                let job = line.job.load(Ordering::Acquire);
                let ready = line.ready.load(Ordering::Acquire);
                let running =
                    (job != 0).then(|| (job, since(line.started.load(Ordering::Acquire))));
                let busy = Duration::from_nanos(line.busy.load(Ordering::Acquire));
                let at_work = busy + running.map_or(Duration::ZERO, |(_, ran)| ran);
                WorkerStats {
                    pid: member.child.as_ref().map_or(0, Child::pid),
                    done: line.done.load(Ordering::Acquire),
                    busy,
                    idle: if ready == 0 {
                        Duration::ZERO
                    } else {
                        since(ready).saturating_sub(at_work)
                    },
                    running,
                    restarts: member.restarts,
                }
            })
            .collect()
    }

    /// Jobs that have no outcome yet.
    pub fn pending(&self) -> usize {
        self.state.lock().pending.len()
    }

    fn check_owner(&self) -> Result<()> {
        if process::pid() == self.pid {
            return Ok(());
        }
        Err(Error::Misuse {
            action: "use a pool",
            why: "it belongs to the process that created it",
        })
    }
}

impl State {
    fn settle(&mut self, job: u64) -> bool {
        match self.pending.remove(&job) {
            Some(pending) => {
                self.timed -= usize::from(pending.timeout.is_some());
                true
            }
            None => false,
        }
    }

    fn fail_all(&mut self, kind: impl Fn() -> Kind) {
        self.timed = 0;
        let mut jobs: Vec<_> = self.pending.drain().map(|(job, _)| job).collect();
        jobs.sort_unstable();
        self.settled.extend(jobs.into_iter().map(|job| Outcome {
            job: JobId(job),
            kind: kind(),
        }));
    }

    fn is_over(&self) -> bool {
        matches!(
            self.phase,
            Phase::Ending | Phase::Terminated | Phase::Broken(_)
        )
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.check_owner().is_err() {
            return;
        }
        let _ = self.terminate();
        // SIGKILL takes effect at once, but for a worker in the middle of uninterruptible I/O: such a one is collected
        // later, with the process's other children.
        let _ = self.join(Deadline::after(DROP_GRACE));
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Pool")
            .field(
                "workers",
                &state
                    .workers
                    .iter()
                    .filter(|member| member.child.is_some())
                    .count(),
            )
            .field("pending", &state.pending.len())
            .field("phase", &state.phase)
            .finish_non_exhaustive()
    }
}

/// How often the keeper looks at the clock while jobs with a timeout are pending.
const TIMEOUT_TICK: Duration = Duration::from_millis(10);
const JOIN_TICK: Duration = Duration::from_millis(100);
const DROP_GRACE: Duration = Duration::from_secs(5);

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn describe(died: &WorkerDied) -> String {
    match died.exit {
        Some(exit) => format!("process {} ended with {:?}", died.pid, exit.ending),
        None => format!("process {} ended", died.pid),
    }
}
