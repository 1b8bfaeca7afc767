//! Locks, permits, conditions, events, barriers and shared data, with deaths.

use crate::support::until;
use procession::{
    Barrier, Condvar, Event, LockError, Mutex, Process, Queue, Repair, Semaphore, SharedSlice,
    SharedValue,
};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

fn stay() {
    loop {
        std::thread::park();
    }
}

#[procession::test]
fn one_at_a_time_is_in_the_lock() {
    fn count(counter: Mutex<[u64; 4]>) {
        for _ in 0..500 {
            let mut counter = counter.lock().unwrap();
            assert!(counter.iter().all(|n| *n == counter[0]));
            counter.iter_mut().for_each(|n| *n += 1);
        }
    }
    let counter = Mutex::new([0; 4]).unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| Process::spawn(count, (counter.clone(),)).unwrap())
        .collect();
    children.into_iter().for_each(|child| child.join().unwrap());
    assert_eq!(*counter.lock().unwrap(), [1500; 4]);
}

#[procession::test]
fn a_dead_holder_s_lock_is_handed_on_with_what_was_stored() {
    fn take_and_stay(mutex: Mutex<u32>, taken: Event) {
        let mut guard = mutex.lock().unwrap();
        *guard = 1;
        guard.commit().unwrap();
        *guard = 2;
        taken.set().unwrap();
        stay();
    }
    let (mutex, taken) = (Mutex::new(0).unwrap(), Event::new().unwrap());
    let child: Process<()> = Process::spawn(take_and_stay, (mutex.clone(), taken.clone())).unwrap();
    taken.wait().unwrap();
    assert!(mutex.try_lock().unwrap().is_none());
    assert!(
        mutex
            .lock_timeout(Duration::from_millis(5))
            .unwrap()
            .is_none()
    );
    child.kill().unwrap();
    match mutex.lock() {
        Err(LockError::OwnerDied(guard)) => assert_eq!(*guard, 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(*mutex.lock().unwrap(), 1);
}

#[procession::test]
fn a_panic_stores_nothing_and_poisons_nobody() {
    let mutex = Mutex::new(1).unwrap();
    let panicked = std::panic::catch_unwind(|| {
        let mut guard = mutex.lock().unwrap();
        *guard = 2;
        panic!("in the middle");
    });
    assert!(panicked.is_err());
    assert_eq!(*mutex.lock().unwrap(), 1);
}

#[derive(Clone, Copy, procession::Pod, procession::Zeroable)]
#[bytemuck(crate = "procession::bytemuck")]
#[repr(C)]
struct Work {
    begun: u32,
    done: u32,
}

impl Repair for Work {
    fn repair(&mut self) {
        self.begun = self.done;
    }
}

#[procession::test]
fn what_the_dead_one_promised_is_mended_by_repair() {
    fn begin_and_die(work: Mutex<Work>) {
        let mut work = work.lock().unwrap();
        work.begun = 5;
        work.commit().unwrap();
        std::process::abort();
    }
    let work = Mutex::new(Work { begun: 3, done: 3 }).unwrap();
    assert!(
        Process::spawn(begin_and_die, (work.clone(),))
            .unwrap()
            .join()
            .is_err()
    );
    let guard = work.lock().or_else(LockError::repair).unwrap();
    assert_eq!((guard.begun, guard.done), (3, 3));
}

#[procession::test]
fn a_condition_is_waited_for_and_seen() {
    fn count_to(limit: u32, number: Mutex<u32>, changed: Condvar) {
        for _ in 0..limit {
            *number.lock().unwrap() += 1;
            changed.notify_all().unwrap();
        }
    }
    let (number, changed) = (Mutex::new(0).unwrap(), Condvar::new().unwrap());
    let child = Process::spawn(count_to, (50, number.clone(), changed.clone())).unwrap();
    let guard = changed
        .wait_while(number.lock().unwrap(), |number| *number < 50)
        .unwrap();
    assert_eq!(*guard, 50);
    drop(guard);
    child.join().unwrap();
}

#[procession::test]
fn a_killed_waiter_takes_no_notification_with_it() {
    fn wait(mutex: Mutex<u32>, condvar: Condvar, woken: Queue<u32>) {
        let guard = mutex.lock().unwrap();
        drop(condvar.wait(guard).unwrap());
        woken.put(std::process::id()).unwrap();
    }
    let (mutex, condvar) = (Mutex::new(0).unwrap(), Condvar::new().unwrap());
    let woken = Queue::unbounded().unwrap();
    let spawn = || Process::spawn(wait, (mutex.clone(), condvar.clone(), woken.clone())).unwrap();
    let waits = |count| {
        until("they wait", || {
            format!("{condvar:?}").contains(&format!("waiting: {count}"))
        })
    };
    let victim = spawn();
    waits(1);
    let survivor = spawn();
    waits(2);
    victim.kill().unwrap();
    assert!(victim.join().is_err());
    assert!(condvar.notify_one().unwrap());
    assert_eq!(woken.get_timeout(LONG).unwrap(), Some(survivor.pid()));
    survivor.join().unwrap();
}

#[procession::test]
fn a_robust_semaphore_gives_back_what_the_dead_held() {
    fn take_and_stay(semaphore: Semaphore, taken: Event) {
        semaphore.acquire().unwrap().forget();
        taken.set().unwrap();
        stay();
    }
    for robust in [false, true] {
        let builder = Semaphore::builder(1);
        let builder = if robust { builder.robust() } else { builder };
        let (semaphore, taken) = (builder.create().unwrap(), Event::new().unwrap());
        let child: Process<()> =
            Process::spawn(take_and_stay, (semaphore.clone(), taken.clone())).unwrap();
        taken.wait().unwrap();
        child.kill().unwrap();
        assert!(child.join().is_err());
        let patience = if robust {
            LONG
        } else {
            Duration::from_millis(50)
        };
        assert_eq!(
            semaphore.acquire_timeout(patience).unwrap().is_some(),
            robust
        );
    }
}

#[procession::test]
fn a_barrier_breaks_when_one_who_waits_is_killed() {
    fn wait(barrier: Barrier) -> bool {
        barrier.wait().is_err_and(|error| error.is_broken())
    }
    let barrier = Barrier::new(3).unwrap();
    let victim = Process::spawn(wait, (barrier.clone(),)).unwrap();
    let other = Process::spawn(wait, (barrier.clone(),)).unwrap();
    until("both wait", || barrier.waiting() == 2);
    victim.kill().unwrap();
    assert!(other.join().unwrap());
    assert!(barrier.is_broken());
    barrier.reset().unwrap();
    assert!(!barrier.is_broken());
}

#[procession::test]
fn an_event_lets_all_go_on() {
    let event = Event::new().unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            Process::spawn(
                |event: Event| event.wait_timeout(LONG).unwrap(),
                (event.clone(),),
            )
            .unwrap()
        })
        .collect();
    event.set().unwrap();
    assert!(children.into_iter().all(|child| child.join().unwrap()));
}

#[procession::test]
fn shared_numbers_lose_no_addition() {
    fn add(total: SharedValue<i64>, each: SharedSlice<u16>, real: SharedValue<f64>) {
        for n in 0..1000 {
            total.fetch_add(-1);
            each.fetch_add(n % 7, 1);
            real.fetch_update(|value| value + 0.5);
        }
    }
    let total = SharedValue::new(0).unwrap();
    let each = SharedSlice::zeroed(7).unwrap();
    let real = SharedValue::new(0.0).unwrap();
    let arguments = || (total.clone(), each.clone(), real.clone());
    let children: Vec<_> = (0..2)
        .map(|_| Process::spawn(add, arguments()).unwrap())
        .collect();
    children.into_iter().for_each(|child| child.join().unwrap());
    assert_eq!((total.load(), real.load()), (-2000, 1000.0));
    assert_eq!(each.to_vec().into_iter().sum::<u16>(), 2000);
}

#[procession::test]
fn objects_of_all_kinds_travel_in_one_value() {
    type All = (
        Mutex<u8>,
        Condvar,
        Semaphore,
        Event,
        Barrier,
        SharedValue<u8>,
        SharedSlice<u8>,
    );
    fn touch(all: Queue<Vec<All>>) {
        for (mutex, condvar, semaphore, event, barrier, value, slice) in all.get().unwrap() {
            *mutex.lock().unwrap() += 1;
            condvar.notify_all().unwrap();
            semaphore.release(1).unwrap();
            event.set().unwrap();
            assert!(barrier.wait().unwrap().is_leader());
            value.store(1);
            slice.store(1, 1);
        }
    }
    let all: Vec<All> = (0..3)
        .map(|_| {
            (
                Mutex::new(0).unwrap(),
                Condvar::new().unwrap(),
                Semaphore::new(0).unwrap(),
                Event::new().unwrap(),
                Barrier::new(1).unwrap(),
                SharedValue::new(0).unwrap(),
                SharedSlice::zeroed(2).unwrap(),
            )
        })
        .collect();
    let queue = Queue::unbounded().unwrap();
    queue.put(all.clone()).unwrap();
    Process::spawn(touch, (queue,)).unwrap().join().unwrap();
    for (mutex, _, semaphore, event, _, value, slice) in all {
        assert_eq!(
            (
                *mutex.lock().unwrap(),
                semaphore.available(),
                event.is_set()
            ),
            (1, 1, true)
        );
        assert_eq!((value.load(), slice.to_vec()), (1, vec![0, 1]));
    }
}

#[procession::test]
#[should_panic(expected = "index 2 is beyond the end of a shared slice of 2")]
fn a_shared_slice_has_an_end() {
    let _ = SharedSlice::from_slice(&[1, 2]).unwrap().load(2);
}
