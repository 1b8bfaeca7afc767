//! Locks and semaphores: taking and giving back what nobody else wants, and what another process wants too.
#![allow(unsafe_code, reason = "a pthread mutex, by hand")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(missing_docs, reason = "a program")]

use procession_benches::{Contender, Sides, Unit, alternate, interleave, print_table};
use procession_core::sync::{Mutex, Semaphore};
use procession_core::{Deadline, Family};
use std::hint::black_box;

fn main() {
    let alone = [
        Contender::new("procession Mutex", |count| {
            let mutex = mutex();
            alternate(Sides::Threads, 1, count, || turn(&mutex))
        }),
        Contender::new("procession Semaphore", |count| {
            let semaphore = Semaphore::create(family(), 1, None, false).expect("a semaphore");
            alternate(Sides::Threads, 1, count, || {
                semaphore.acquire(Deadline::NEVER).expect("a permit");
                semaphore.release(1).expect("given back");
            })
        }),
        Contender::new("pthread mutex, robust and shared", |count| {
            let mutex = Pthread::new();
            alternate(Sides::Threads, 1, count, || mutex.turn())
        }),
        Contender::new("std Mutex, one process", |count| {
            let mutex = std::sync::Mutex::new(0_u64);
            alternate(Sides::Threads, 1, count, || {
                *black_box(&mutex).lock().expect("not poisoned") += 1
            })
        }),
    ];
    print_table(
        "Lock and unlock, uncontended",
        Unit::Time,
        &[("time", interleave(&alone, 1000, 4_000_000))],
    );
    let contended = [
        Contender::new("procession Mutex, processes", |count| {
            let mutex = mutex();
            alternate(Sides::Processes, 2, count, || turn(&mutex))
        }),
        Contender::new("pthread mutex, robust and shared, processes", |count| {
            let mutex = Pthread::new();
            alternate(Sides::Processes, 2, count, || mutex.turn())
        }),
        Contender::new("std Mutex, threads", |count| {
            let mutex = std::sync::Mutex::new(0_u64);
            alternate(Sides::Threads, 2, count, || {
                *black_box(&mutex).lock().expect("not poisoned") += 1
            })
        }),
    ];
    print_table(
        "Lock and unlock, two sides at once",
        Unit::Time,
        &[("time of each pair", interleave(&contended, 1000, 4_000_000))],
    );
}

fn family() -> &'static Family {
    procession_core::family().create().expect("an arena")
}

fn mutex() -> Mutex {
    Mutex::create(family()).expect("a mutex")
}

fn turn(mutex: &Mutex) {
    let _ = black_box(mutex.acquire(Deadline::NEVER).expect("the mutex"));
    mutex.release().expect("released");
}

/// A mutex in memory that processes share.
#[derive(Clone, Copy)]
struct Pthread(*mut libc::pthread_mutex_t);

// SAFETY: a process-shared mutex that is never unmapped.
unsafe impl Send for Pthread {}
// SAFETY: as above.
unsafe impl Sync for Pthread {}

impl Pthread {
    fn new() -> Pthread {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping, initialised as the manual says.
        unsafe {
            let place = libc::mmap(std::ptr::null_mut(), 4096, access, kind, -1, 0);
            assert_ne!(place, libc::MAP_FAILED, "a page to share");
            let mut how = std::mem::zeroed();
            libc::pthread_mutexattr_init(&raw mut how);
            libc::pthread_mutexattr_setpshared(&raw mut how, libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(&raw mut how, libc::PTHREAD_MUTEX_ROBUST);
            let mutex = place.cast();
            assert_eq!(libc::pthread_mutex_init(mutex, &raw const how), 0);
            Pthread(mutex)
        }
    }

    fn turn(self) {
        // SAFETY: initialised by `new`, never destroyed.
        unsafe {
            assert_eq!(libc::pthread_mutex_lock(self.0), 0);
            assert_eq!(libc::pthread_mutex_unlock(self.0), 0);
        }
    }
}
