//! Locks, permits, conditions, events and barriers among processes that die.

use crate::support_sync::{
    Child, Ended, Random, assert_sound, family, fork, run_again, stay, until, watchdog,
};
use procession_core::shared::{Cell, Guarded};
use procession_core::sync::{
    Acquired, Barrier, Condition, Event, Mutex, RecursiveMutex, Semaphore,
};
use procession_core::{Deadline, Error, Family, Handle};
use std::time::Duration;

fn killed(child: Child) {
    child.kill();
    assert_eq!(child.join(), Ended::Killed(libc::SIGKILL));
}

/// Whether an object's `Debug` says that somebody waits for it.
fn has_waiters(object: &impl std::fmt::Debug) -> bool {
    format!("{object:?}").contains("waiters: true")
}

/// Whether a process sleeps in the kernel.
fn is_asleep(child: &Child) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('S'))
}

#[test]
fn run_again_everything_holds_without_futex_waitv() {
    run_again(&["sync::"], "run_again", "PROCESSION_NO_WAITV", "1");
}

/// Of what the belt repairs, only a wake-up that died with who was woken may need it.
#[test]
fn run_again_no_wake_up_waits_for_the_belt() {
    let prompt = [
        "one_process_at_a_time",
        "a_waiter_wakes_when",
        "recursive",
        "as_many",
        "are_permits",
        "a_robust_semaphore_gives",
        "between_unlock_and_sleep",
        "passes_over",
        "an_event_lets",
        "a_pulse",
        "before_all_are_there",
        "meet_in_turns",
        "breaks_the_barrier",
    ];
    run_again(&prompt, "run_again", "PROCESSION_BELT", "3600");
}

// Locks.

#[test]
fn one_process_at_a_time_holds_a_mutex() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let count = Cell::create(family, 8).unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            fork(|| {
                for _ in 0..5000 {
                    assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::Clean);
                    let seen = count.load_u64(0).unwrap();
                    count.store_u64(0, seen + 1).unwrap();
                    mutex.release().unwrap();
                }
            })
        })
        .collect();
    children.into_iter().for_each(Child::join_well);
    assert_eq!(count.load_u64(0).unwrap(), 20_000);
    assert!(!mutex.is_locked());
    assert_sound(family);
}

#[test]
fn a_mutex_tells_its_holder_and_anyone_may_release_it() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let held = Event::create(family).unwrap();
    let child = fork(|| {
        let _ = mutex.acquire(watchdog()).unwrap();
        held.set().unwrap();
        stay();
    });
    held.wait(watchdog()).unwrap();
    assert_eq!(mutex.holder(), Some(child.pid()));
    assert!(!mutex.is_mine());
    let text = format!("{mutex:?}");
    assert!(text.contains(&format!("(pid {})", child.pid())), "{text}");
    assert_eq!(mutex.try_acquire().unwrap(), None);
    mutex.release().unwrap();
    assert!(matches!(mutex.release(), Err(Error::NotHeld { .. })));
    assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::Clean);
    killed(child);
    assert!(mutex.is_mine());
    mutex.release().unwrap();
    assert_sound(family);
}

#[test]
fn a_waiter_wakes_when_the_holder_is_killed_and_is_told_once() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let held = Event::create(family).unwrap();
    let holder = fork(|| {
        let _ = mutex.acquire(watchdog()).unwrap();
        held.set().unwrap();
        stay();
    });
    held.wait(watchdog()).unwrap();
    let waiter = fork(|| {
        assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::OwnerDied);
        mutex.release().unwrap();
    });
    until("the waiter sleeps", || {
        has_waiters(&mutex) && is_asleep(&waiter)
    });
    killed(holder);
    waiter.join_well();
    assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::Clean);
    mutex.release().unwrap();
    assert_sound(family);
}

#[test]
fn a_killed_waiter_takes_no_wake_up_with_it() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let _ = mutex.acquire(watchdog()).unwrap();
    for _ in 0..20 {
        let doomed = fork(|| {
            let _ = mutex.acquire(watchdog()).unwrap();
            stay();
        });
        let others: Vec<_> = (0..2)
            .map(|_| {
                fork(|| {
                    let _ = mutex.acquire(watchdog()).unwrap();
                    mutex.release().unwrap();
                })
            })
            .collect();
        until("all sleep", || {
            is_asleep(&doomed) && others.iter().all(is_asleep)
        });
        mutex.release().unwrap();
        killed(doomed);
        others.into_iter().for_each(Child::join_well);
        let _ = mutex.acquire(watchdog()).unwrap();
    }
    mutex.release().unwrap();
    assert_sound(family);
}

#[test]
fn a_thread_that_ended_in_peace_holds_its_mutex_until_its_process_dies() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let held = Event::create(family).unwrap();
    let holder = fork(|| {
        let thread = std::thread::spawn({
            let mutex = mutex.clone();
            move || mutex.acquire(watchdog()).unwrap()
        });
        let _ = thread.join().unwrap();
        held.set().unwrap();
        stay();
    });
    held.wait(watchdog()).unwrap();
    let soon = Deadline::after(Duration::from_millis(50));
    assert!(mutex.acquire(soon).unwrap_err().is_timeout());
    killed(holder);
    assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::OwnerDied);
    mutex.release().unwrap();
    assert_sound(family);
}

#[test]
fn three_hundred_killed_lockers_hang_nobody() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let counts = Cell::create(family, 16).unwrap();
    let mut random = Random::new();
    let start = || {
        fork(|| {
            loop {
                if mutex.acquire(watchdog()).unwrap() == Acquired::OwnerDied {
                    let whole = counts.load_u64(0).unwrap();
                    counts.store_u64(8, whole).unwrap();
                }
                let (first, second) = (counts.load_u64(0).unwrap(), counts.load_u64(8).unwrap());
                assert_eq!(
                    first, second,
                    "somebody died between the steps and nobody was told"
                );
                counts.store_u64(0, first + 1).unwrap();
                counts.store_u64(8, second + 1).unwrap();
                mutex.release().unwrap();
            }
        })
    };
    let mut lockers: Vec<_> = (0..4).map(|_| start()).collect();
    for _ in 0..300 {
        let progress = counts.load_u64(0).unwrap() + random.below(2000);
        until("the lockers go on", || {
            counts.load_u64(0).unwrap() >= progress
        });
        let victim = random.below(4) as usize;
        killed(std::mem::replace(&mut lockers[victim], start()));
    }
    lockers.into_iter().for_each(killed);
    let _ = mutex.acquire(watchdog()).unwrap();
    mutex.release().unwrap();
    assert_sound(family);
}

#[test]
fn a_recursive_mutex_is_released_by_its_holder_as_often_as_taken() {
    let family = family();
    let mutex = RecursiveMutex::create(family).unwrap();
    for _ in 0..3 {
        assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::Clean);
    }
    assert_eq!(mutex.depth(), 3);
    let others: Vec<_> = (0..3)
        .map(|_| {
            fork(|| {
                assert!(matches!(mutex.release(), Err(Error::NotHeld { .. })));
                assert_eq!(mutex.try_acquire().unwrap(), None);
                let _ = mutex.acquire(watchdog()).unwrap();
                assert_eq!(mutex.depth(), 1);
                mutex.release().unwrap();
            })
        })
        .collect();
    until("all wait", || others.iter().all(is_asleep));
    for _ in 0..3 {
        assert!(mutex.is_mine());
        mutex.release().unwrap();
    }
    others.into_iter().for_each(Child::join_well);
    assert!(matches!(mutex.release(), Err(Error::NotHeld { .. })));
    assert_sound(family);
}

#[test]
fn a_dead_holders_depth_dies_with_it() {
    let family = family();
    let mutex = RecursiveMutex::create(family).unwrap();
    let held = Event::create(family).unwrap();
    let holder = fork(|| {
        for _ in 0..5 {
            let _ = mutex.acquire(watchdog()).unwrap();
        }
        held.set().unwrap();
        stay();
    });
    held.wait(watchdog()).unwrap();
    killed(holder);
    assert_eq!(mutex.acquire(watchdog()).unwrap(), Acquired::OwnerDied);
    assert_eq!(mutex.depth(), 1);
    mutex.release().unwrap();
    assert!(!mutex.is_locked());
    assert_sound(family);
}

// Semaphores.

#[test]
fn no_more_processes_are_inside_than_there_are_permits() {
    for robust in [false, true] {
        let family = family();
        let permits = Semaphore::create(family, 2, Some(2), robust).unwrap();
        let inside = Cell::create(family, 8).unwrap();
        let children: Vec<_> = (0..5)
            .map(|_| {
                fork(|| {
                    for _ in 0..2000 {
                        permits.acquire(watchdog()).unwrap();
                        assert!(inside.fetch_add_u64(0, 1).unwrap() < 2);
                        inside.fetch_add_u64(0, u64::MAX).unwrap();
                        permits.release(1).unwrap();
                    }
                })
            })
            .collect();
        children.into_iter().for_each(Child::join_well);
        assert_eq!(permits.value(), 2);
        assert!(matches!(permits.release(1), Err(Error::NotHeld { .. })));
        assert_eq!(permits.value(), 2);
        assert_sound(family);
    }
}

#[test]
fn a_release_of_many_wakes_as_many() {
    for robust in [false, true] {
        let family = family();
        let permits = Semaphore::create(family, 0, None, robust).unwrap();
        let children: Vec<_> = (0..4)
            .map(|_| fork(|| permits.acquire(watchdog()).unwrap()))
            .collect();
        until("all sleep", || {
            has_waiters(&permits) && children.iter().all(is_asleep)
        });
        permits.release(5).unwrap();
        children.into_iter().for_each(Child::join_well);
        if !robust {
            assert_eq!(permits.value(), 1);
        }
        assert_sound(family);
    }
}

#[test]
fn a_plain_semaphore_loses_the_permits_of_the_dead() {
    let family = family();
    let permits = Semaphore::create(family, 1, None, false).unwrap();
    killed_holding(&permits, family);
    assert!(!permits.try_acquire().unwrap());
    assert_sound(family);
}

#[test]
fn a_robust_semaphore_gives_a_waiter_the_permits_of_the_dead() {
    let family = family();
    let permits = Semaphore::create(family, 2, Some(2), true).unwrap();
    let held = Event::create(family).unwrap();
    let holder = fork(|| {
        permits.acquire(watchdog()).unwrap();
        permits.acquire(watchdog()).unwrap();
        held.set().unwrap();
        stay();
    });
    held.wait(watchdog()).unwrap();
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            fork(|| {
                permits.acquire(watchdog()).unwrap();
                permits.release(1).unwrap();
            })
        })
        .collect();
    until("both sleep", || {
        has_waiters(&permits) && waiters.iter().all(is_asleep)
    });
    killed(holder);
    waiters.into_iter().for_each(Child::join_well);
    assert_sound(family);
    assert_eq!(permits.value(), 2);
}

#[test]
fn a_check_gives_back_the_permits_of_who_ended_without_releasing() {
    let family = family();
    let permits = Semaphore::create(family, 3, None, true).unwrap();
    fork(|| permits.acquire(watchdog()).unwrap()).join_well();
    assert_eq!(permits.value(), 2);
    assert_sound(family);
    assert_eq!(permits.value(), 3);
}

fn killed_holding(permits: &Semaphore, family: &'static Family) {
    let held = Event::create(family).unwrap();
    let holder = fork(|| {
        permits.acquire(watchdog()).unwrap();
        held.set().unwrap();
        stay();
    });
    held.wait(watchdog()).unwrap();
    killed(holder);
    assert_sound(family);
}

#[test]
fn killed_users_of_a_robust_semaphore_leave_every_permit() {
    let family = family();
    let permits = Semaphore::create(family, 3, Some(3), true).unwrap();
    let rounds = Cell::create(family, 8).unwrap();
    let mut random = Random::new();
    let start = || {
        fork(|| {
            loop {
                permits.acquire(watchdog()).unwrap();
                rounds.fetch_add_u64(0, 1).unwrap();
                permits.release(1).unwrap();
            }
        })
    };
    let mut users: Vec<_> = (0..4).map(|_| start()).collect();
    for _ in 0..100 {
        let progress = rounds.load_u64(0).unwrap() + random.below(1000);
        until("the users go on", || {
            rounds.load_u64(0).unwrap() >= progress
        });
        let victim = random.below(4) as usize;
        killed(std::mem::replace(&mut users[victim], start()));
    }
    users.into_iter().for_each(killed);
    assert_sound(family);
    assert_eq!(permits.value(), 3);
}

#[test]
fn killed_waiters_take_no_permits_with_them() {
    for robust in [false, true] {
        let family = family();
        let permits = Semaphore::create(family, 0, None, robust).unwrap();
        for _ in 0..10 {
            let doomed: Vec<_> = (0..2)
                .map(|_| {
                    fork(|| {
                        permits.acquire(watchdog()).unwrap();
                        permits.release(1).unwrap();
                        stay();
                    })
                })
                .collect();
            let other = fork(|| permits.acquire(watchdog()).unwrap());
            until("all sleep", || {
                doomed.iter().all(is_asleep) && is_asleep(&other)
            });
            doomed.iter().for_each(Child::kill);
            permits.release(1).unwrap();
            drop(doomed);
            if permits.value() == 0 && !robust {
                // A plain permit may have died in the hands of one of them, before it gave it on.
                permits.release(1).unwrap();
            }
            other.join_well();
            assert_sound(family);
            while permits.try_acquire().unwrap() {}
        }
    }
}

// Conditions.

#[test]
fn a_notification_reaches_as_many_as_it_says() {
    let family = family();
    let (mutex, condition) = (
        Mutex::create(family).unwrap(),
        Condition::create(family).unwrap(),
    );
    let woken = Cell::create(family, 8).unwrap();
    let children: Vec<_> = (0..5)
        .map(|_| {
            fork(|| {
                let _ = mutex.acquire(watchdog()).unwrap();
                condition.wait(|| mutex.release(), watchdog()).unwrap();
                let _ = mutex.acquire(watchdog()).unwrap();
                woken.fetch_add_u64(0, 1).unwrap();
                mutex.release().unwrap();
            })
        })
        .collect();
    until("all wait", || condition.waiting() == 5);
    assert_eq!(condition.notify(2).unwrap(), 2);
    until("two woke", || woken.load_u64(0).unwrap() == 2);
    assert_eq!(condition.waiting(), 3);
    assert_eq!(condition.notify_all().unwrap(), 3);
    children.into_iter().for_each(Child::join_well);
    assert_eq!(condition.notify_all().unwrap(), 0);
    assert_sound(family);
}

#[test]
fn no_notification_is_lost_between_unlock_and_sleep() {
    let family = family();
    let (mutex, condition) = (
        Mutex::create(family).unwrap(),
        Condition::create(family).unwrap(),
    );
    let turn = Cell::create(family, 8).unwrap();
    let children: Vec<_> = (0..4u64)
        .map(|number| {
            let (mutex, condition, turn) = (&mutex, &condition, &turn);
            fork(move || {
                for round in 0..500 {
                    let _ = mutex.acquire(watchdog()).unwrap();
                    while turn.load_u64(0).unwrap() != round * 4 + number {
                        condition.wait(|| mutex.release(), watchdog()).unwrap();
                        let _ = mutex.acquire(watchdog()).unwrap();
                    }
                    turn.fetch_add_u64(0, 1).unwrap();
                    condition.notify_all().unwrap();
                    mutex.release().unwrap();
                }
            })
        })
        .collect();
    children.into_iter().for_each(Child::join_well);
    assert_eq!(turn.load_u64(0).unwrap(), 2000);
    assert_sound(family);
}

#[test]
fn a_notification_passes_over_waiters_that_died() {
    let family = family();
    let condition = Condition::create(family).unwrap();
    let doomed: Vec<_> = (0..3)
        .map(|_| fork(|| condition.wait(|| Ok(()), watchdog()).unwrap()))
        .collect();
    until("the first wait", || condition.waiting() == 3);
    let other = fork(|| condition.wait(|| Ok(()), watchdog()).unwrap());
    until("the other waits", || condition.waiting() == 4);
    doomed.into_iter().for_each(killed);
    assert_eq!(condition.notify(1).unwrap(), 1);
    other.join_well();
    assert_eq!(condition.waiting(), 0);
    assert_sound(family);
}

#[test]
fn a_waiter_killed_with_a_notification_in_hand_leaves_it_to_another() {
    let family = family();
    let condition = Condition::create(family).unwrap();
    let notified = Event::create(family).unwrap();
    let doomed = fork(|| {
        let mut waiter = condition.register().unwrap();
        waiter.wait(watchdog()).unwrap();
        notified.set().unwrap();
        stay();
    });
    until("the first waits", || condition.waiting() == 1);
    let other = fork(|| condition.wait(|| Ok(()), watchdog()).unwrap());
    until("the other waits", || condition.waiting() == 2);
    assert_eq!(condition.notify(1).unwrap(), 1);
    notified.wait(watchdog()).unwrap();
    killed(doomed);
    other.join_well();
    assert_sound(family);
}

#[test]
fn a_consumer_killed_at_any_moment_stops_no_other() {
    let family = family();
    let (mutex, condition) = (
        Mutex::create(family).unwrap(),
        Condition::create(family).unwrap(),
    );
    // Items to be had, items had.
    let items = Cell::create(family, 16).unwrap();
    let mut random = Random::new();
    let start = || {
        fork(|| {
            loop {
                let _ = mutex.acquire(watchdog()).unwrap();
                while items.load_u64(0).unwrap() == 0 {
                    condition.wait(|| mutex.release(), watchdog()).unwrap();
                    let _ = mutex.acquire(watchdog()).unwrap();
                }
                items.fetch_add_u64(0, u64::MAX).unwrap();
                items.fetch_add_u64(8, 1).unwrap();
                mutex.release().unwrap();
            }
        })
    };
    let mut consumers: Vec<_> = (0..4).map(|_| start()).collect();
    for _ in 0..60 {
        for _ in 0..random.below(5) {
            let _ = mutex.acquire(watchdog()).unwrap();
            items.fetch_add_u64(0, 1).unwrap();
            condition.notify(1).unwrap();
            mutex.release().unwrap();
        }
        let victim = random.below(4) as usize;
        killed(std::mem::replace(&mut consumers[victim], start()));
        until("all items are had", || items.load_u64(0).unwrap() == 0);
    }
    consumers.into_iter().for_each(killed);
    assert_sound(family);
}

// Events.

#[test]
fn an_event_lets_all_go_until_it_is_cleared() {
    let family = family();
    let event = Event::create(family).unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| fork(|| event.wait(watchdog()).unwrap()))
        .collect();
    until("all sleep", || {
        has_waiters(&event) && children.iter().all(is_asleep)
    });
    event.set().unwrap();
    children.into_iter().for_each(Child::join_well);
    event.wait(Deadline::PASSED).unwrap();
    event.clear().unwrap();
    assert!(event.wait(Deadline::PASSED).unwrap_err().is_timeout());
    assert_sound(family);
}

#[test]
fn a_pulse_reaches_all_who_waited() {
    let family = family();
    let event = Event::create(family).unwrap();
    for _ in 0..20 {
        let children: Vec<_> = (0..4)
            .map(|_| fork(|| event.wait(watchdog()).unwrap()))
            .collect();
        until("all sleep", || {
            has_waiters(&event) && children.iter().all(is_asleep)
        });
        event.set().unwrap();
        event.clear().unwrap();
        children.into_iter().for_each(Child::join_well);
    }
    assert_sound(family);
}

#[test]
fn a_pulse_between_two_waits_is_seen_from_the_moment_before() {
    let family = family();
    let event = Event::create(family).unwrap();
    let moment = event.moment();
    event.set().unwrap();
    event.clear().unwrap();
    event.wait_since(moment, Deadline::PASSED).unwrap();
    assert!(event.wait(Deadline::PASSED).unwrap_err().is_timeout());
}

#[test]
fn killed_waiters_of_an_event_stop_no_other() {
    let family = family();
    let event = Event::create(family).unwrap();
    for _ in 0..20 {
        let doomed = fork(|| event.wait(watchdog()).unwrap());
        let other = fork(|| event.wait(watchdog()).unwrap());
        until("both sleep", || is_asleep(&doomed) && is_asleep(&other));
        doomed.kill();
        event.set().unwrap();
        other.join_well();
        event.clear().unwrap();
    }
    assert_sound(family);
}

// Barriers.

#[test]
fn nobody_passes_a_barrier_before_all_are_there() {
    let family = family();
    let barrier = Barrier::create(family, 4).unwrap();
    let cell = Cell::create(family, 16).unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            fork(|| {
                for round in 1..=300 {
                    cell.fetch_add_u64(0, 1).unwrap();
                    let index = barrier.wait(watchdog()).unwrap();
                    assert!(cell.load_u64(0).unwrap() >= 4 * round);
                    cell.fetch_add_u64(8, index.into()).unwrap();
                }
            })
        })
        .collect();
    children.into_iter().for_each(Child::join_well);
    assert_eq!(
        cell.load_u64(8).unwrap(),
        300 * (1 + 2 + 3),
        "each index once"
    );
    assert_sound(family);
}

#[test]
fn more_processes_than_parties_meet_in_turns() {
    let family = family();
    let barrier = Barrier::create(family, 2).unwrap();
    let children: Vec<_> = (0..6)
        .map(|_| {
            fork(|| {
                for _ in 0..200 {
                    barrier.wait(watchdog()).unwrap();
                }
                // Who is left alone in the end goes without the other.
                let _ = barrier.abort();
            })
        })
        .collect();
    let ends: Vec<_> = children.into_iter().map(Child::join).collect();
    assert!(ends.contains(&Ended::Exited(0)), "{ends:?}");
    assert!(
        !ends.iter().any(|end| matches!(end, Ended::Killed(_))),
        "{ends:?}"
    );
    assert_sound(family);
}

#[test]
fn a_killed_participant_breaks_the_barrier_for_the_others() {
    // The first watches all, the others the first: both must be able to die.
    for doomed_comes_first in [true, false] {
        let family = family();
        let barrier = Barrier::create(family, 5).unwrap();
        let doomed = || fork(|| drop(barrier.wait(watchdog())));
        let mut first = None;
        if doomed_comes_first {
            first = Some(doomed());
            until("the first is there", || barrier.waiting() == 1);
        }
        let before = barrier.waiting();
        let others: Vec<_> = (0..3)
            .map(|_| {
                fork(|| {
                    let answer = barrier.wait(watchdog());
                    assert!(matches!(answer, Err(Error::Broken)), "{answer:?}");
                })
            })
            .collect();
        until("the others are there", || barrier.waiting() == before + 3);
        let victim = first.unwrap_or_else(doomed);
        until("all but one are there", || barrier.waiting() == 4);
        until("all sleep", || {
            is_asleep(&victim) && others.iter().all(is_asleep)
        });
        killed(victim);
        others.into_iter().for_each(Child::join_well);
        assert!(barrier.is_broken());
        barrier.reset().unwrap();
        assert!(!barrier.is_broken());
        assert_sound(family);
    }
}

#[test]
fn a_timeout_breaks_the_barrier_and_so_does_abort() {
    let family = family();
    let barrier = Barrier::create(family, 3).unwrap();
    let breakers: [&dyn Fn(); 3] = [
        &|| {
            let soon = Deadline::after(Duration::from_millis(20));
            assert!(barrier.wait(soon).unwrap_err().is_timeout());
        },
        &|| barrier.abort().unwrap(),
        &|| barrier.reset().unwrap(),
    ];
    for break_up in breakers {
        let child = fork(|| {
            let answer = barrier.wait(watchdog());
            assert!(matches!(answer, Err(Error::Broken)), "{answer:?}");
        });
        until("one waits", || barrier.waiting() == 1);
        break_up();
        child.join_well();
        barrier.reset().unwrap();
    }
    assert_sound(family);
}

#[test]
fn a_death_after_the_meeting_concerns_nobody() {
    let family = family();
    let barrier = Barrier::create(family, 2).unwrap();
    for _ in 0..100 {
        // It dies as soon as it is through, while we may still be on our way out.
        let child = fork(|| {
            barrier.wait(watchdog()).unwrap();
            // SAFETY: a plain call.
            #[expect(unsafe_code, reason = "kills itself")]
            unsafe {
                libc::raise(libc::SIGKILL)
            };
        });
        barrier.wait(watchdog()).unwrap();
        assert_eq!(child.join(), Ended::Killed(libc::SIGKILL));
    }
    assert!(!barrier.is_broken());
    assert_sound(family);
}

// Signals.

#[test]
#[expect(unsafe_code, reason = "installs a signal handler")]
fn a_signal_interrupts_a_wait_which_can_be_continued() {
    extern "C" fn nothing(_: libc::c_int) {}
    let family = family();
    let (mutex, event) = (
        Mutex::create(family).unwrap(),
        Event::create(family).unwrap(),
    );
    let condition = Condition::create(family).unwrap();
    let seen = Cell::create(family, 8).unwrap();
    let child = fork(|| {
        // SAFETY: the handler does nothing.
        unsafe {
            libc::signal(
                libc::SIGUSR1,
                nothing as extern "C" fn(libc::c_int) as usize,
            )
        };
        let _ = mutex.acquire(watchdog()).unwrap();
        let mut waiter = condition.register().unwrap();
        seen.fetch_add_u64(0, 1).unwrap();
        let error = event.wait(watchdog()).unwrap_err();
        assert!(error.is_interrupted(), "{error}");
        seen.fetch_add_u64(0, 1).unwrap();
        let error = waiter.wait(watchdog()).unwrap_err();
        assert!(error.is_interrupted(), "{error}");
        seen.fetch_add_u64(0, 1).unwrap();
        while let Err(error) = waiter.wait(watchdog()) {
            assert!(error.is_interrupted(), "{error}");
        }
    });
    until("it waits", || seen.load_u64(0).unwrap() > 0);
    until("it was interrupted in both waits", || {
        if is_asleep(&child) {
            child.signal(libc::SIGUSR1);
        }
        seen.load_u64(0).unwrap() == 3
    });
    until("it is notified", || condition.notify(1).unwrap() == 1);
    child.join_well();
    assert_sound(family);
}

// Bytes.

#[test]
fn guarded_bytes_are_never_torn_by_a_death() {
    const LENGTH: usize = 100_000;
    let family = family();
    let guarded = Guarded::create(family, LENGTH as u64).unwrap();
    let mut random = Random::new();
    let start = || {
        fork(|| {
            let mut bytes = [0; LENGTH];
            loop {
                let mut guard = guarded.lock(watchdog()).unwrap();
                guard.read(&mut bytes).unwrap();
                let first = bytes[0];
                assert!(bytes.iter().all(|byte| *byte == first), "torn");
                guard.commit(&[first.wrapping_add(1); LENGTH]).unwrap();
            }
        })
    };
    let mut writers: Vec<_> = (0..4).map(|_| start()).collect();
    let mut deaths_seen = 0;
    let mut last = 0;
    for _ in 0..100 {
        for _ in 0..random.below(4) {
            until("the writers go on", || {
                let guard = guarded.lock(watchdog()).unwrap();
                deaths_seen += u32::from(guard.owner_died());
                let mut byte = [0];
                guard.read(&mut byte).unwrap();
                let moved = byte[0] != last;
                last = byte[0];
                moved
            });
        }
        let victim = random.below(4) as usize;
        killed(std::mem::replace(&mut writers[victim], start()));
    }
    writers.into_iter().for_each(killed);
    let mut bytes = [0; LENGTH];
    let guard = guarded.lock(watchdog()).unwrap();
    guard.read(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "torn");
    drop(guard);
    assert_sound(family);
}

#[test]
fn processes_that_ended_leave_their_places_to_others() {
    let family = family();
    let count = Cell::create(family, 8).unwrap();
    for _ in 0..200 {
        fork(|| {
            count.fetch_add_u64(0, 1).unwrap();
            let mutex = Mutex::create(family).unwrap();
            let _ = mutex.acquire(watchdog()).unwrap();
        })
        .join_well();
    }
    assert_eq!(count.load_u64(0).unwrap(), 200);
    assert_sound(family);
}

#[test]
fn a_handle_attaches_in_another_process_and_dies_with_the_last_hold() {
    let family = family();
    let mutex = Mutex::create(family).unwrap();
    let bits = mutex.handle().to_bits();
    fork(|| {
        let handle = Handle::from_bits(bits);
        let same = Mutex::attach(family, handle).unwrap();
        let _ = same.acquire(watchdog()).unwrap();
        assert!(Event::attach(family, handle).is_err(), "another kind");
        same.release().unwrap();
    })
    .join_well();
    drop(mutex);
    // The child ended without letting go: a check lets go for it.
    assert_sound(family);
    assert!(Mutex::attach(family, Handle::from_bits(bits)).is_err());
}
