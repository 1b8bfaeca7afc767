//! Pools: results, deaths of workers, limits, and ends.

use crate::support::{kill, until};
use procession::{
    Event, JobError, JobOptions, Pool, Queue, Semaphore, SharedSlice, SharedValue, StartMethod,
};
use std::cell::Cell;
use std::collections::HashSet;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn square(n: u64) -> u64 {
    n * n
}

fn sleep_for_ever() {
    loop {
        std::thread::park();
    }
}

#[procession::test]
fn results_come_in_the_order_of_the_items() {
    let pool = Pool::with_workers(3).unwrap();
    for chunk in [1, 7, 1000] {
        let squares: Vec<u64> = pool
            .map(square, 0..200)
            .chunk(chunk)
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(squares, (0..200).map(square).collect::<Vec<_>>());
    }
}

#[procession::test]
fn unordered_results_come_once_each_with_their_number() {
    let pool = Pool::with_workers(3).unwrap();
    for chunk in [1, 9] {
        let mut seen = vec![0; 100];
        for (index, result) in pool.map_unordered(square, 0..100).chunk(chunk) {
            assert_eq!(result.unwrap(), square(index as u64));
            seen[index] += 1;
        }
        assert_eq!(seen, [1; 100]);
    }
}

#[procession::test]
fn a_map_over_nothing_is_empty() {
    let pool = Pool::with_workers(1).unwrap();
    assert!(pool.map(square, []).next().is_none());
    assert!(pool.map_unordered(square, []).next().is_none());
}

#[procession::test]
fn items_are_pulled_no_further_than_the_window() {
    let pool = Pool::with_workers(2).unwrap();
    let pulled = Cell::new(0);
    let endless = (0..).inspect(|_| pulled.set(pulled.get() + 1));
    let mut results = pool.map(square, endless).window(3).chunk(2);
    assert_eq!(pulled.get(), 0);
    for taken in 1..=50 {
        results.next().unwrap().unwrap();
        assert!(
            pulled.get() <= taken + 3 * 2,
            "{} pulled for {taken}",
            pulled.get()
        );
    }
}

#[procession::test]
fn a_map_that_is_dropped_leaves_the_pool_free() {
    let pool = Pool::with_workers(1).unwrap();
    let (begun, gate) = (SharedValue::new(0u32).unwrap(), Event::new().unwrap());
    let items = (0..100).map(|_| (begun.clone(), gate.clone()));
    let task = |(begun, gate): (SharedValue<u32>, Event)| {
        let number = begun.fetch_add(1);
        if number > 0 {
            gate.wait().unwrap();
        }
        number
    };
    let results = pool.map(task, items).window(50);
    let first: Vec<_> = results.take(1).collect();
    assert!(matches!(first[..], [Ok(0)]));
    gate.set().unwrap();
    assert_eq!(pool.call(square, (3,)).unwrap().join().unwrap(), 9);
    assert!(begun.load() < 50, "what waited was not begun");
    assert_eq!(pool.pending(), 0);
}

#[procession::test]
fn a_panic_is_the_result_of_its_item_alone() {
    let pool = Pool::with_workers(2).unwrap();
    for chunk in [1, 4] {
        let results: Vec<_> = pool
            .map(
                |n: u32| if n % 5 == 3 { panic!("item {n}") } else { n },
                0..20,
            )
            .chunk(chunk)
            .collect();
        for (n, result) in results.into_iter().enumerate() {
            match result {
                Ok(same) => assert_eq!(same as usize, n),
                Err(JobError::Panicked(panic)) => {
                    assert_eq!((n % 5, panic.message), (3, format!("item {n}")));
                    assert!(panic.location.unwrap().contains("pool.rs:"));
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[procession::test]
fn errors_of_the_function_are_results_like_others() {
    let pool = Pool::with_workers(1).unwrap();
    let parse = |text: String| text.parse::<u8>().map_err(|error| error.to_string());
    let results: Vec<_> = pool
        .map(parse, ["7", "300"].map(String::from))
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(
        results,
        [
            Ok(7),
            Err("number too large to fit in target type".to_string())
        ]
    );
}

#[procession::test]
fn a_killed_worker_costs_its_own_call_and_is_replaced() {
    let pool = Pool::with_workers(2).unwrap();
    let begun = Queue::unbounded().unwrap();
    let wait = |begun: Queue<u32>| {
        begun.put(std::process::id()).unwrap();
        sleep_for_ever();
    };
    let lost = pool.call(wait, (begun.clone(),)).unwrap();
    let victim = begun.get().unwrap();
    let other = pool.call(square, (7,)).unwrap();
    kill(victim);
    let Err(JobError::WorkerDied(died)) = lost.join() else {
        panic!("not a death");
    };
    assert_eq!(
        (died.pid, died.signal(), died.code()),
        (victim, Some(9), None)
    );
    assert!(died.task.contains("a_killed_worker"), "{}", died.task);
    assert!(
        died.to_string()
            .contains("was killed by signal 9 (SIGKILL)"),
        "{died}"
    );
    assert_eq!(other.join().unwrap(), 49);
    until("the worker is replaced", || {
        pool.stats().iter().all(|worker| worker.pid != 0)
    });
    assert!(pool.stats().iter().all(|worker| worker.pid != victim));
    let pids: HashSet<_> = pool
        .map(|_: u32| std::process::id(), 0..50)
        .collect::<Result<_, _>>()
        .unwrap();
    assert!(!pids.contains(&victim));
}

#[procession::test]
fn a_call_of_a_killed_worker_is_made_again_if_it_may_be() {
    fn die_first(tries: SharedValue<u32>) -> u32 {
        match tries.fetch_add(1) {
            0 | 1 => std::process::abort(),
            tries => tries,
        }
    }
    let pool = Pool::with_workers(2).unwrap();
    let tries = SharedValue::new(0).unwrap();
    let enough = JobOptions::new().retries(2);
    let job = pool.call_with(enough, die_first, (tries.clone(),)).unwrap();
    assert_eq!(job.join().unwrap(), 2);
    tries.store(0);
    let too_few = JobOptions::new().retries(1);
    let job = pool
        .call_with(too_few, die_first, (tries.clone(),))
        .unwrap();
    assert!(matches!(job.join(), Err(JobError::WorkerDied(_))));
    assert_eq!(tries.load(), 2);
}

#[procession::test]
fn every_worker_killed_again_and_again_costs_nothing_with_retries() {
    let pool = Pool::with_workers(3).unwrap();
    let counts = SharedSlice::<u32>::zeroed(200).unwrap();
    let items = (0..200u32).map(|n| (n, counts.clone()));
    let slow = |(n, counts): (u32, SharedSlice<u32>)| {
        std::thread::sleep(Duration::from_millis(2));
        counts.fetch_add(n as usize, 1);
        n
    };
    let mut results = pool.map(slow, items).retries(100);
    for n in 0..200 {
        assert_eq!(results.next().unwrap().unwrap(), n);
        if n % 20 == 10 {
            pool.stats()
                .iter()
                .filter(|worker| worker.pid != 0)
                .for_each(|worker| kill(worker.pid));
        }
    }
    assert!(results.next().is_none());
    assert!(counts.to_vec().iter().all(|count| *count >= 1));
}

#[procession::test]
fn in_a_chunk_the_items_share_a_death() {
    let pool = Pool::with_workers(1).unwrap();
    let results: Vec<_> = pool
        .map(
            |n: u32| if n == 5 { std::process::abort() } else { n },
            0..12,
        )
        .chunk(4)
        .collect();
    for (n, result) in results.into_iter().enumerate() {
        match result {
            Ok(same) => assert!(same as usize == n && !(4..8).contains(&n)),
            Err(JobError::WorkerDied(died)) => {
                assert_eq!(died.items, Some(4..8));
                assert!((4..8).contains(&n));
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[procession::test]
fn a_call_that_runs_too_long_is_ended_alone() {
    let pool = Pool::with_workers(2).unwrap();
    let limit = JobOptions::new().timeout(Duration::from_millis(50));
    let slow = pool.call_with(limit, sleep_for_ever, ()).unwrap();
    let quick = pool
        .call_with(JobOptions::new().timeout(LONG), square, (5,))
        .unwrap();
    let Err(JobError::TimedOut(died)) = slow.join() else {
        panic!("not in time");
    };
    assert!(died.ran >= Duration::from_millis(50));
    assert_eq!(quick.join().unwrap(), 25);
}

#[procession::test]
fn a_cancelled_call_is_not_made() {
    let pool = Pool::with_workers(1).unwrap();
    let (go, made) = (Event::new().unwrap(), SharedValue::new(0u8).unwrap());
    let running = pool
        .call(|go: Event| go.wait().unwrap(), (go.clone(),))
        .unwrap();
    let waiting = pool
        .call(|made: SharedValue<u8>| made.store(1), (made.clone(),))
        .unwrap();
    assert!(waiting.cancel().unwrap());
    assert!(!waiting.cancel().unwrap());
    assert!(matches!(waiting.join(), Err(JobError::Cancelled)));
    go.set().unwrap();
    running.join().unwrap();
    pool.join().unwrap();
    assert_eq!(made.load(), 0);
}

#[procession::test]
fn a_call_that_runs_is_cancelled_with_its_worker() {
    let pool = Pool::with_workers(1).unwrap();
    let begun = Event::new().unwrap();
    let job = pool
        .call(
            |begun: Event| {
                begun.set().unwrap();
                sleep_for_ever()
            },
            (begun.clone(),),
        )
        .unwrap();
    begun.wait().unwrap();
    assert!(job.cancel().unwrap());
    assert!(matches!(job.join(), Err(JobError::Cancelled)));
    assert_eq!(pool.call(square, (2,)).unwrap().join().unwrap(), 4);
}

#[procession::test]
fn joining_a_call_can_give_up_and_try_again() {
    let pool = Pool::with_workers(1).unwrap();
    let go = Event::new().unwrap();
    let mut job = pool
        .call(|go: Event| go.wait().unwrap(), (go.clone(),))
        .unwrap();
    assert!(!job.is_finished());
    assert!(job.try_join().unwrap().is_none());
    assert!(
        job.join_timeout(Duration::from_millis(10))
            .unwrap()
            .is_none()
    );
    go.set().unwrap();
    assert_eq!(job.join_timeout(LONG).unwrap(), Some(()));
    assert!(matches!(job.try_join(), Err(JobError::Failed(_))));
}

#[procession::test]
fn many_threads_join_their_calls_at_once() {
    let pool = Pool::with_workers(2).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let pool = &pool;
            scope.spawn(move || {
                for n in 0..50 {
                    let mut job = pool.call(square, (thread * 100 + n,)).unwrap();
                    let result = loop {
                        // Some leave in the middle, so that others must take over.
                        match job
                            .join_timeout(Duration::from_micros(200 * thread))
                            .unwrap()
                        {
                            Some(result) => break result,
                            None if n % 3 == 0 => break job.join().unwrap(),
                            None => {}
                        }
                    };
                    assert_eq!(result, square(thread * 100 + n));
                }
            });
        }
    });
}

#[procession::test]
fn workers_that_cannot_start_break_the_pool() {
    let fail = |why: String| panic!("{why}");
    let pool = Pool::builder()
        .workers(2)
        .start_failures_max(3)
        .initializer(fail, ("no licence".to_string(),))
        .create()
        .unwrap();
    let why = match pool.call(square, (1,)).map(|job| job.join()) {
        Ok(Err(JobError::Broken { why })) => why,
        Err(error) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(
        why.contains("3 workers in a row ended before their first job"),
        "{why}"
    );
    assert!(
        why.contains("its initializer panicked at") && why.contains("no licence"),
        "{why}"
    );
    assert!(pool.call(square, (1,)).is_err());
}

#[procession::test]
fn workers_are_replaced_after_their_share_of_calls() {
    let pool = Pool::builder()
        .workers(2)
        .jobs_per_worker(3)
        .create()
        .unwrap();
    let pids: Vec<u32> = pool
        .map(|_: u32| std::process::id(), 0..30)
        .collect::<Result<_, _>>()
        .unwrap();
    for pid in &pids {
        assert!(pids.iter().filter(|other| *other == pid).count() <= 3);
    }
}

#[procession::test]
fn each_worker_is_initialized_once() {
    let started = SharedValue::new(0u32).unwrap();
    let pool = Pool::builder()
        .workers(3)
        .initializer(
            |started: SharedValue<u32>| _ = started.fetch_add(1),
            (started.clone(),),
        )
        .create()
        .unwrap();
    pool.map(square, 0..100)
        .for_each(|result| _ = result.unwrap());
    pool.join().unwrap();
    assert_eq!(started.load(), 3);
}

#[procession::test]
fn a_zygote_s_copies_are_workers_too() {
    let pool = Pool::builder()
        .workers(2)
        .method(StartMethod::Zygote)
        .create()
        .unwrap();
    let sum: u64 = pool.map(square, 0..100).sum::<Result<_, _>>().unwrap();
    assert_eq!(sum, 328_350);
}

#[procession::test]
fn joining_a_pool_waits_for_all_that_was_handed_in() {
    let pool = Pool::with_workers(2).unwrap();
    let done = SharedValue::new(0u32).unwrap();
    let slow = |done: SharedValue<u32>| {
        std::thread::sleep(Duration::from_millis(5));
        done.fetch_add(1)
    };
    let jobs: Vec<_> = (0..20)
        .map(|_| pool.call(slow, (done.clone(),)).unwrap())
        .collect();
    pool.join().unwrap();
    assert_eq!(done.load(), 20);
    let results: HashSet<u32> = jobs.into_iter().map(|job| job.join().unwrap()).collect();
    assert_eq!(results.len(), 20);
    assert!(pool.call(slow, (done,)).is_err());
}

#[procession::test]
fn joining_a_pool_can_give_up() {
    let pool = Pool::with_workers(1).unwrap();
    let go = Event::new().unwrap();
    let job = pool
        .call(|go: Event| go.wait().unwrap(), (go.clone(),))
        .unwrap();
    assert!(!pool.join_timeout(Duration::from_millis(20)).unwrap());
    go.set().unwrap();
    assert!(pool.join_timeout(LONG).unwrap());
    job.join().unwrap();
}

#[procession::test]
fn a_terminated_pool_fails_what_it_had() {
    let pool = Pool::with_workers(2).unwrap();
    let jobs: Vec<_> = (0..5)
        .map(|_| pool.call(sleep_for_ever, ()).unwrap())
        .collect();
    pool.terminate().unwrap();
    for job in jobs {
        assert!(matches!(job.join(), Err(JobError::Terminated)));
    }
    assert!(pool.join_timeout(LONG).unwrap());
}

#[procession::test]
fn a_dropped_pool_ends_its_workers_and_hangs_nobody() {
    let pool = Pool::with_workers(2).unwrap();
    let job = pool.call(sleep_for_ever, ()).unwrap();
    let pids: Vec<u32> = pool.stats().iter().map(|worker| worker.pid).collect();
    drop(pool);
    assert!(matches!(job.join(), Err(JobError::Terminated)));
    for pid in pids {
        until("the worker is gone", || {
            !std::path::Path::new(&format!("/proc/{pid}")).exists()
        });
    }
}

#[procession::test]
fn objects_travel_to_calls_and_back() {
    let pool = Pool::with_workers(1).unwrap();
    let make = |text: String| {
        let queue = Queue::unbounded().unwrap();
        queue.put(text).unwrap();
        (queue, Semaphore::new(3).unwrap())
    };
    let (queue, semaphore) = pool
        .call(make, ("inside".to_string(),))
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(
        (queue.get().unwrap().as_str(), semaphore.available()),
        ("inside", 3)
    );
}

#[procession::test]
fn large_arguments_and_results_arrive_whole() {
    let pool = Pool::with_workers(2).unwrap();
    let reverse = |mut bytes: Vec<u8>| {
        bytes.reverse();
        bytes
    };
    let blob: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    for result in pool.map(reverse, (0..6).map(|_| blob.clone())) {
        assert!(result.unwrap().iter().eq(blob.iter().rev()));
    }
}
