//! A pool: results in order, a panic and a death that cost one call each, a limit of time, and a source without end.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procession::{JobError, JobOptions, Pool, Result};
use std::time::Duration;

/// Not every number is a welcome one.
#[procession::task]
fn square(n: u64) -> u64 {
    match n {
        13 => panic!("{n} is bad luck"),
        // As a crash would: this process is gone.
        17 => std::process::abort(),
        n => n * n,
    }
}

#[procession::task]
fn is_prime(n: u64) -> bool {
    n > 1
        && (2..n)
            .take_while(|d| d * d <= n)
            .all(|d| !n.is_multiple_of(d))
}

#[procession::main]
fn main() -> Result<()> {
    let pool = Pool::with_workers(3)?;
    println!("{pool:?}");

    for (n, result) in pool.map(square, 10..20).enumerate() {
        let n = n as u64 + 10;
        match result {
            Ok(square) => {
                assert_eq!(square, n * n);
                println!("  {n}² = {square}");
            }
            Err(JobError::Panicked(panic)) => {
                assert_eq!(n, 13);
                println!("  {n}² : {panic}");
            }
            Err(JobError::WorkerDied(died)) => {
                assert_eq!((n, died.signal()), (17, Some(6)));
                println!("  {n}² : {died}");
            }
            Err(other) => return Err(other.into()),
        }
    }

    let nap = JobOptions::new().timeout(Duration::from_millis(100));
    let job = pool.call_with(nap, || std::thread::sleep(Duration::from_secs(3600)), ())?;
    let Err(error @ JobError::TimedOut(_)) = job.join() else {
        unreachable!("an hour is more than it may take");
    };
    println!("  {error}");

    // The numbers are pulled as they are needed, a hundred in a call.
    let numbers = (1_000_000..).step_by(1);
    let primes = pool.map(|n: u64| (n, is_prime(n)), numbers).chunk(100);
    let first: Vec<u64> = primes
        .filter_map(|answer| answer.map(|(n, prime)| prime.then_some(n)).transpose())
        .take(3)
        .collect::<Result<_, _>>()?;
    assert_eq!(first, [1_000_003, 1_000_033, 1_000_037]);
    println!("the first primes from a million on: {first:?}");

    let restarts: u64 = pool.stats().iter().map(|worker| worker.restarts).sum();
    println!("workers that had to be replaced: {restarts}");
    pool.join()
}
