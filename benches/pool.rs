//! Pools and processes: a call and its answer, many calls, and what it takes to start a process.
#![allow(unsafe_code, reason = "workers are forked")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(missing_docs, reason = "a program")]

use procession_benches::{Contender, Unit, interleave, print_table};
use procession_core::pool::{self, JobOptions, OutcomeKind, Place, Pool, Worker};
use procession_core::process::{self, Method, Role, Start, bootstrap};
use procession_core::{Deadline, Family, Outgoing, Tag};
use std::hint::black_box;
use std::time::Instant;

fn main() {
    procspawn::init();
    match bootstrap().expect("a place in the family") {
        None => {}
        Some(Role::Child(_)) => return,
        Some(Role::Zygote(zygote)) => {
            zygote.serve().expect("a child of the zygote");
            return;
        }
    }
    if std::env::var_os(NOTHING).is_some() {
        return;
    }
    let calls = [
        Contender::new("procession, processes", |count| {
            let pool = pool(1);
            timed(count, |n| {
                submit(&pool, n);
                outcome(&pool)
            })
        }),
        Contender::new("procspawn, processes", |count| {
            let pool = procspawn::Pool::new(1).expect("a pool");
            timed(count, |n| {
                procspawn::spawn!(in pool, (n => n) || n + 1)
                    .join()
                    .expect("an answer")
            })
        }),
        Contender::new("rayon, threads", |count| {
            let pool = rayon(1);
            timed(count, |n| pool.install(|| black_box(n) + 1))
        }),
    ];
    print_table(
        "One worker, one call at a time: time of a call",
        Unit::Time,
        &[("u64 → u64", interleave(&calls, 64, 200_000))],
    );
    let floods = [
        Contender::new("procession, processes", |count| {
            let pool = pool(2);
            at_once(count, |count| {
                (0..count).for_each(|n| submit(&pool, n));
                (0..count)
                    .map(|_| outcome(&pool))
                    .fold(0, u64::wrapping_add)
            })
        }),
        Contender::new("procspawn, processes", |count| {
            let pool = procspawn::Pool::new(2).expect("a pool");
            at_once(count, |count| {
                let handles: Vec<_> = (0..count)
                    .map(|n| procspawn::spawn!(in pool, (n => n) || n + 1))
                    .collect();
                let answers = handles
                    .into_iter()
                    .map(|handle| handle.join().expect("an answer"));
                answers.fold(0, u64::wrapping_add)
            })
        }),
        Contender::new("rayon, threads", |count| {
            let pool = rayon(2);
            at_once(count, |count| {
                let (sender, receiver) = crossbeam_channel::unbounded();
                for n in 0..count {
                    let sender = sender.clone();
                    pool.spawn(move || sender.send(n + 1).expect("a receiver"));
                }
                receiver
                    .iter()
                    .take(count as usize)
                    .fold(0, u64::wrapping_add)
            })
        }),
    ];
    print_table(
        "Two workers, all calls handed in at once: calls a second",
        Unit::Rate,
        &[("u64 → u64", interleave(&floods, 64, 200_000))],
    );
    let starts = [
        Contender::new("procession fork", |count| {
            let family = family();
            timed(count, |_| {
                // SAFETY: the child only ends.
                let child = unsafe { process::fork(family, &Start::new(Method::Fork), || 0) };
                let exit = child.expect("a child").join(Deadline::NEVER);
                assert!(exit.expect("its end").is_success());
            })
        }),
        Contender::new("procession zygote", |count| started(Method::Zygote, count)),
        Contender::new("procession spawn", |count| started(Method::Spawn, count)),
        Contender::new("procspawn spawn", |count| {
            timed(count, |_| {
                procspawn::spawn((), |()| ()).join().expect("an answer")
            })
        }),
        Contender::new("std Command, this program", |count| {
            let program = std::env::current_exe().expect("a path");
            timed(count, |_| {
                let mut command = std::process::Command::new(&program);
                assert!(
                    command
                        .env(NOTHING, "1")
                        .status()
                        .expect("its end")
                        .success()
                );
            })
        }),
        Contender::new("fork and _exit, bare", |count| {
            timed(count, |_| {
                // SAFETY: the child only ends; the pointer may be null.
                unsafe {
                    match libc::fork() {
                        0 => libc::_exit(0),
                        pid => assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), 0), pid),
                    }
                }
            })
        }),
    ];
    print_table(
        "A process that does nothing, from start to end",
        Unit::Time,
        &[("time", interleave(&starts, 8, 1000))],
    );
}

/// Set for a process that should end at once.
const NOTHING: &str = "PROCESSION_BENCH_NOTHING";

fn family() -> &'static Family {
    procession_core::family().create().expect("an arena")
}

/// Nanoseconds for each call, after a few to get warm.
fn timed<T>(count: u64, mut call: impl FnMut(u64) -> T) -> f64 {
    (0..count.min(200)).for_each(|n| drop(black_box(call(n))));
    let begin = Instant::now();
    (0..count).for_each(|n| drop(black_box(call(n))));
    begin.elapsed().as_nanos() as f64 / count as f64
}

/// The same for calls that are handed in together.
fn at_once(count: u64, calls: impl Fn(u64) -> u64) -> f64 {
    calls(count.div_ceil(4));
    let begin = Instant::now();
    assert_eq!(
        calls(count),
        count * (count + 1) / 2,
        "every call was answered"
    );
    begin.elapsed().as_nanos() as f64 / count as f64
}

fn pool(workers: usize) -> Pool {
    let family = family();
    let options = pool::Options {
        workers,
        ..pool::Options::default()
    };
    let launch = move |place| {
        let start = Start {
            daemon: true,
            ..Start::new(Method::Fork)
        };
        // SAFETY: the worker uses the engine alone.
        unsafe { process::fork(family, &start, || work(family, place)) }
    };
    Pool::create(family, options, launch).expect("a pool")
}

fn work(family: &'static Family, place: Place) -> i32 {
    let worker = Worker::attach(family, place).expect("a place");
    worker.ready();
    while let Some(job) = worker.next(Deadline::NEVER).expect("a job") {
        let n = u64::from_le_bytes(job.bytes().try_into().expect("eight bytes"));
        let answer = (n + 1).to_le_bytes();
        let put = worker.finish(&job, Outgoing::bytes(Tag::RAW, &[&answer]));
        put.expect("answered");
    }
    0
}

fn submit(pool: &Pool, n: u64) {
    let bytes = n.to_le_bytes();
    let job = pool.submit(Outgoing::bytes(Tag::RAW, &[&bytes]), JobOptions::default());
    job.expect("an open pool");
}

fn outcome(pool: &Pool) -> u64 {
    match pool.outcome(Deadline::NEVER).expect("an outcome").kind {
        OutcomeKind::Returned(reply) => {
            u64::from_le_bytes(reply.bytes().try_into().expect("eight bytes"))
        }
        other => panic!("a job ended as {other:?}"),
    }
}

fn rayon(threads: usize) -> rayon::ThreadPool {
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    builder.build().expect("threads")
}

fn started(method: Method, count: u64) -> f64 {
    let family = family();
    timed(count, |_| {
        let child = process::start(family, &Start::new(method)).expect("a child");
        let exit = child.join(Deadline::NEVER).expect("its end");
        assert!(exit.is_success());
    })
}
