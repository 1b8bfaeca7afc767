//! What both sides of a pool look at: who works on what since when, and which jobs nobody wants any more.

use crate::error::{Error, Result};
use crate::memory::family::{Family, Me};
use crate::memory::fsck::Fsck;
use crate::memory::layout::shared;
use crate::memory::object::{self, Attached, Handle, Kind};
use crate::queue::Queue;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// This kind's number.
pub(crate) const POOL: u32 = 12;

pub(crate) const KIND: Kind = Kind {
    destroy,
    check,
    ..Kind::plain("pool")
};

/// The most workers that a pool can have.
pub const PLACES_MAX: usize = 512;

shared! {
    pub(super) struct Board: 64 {
        /// The handles of three queues, kept alive by these words.
        jobs: AtomicU64,
        results: AtomicU64,
        letters: AtomicU64,
        /// How many jobs a worker does before it makes room for another; 0 without limit.
        pub(super) jobs_per_worker: AtomicU64,
        places: AtomicU64,
        reserved: [AtomicU64; 3],
    }
}

shared! {
    /// One worker's line. It alone writes it, but for the reset when a new worker takes the place.
    pub(super) struct PlaceLine: 64 {
        /// The job it runs; 0 none.
        pub(super) job: AtomicU64,
        /// When it began with it, in nanoseconds of the monotonic clock.
        pub(super) started: AtomicU64,
        pub(super) done: AtomicU64,
        pub(super) busy: AtomicU64,
        /// When it became ready; 0 before.
        pub(super) ready: AtomicU64,
        pub(super) pid: AtomicU32,
        pub(super) padding: AtomicU32,
        reserved: [AtomicU64; 2],
    }
}

/// Cancelled jobs, each at its number modulo this many: an older one that is displaced runs, and its result is dropped.
const CANCELLED: u64 = 1024;

/// Where a worker works: what its parent gives it to begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pool.
    pub pool: Handle,
    /// Which of its workers this is.
    pub index: u32,
}

/// What a worker has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its process; 0 while the place is empty.
    pub pid: u32,
    /// Jobs it finished.
    pub done: u64,
    /// How long it ran jobs.
    pub busy: Duration,
    /// How long it waited for jobs.
    pub idle: Duration,
    /// The job it runs now, with the time it has run.
    pub running: Option<(u64, Duration)>,
    /// How many workers before it died or were replaced in this place.
    pub restarts: u64,
}

/// A pool's shared part: the board and the queues.
#[derive(Clone)]
pub(super) struct Shared {
    attached: Attached,
    board: &'static Board,
    places: &'static [PlaceLine],
    cancelled: &'static [AtomicU64],
    pub(super) jobs: Queue,
    pub(super) results: Queue,
    pub(super) letters: Queue,
}

impl Shared {
    pub(super) fn create(
        family: &'static Family,
        (jobs, results, letters): (Queue, Queue, Queue),
        places: usize,
        jobs_per_worker: u64,
    ) -> Result<Shared> {
        if places == 0 || places > PLACES_MAX {
            return Err(Error::TooLarge {
                what: "a pool",
                length: places as u64,
                limit: PLACES_MAX as u64,
            });
        }
        let length = size_of::<Board>() + places * size_of::<PlaceLine>() + CANCELLED as usize * 8;
        let attached = object::create(family, POOL, length as u64, |_, body| {
            let board = family.region().view::<Board>(body)?;
            board
                .jobs_per_worker
                .store(jobs_per_worker, Ordering::Release);
            board.places.store(places as u64, Ordering::Release);
            Ok(())
        })?;
        let me = family.me()?;
        // DEATH: a board whose queues are kept in part; destroying it lets go of those.
        for (queue, place) in [&jobs, &results, &letters].into_iter().zip(0..) {
            object::keep(family, me, attached.body() + 8 * place, queue.handle())?;
        }
        Shared::new(attached, jobs, results, letters)
    }

    pub(super) fn attach(family: &'static Family, handle: Handle) -> Result<Shared> {
        let attached = object::attach(family, POOL, handle)?;
        let board = attached.view::<Board>()?;
        let queue = |word: &AtomicU64| {
            Queue::attach(family, Handle::from_bits(word.load(Ordering::Acquire)))
        };
        let (jobs, results, letters) = (
            queue(&board.jobs)?,
            queue(&board.results)?,
            queue(&board.letters)?,
        );
        Shared::new(attached, jobs, results, letters)
    }

    fn new(attached: Attached, jobs: Queue, results: Queue, letters: Queue) -> Result<Shared> {
        let board = attached.view::<Board>()?;
        let region = attached.family().region();
        let places = board.places.load(Ordering::Acquire).min(PLACES_MAX as u64);
        let start = attached.body() + size_of::<Board>() as u64;
        let after = start + places * size_of::<PlaceLine>() as u64;
        let (places, cancelled) = (
            region.views(start, places)?,
            region.views(after, CANCELLED)?,
        );
        Ok(Shared {
            attached,
            board,
            places,
            cancelled,
            jobs,
            results,
            letters,
        })
    }

    pub(super) fn handle(&self) -> Handle {
        self.attached.handle()
    }

    pub(super) fn jobs_per_worker(&self) -> u64 {
        self.board.jobs_per_worker.load(Ordering::Relaxed)
    }

    pub(super) fn place(&self, index: u32) -> Result<&'static PlaceLine> {
        self.places.get(index as usize).ok_or(Error::Misuse {
            action: "take a place in a pool",
            why: "the pool has no such place",
        })
    }

    pub(super) fn places(&self) -> &'static [PlaceLine] {
        self.places
    }

    pub(super) fn cancel(&self, job: u64) {
        self.cancelled[(job % CANCELLED) as usize].store(job, Ordering::Release);
    }

    pub(super) fn is_cancelled(&self, job: u64) -> bool {
        self.cancelled[(job % CANCELLED) as usize].load(Ordering::Acquire) == job
    }
}

impl PlaceLine {
    /// Makes the line a new worker's.
    pub(super) fn reset(&self) {
        for word in [
            &self.job,
            &self.started,
            &self.done,
            &self.busy,
            &self.ready,
        ] {
            word.store(0, Ordering::Release);
        }
        self.pid.store(0, Ordering::Release);
    }
}

fn destroy(family: &'static Family, me: Me, body: u64) {
    for place in 0..3 {
        object::let_go(family, me, body + 8 * place);
    }
}

fn check(family: &'static Family, body: u64, fsck: &mut Fsck) {
    let Ok(board) = family.region().view::<Board>(body) else {
        return;
    };
    for word in [&board.jobs, &board.results, &board.letters] {
        let handle = word.load(Ordering::Acquire);
        if handle != 0 {
            fsck.refers(Handle::from_bits(handle));
        }
    }
}
