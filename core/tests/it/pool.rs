//! Pools: jobs whose workers may die.
#![allow(unsafe_code, reason = "workers are forked from a test process")]

use crate::support::{Random, WATCHDOG, assert_sound, until};
use procession_core::pool::{
    JobId, JobOptions, Options, Outcome, OutcomeKind, Place, Pool, Worker,
};
use procession_core::process::{self, Child, Ending, Method, Start};
use procession_core::{Deadline, Error, Family, Outgoing, Result, Tag};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn family() -> &'static Family {
    procession_core::family()
        .name("test-pool")
        .create()
        .expect("an arena")
}

fn watchdog() -> Deadline {
    Deadline::after(WATCHDOG)
}

/// A worker that answers by what the job's first byte says.
fn work(family: &'static Family, place: Place) -> Result<i32> {
    let worker = Worker::attach(family, place)?;
    worker.ready();
    while let Some(job) = worker.next(watchdog())? {
        match job.bytes().first() {
            Some(b'k') => {
                // SAFETY: ends this process.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
            Some(b'x') => {
                // SAFETY: ends this process.
                unsafe { libc::_exit(3) };
            }
            Some(b's') => loop {
                std::thread::park();
            },
            _ => {}
        }
        let mut answer = job.bytes().to_vec();
        answer.reverse();
        worker.finish(&job, Outgoing::bytes(Tag::RAW, &[&answer]))?;
    }
    Ok(0)
}

fn launch(family: &'static Family) -> impl Fn(Place) -> Result<Child> + Send + Sync {
    move |place| {
        let start = Start {
            name: "worker",
            daemon: true,
            ..Start::new(Method::Fork)
        };
        // SAFETY: the worker uses the engine alone.
        unsafe { process::fork(family, &start, || work(family, place).unwrap_or(9)) }
    }
}

/// A pool whose keeper is a thread, as a face has it.
struct Kept {
    pool: Arc<Pool>,
    stop: Arc<AtomicBool>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Kept {
    fn new(family: &'static Family, options: Options) -> Kept {
        Kept::keep(Pool::create(family, options, launch(family)).unwrap())
    }

    fn keep(pool: Pool) -> Kept {
        let pool = Arc::new(pool);
        let stop = Arc::new(AtomicBool::new(false));
        let keeper = {
            let (pool, stop) = (pool.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Acquire)
                    && pool.tend(watchdog()).expect("tending goes on")
                {}
            })
        };
        Kept {
            pool,
            stop,
            keeper: Some(keeper),
        }
    }

    fn submit(&self, bytes: &[u8], options: JobOptions) -> JobId {
        self.pool
            .submit(Outgoing::bytes(Tag::RAW, &[bytes]), options)
            .unwrap()
    }

    fn outcomes(&self, count: usize) -> HashMap<JobId, OutcomeKind> {
        let outcomes = (0..count).map(|_| self.pool.outcome(watchdog()).unwrap());
        outcomes.map(|Outcome { job, kind }| (job, kind)).collect()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.pool.wake_keeper();
        if let Some(keeper) = self.keeper.take() {
            keeper.join().unwrap();
        }
    }
}

fn options(workers: usize) -> Options {
    Options {
        workers,
        ..Options::default()
    }
}

#[track_caller]
fn returned(kind: &OutcomeKind) -> &[u8] {
    match kind {
        OutcomeKind::Returned(reply) => reply.bytes(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_job_comes_back_once_with_its_own_result() {
    let family = family();
    let pool = Kept::new(family, options(3));
    let jobs: Vec<_> = (0..300u32)
        .map(|n| {
            let bytes = vec![b'a' + (n % 3) as u8 * 2; n as usize * 50];
            (pool.submit(&bytes, JobOptions::default()), bytes)
        })
        .collect();
    let outcomes = pool.outcomes(300);
    for (job, bytes) in &jobs {
        assert_eq!(returned(&outcomes[job]), bytes);
    }
    assert_eq!(
        pool.pool
            .stats()
            .iter()
            .map(|worker| worker.done)
            .sum::<u64>(),
        300
    );
    drop(outcomes);
    pool.pool.close().unwrap();
    pool.pool.join(watchdog()).unwrap();
    drop(pool);
    assert_sound(family);
    assert_eq!(family.fsck().unwrap().objects, 0);
}

#[test]
fn a_death_fails_that_job_alone_and_says_how() {
    let family = family();
    let pool = Kept::new(family, options(2));
    let before: Vec<_> = (0..20)
        .map(|_| pool.submit(b"fine", JobOptions::default()))
        .collect();
    let killed = pool.submit(b"killed", JobOptions::default());
    let exited = pool.submit(b"xited", JobOptions::default());
    let after: Vec<_> = (0..20)
        .map(|_| pool.submit(b"fine", JobOptions::default()))
        .collect();
    let outcomes = pool.outcomes(42);
    for job in before.iter().chain(&after) {
        assert_eq!(returned(&outcomes[job]), b"enif");
    }
    for (job, ending) in [(killed, Ending::Signal(9)), (exited, Ending::Code(3))] {
        match &outcomes[&job] {
            OutcomeKind::Lost(died) => {
                assert!(died.pid > 0);
                assert_eq!(died.exit.expect("the keeper saw it end").ending, ending);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        pool.pool
            .stats()
            .iter()
            .map(|worker| worker.restarts)
            .sum::<u64>(),
        2
    );
}

#[test]
fn retries_are_used_up_one_by_one() {
    let family = family();
    let pool = Kept::new(family, options(1));
    let job = pool.submit(
        b"k",
        JobOptions {
            retries: 2,
            ..JobOptions::default()
        },
    );
    assert!(matches!(pool.outcomes(1)[&job], OutcomeKind::Lost(_)));
    until("three workers died of it", || {
        pool.pool.stats()[0].restarts == 3
    });
}

#[test]
fn a_job_that_runs_too_long_is_ended_and_the_next_one_runs() {
    let family = family();
    let pool = Kept::new(family, options(1));
    let timeout = Some(Duration::from_millis(30));
    let stuck = pool.submit(
        b"sleep",
        JobOptions {
            timeout,
            ..JobOptions::default()
        },
    );
    let fine = pool.submit(
        b"ok",
        JobOptions {
            timeout: Some(WATCHDOG),
            ..JobOptions::default()
        },
    );
    let outcomes = pool.outcomes(2);
    assert!(
        matches!(outcomes[&stuck], OutcomeKind::TimedOut(_)),
        "{:?}",
        outcomes[&stuck]
    );
    assert_eq!(returned(&outcomes[&fine]), b"ko");
}

#[test]
fn cancelling_ends_a_job_that_waits_and_one_that_runs() {
    let family = family();
    let pool = Kept::new(family, options(1));
    let running = pool.submit(b"sleep", JobOptions::default());
    until("it runs", || pool.pool.stats()[0].running.is_some());
    let waiting = pool.submit(b"k", JobOptions::default());
    let last = pool.submit(b"last", JobOptions::default());
    assert!(pool.pool.cancel(waiting).unwrap());
    assert!(pool.pool.cancel(running).unwrap());
    assert!(!pool.pool.cancel(running).unwrap(), "it has ended");
    let outcomes = pool.outcomes(3);
    assert!(matches!(outcomes[&waiting], OutcomeKind::Cancelled));
    assert!(matches!(outcomes[&running], OutcomeKind::Cancelled));
    assert_eq!(returned(&outcomes[&last]), b"tsal");
}

#[test]
fn a_worker_makes_room_after_its_jobs() {
    let family = family();
    let pool = Kept::new(
        family,
        Options {
            jobs_per_worker: Some(5),
            ..options(2)
        },
    );
    let jobs: Vec<_> = (0..50)
        .map(|_| pool.submit(b"job", JobOptions::default()))
        .collect();
    let outcomes = pool.outcomes(50);
    assert!(jobs.iter().all(|job| returned(&outcomes[job]) == b"boj"));
    until("workers were replaced", || {
        pool.pool
            .stats()
            .iter()
            .map(|worker| worker.restarts)
            .sum::<u64>()
            >= 8
    });
}

#[test]
fn a_broken_start_ends_with_its_reason() {
    let family = family();
    let pool = Pool::create(family, options(2), move |place| {
        let start = Start {
            daemon: true,
            ..Start::new(Method::Fork)
        };
        let fails = move || {
            let worker = Worker::attach(family, place).expect("a place");
            worker.failed_to_start("no database").expect("a letter");
            1
        };
        // SAFETY: the worker uses the engine alone.
        unsafe { process::fork(family, &start, fails) }
    });
    let pool = Kept::keep(pool.unwrap());
    let broken = match pool
        .pool
        .submit(Outgoing::bytes(Tag::RAW, &[b"job"]), JobOptions::default())
    {
        Ok(job) => match pool.outcomes(1).remove(&job) {
            Some(OutcomeKind::Broken(why)) => why,
            other => panic!("{other:?}"),
        },
        Err(Error::StartFailed { why, .. }) => why,
        Err(other) => panic!("{other}"),
    };
    assert!(
        broken.contains("3 workers in a row") && broken.contains("no database"),
        "{broken}"
    );
    let refused = pool
        .pool
        .submit(Outgoing::bytes(Tag::RAW, &[b"job"]), JobOptions::default());
    assert!(matches!(refused, Err(Error::StartFailed { .. })));
}

#[test]
fn closing_lets_all_jobs_end_and_terminating_none() {
    let family = family();
    let pool = Kept::new(family, options(2));
    let jobs: Vec<_> = (0..40)
        .map(|_| {
            pool.submit(
                b"job",
                JobOptions {
                    retries: 1,
                    ..Default::default()
                },
            )
        })
        .collect();
    pool.pool.close().unwrap();
    let refused = pool
        .pool
        .submit(Outgoing::bytes(Tag::RAW, &[b"late"]), JobOptions::default());
    assert!(matches!(refused, Err(Error::Closed { .. })));
    let outcomes = pool.outcomes(40);
    assert!(jobs.iter().all(|job| returned(&outcomes[job]) == b"boj"));
    pool.pool.join(watchdog()).unwrap();

    let pool = Kept::new(family, options(2));
    let jobs: Vec<_> = (0..6)
        .map(|_| pool.submit(b"sleep", JobOptions::default()))
        .collect();
    pool.pool.terminate().unwrap();
    let outcomes = pool.outcomes(6);
    assert!(
        jobs.iter()
            .all(|job| matches!(outcomes[job], OutcomeKind::Terminated))
    );
    pool.pool.join(watchdog()).unwrap();
    drop((outcomes, pool));
    assert_sound(family);
}

#[test]
fn dropping_a_busy_pool_leaves_nothing() {
    let family = family();
    let pool = Pool::create(family, options(3), launch(family)).unwrap();
    for _ in 0..10 {
        pool.submit(
            Outgoing::bytes(Tag::RAW, &[b"sleep"]),
            JobOptions::default(),
        )
        .unwrap();
    }
    let pids: Vec<_> = pool.stats().iter().map(|worker| worker.pid).collect();
    drop(pool);
    assert!(
        pids.iter()
            .all(|pid| !std::fs::exists(format!("/proc/{pid}")).unwrap()),
        "all ended and collected"
    );
    assert_sound(family);
    let findings = family.fsck().unwrap();
    assert_eq!(
        (
            findings.objects,
            findings.blocks_shared,
            findings.blocks_private
        ),
        (0, 0, 0)
    );
}

#[test]
fn storm_of_kills_on_a_pool() {
    const JOBS: usize = 3000;
    let family = family();
    // Kills that meet three newcomers in a row are no broken start here.
    let pool = Kept::new(
        family,
        Options {
            start_failures_max: 1000,
            ..options(4)
        },
    );
    let mut random = Random::new("storm_of_kills_on_a_pool");
    let retries = JobOptions {
        retries: 1_000_000,
        ..JobOptions::default()
    };
    let mut jobs = HashMap::new();
    for number in 0..JOBS {
        let bytes = format!("job {number} {}", "x".repeat(random.below(300) as usize));
        jobs.insert(pool.submit(bytes.as_bytes(), retries), bytes);
    }
    let mut kills = 0;
    for count in 0..JOBS {
        let Outcome { job, kind } = pool.pool.outcome(watchdog()).unwrap();
        let bytes = jobs.remove(&job).expect("each job ends once");
        assert_eq!(returned(&kind), bytes.bytes().rev().collect::<Vec<_>>());
        if count % 10 == 0 {
            let workers = pool.pool.stats();
            let pid = workers[random.below(4) as usize].pid;
            if pid != 0 {
                // SAFETY: a worker of ours, collected only after the pool saw it end.
                unsafe { libc::kill(pid as i32, libc::SIGKILL) };
                kills += 1;
            }
        }
    }
    println!(
        "storm_of_kills_on_a_pool: {kills} kills, {JOBS} jobs, {} left",
        jobs.len()
    );
    assert!(jobs.is_empty() && kills > 20);
    pool.pool.close().unwrap();
    pool.pool.join(watchdog()).unwrap();
    drop(pool);
    assert_sound(family);
}
