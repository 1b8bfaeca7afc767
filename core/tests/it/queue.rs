//! Queues: messages between processes that may die.

use crate::support::{Random, WATCHDOG, Words, assert_sound, fork, until};
use procession_core::{Deadline, Error, Family, OnDeath, Options, Outgoing, Queue, Tag};
use std::time::Duration;

fn family() -> &'static Family {
    procession_core::family()
        .name("test-queue")
        .create()
        .expect("an arena")
}

fn watchdog() -> Deadline {
    Deadline::after(WATCHDOG)
}

fn plain(family: &'static Family) -> Queue {
    Queue::create(family, &Options::default()).unwrap()
}

#[test]
fn messages_of_any_size_arrive_in_order_and_whole() {
    let family = family();
    let queue = plain(family);
    let sizes = [0usize, 1, 47, 48, 49, 100, 4096, 9000, 70_000, 3 << 20];
    let mut child = fork(|| {
        for (index, size) in sizes.into_iter().enumerate() {
            let bytes = vec![index as u8; size];
            let (a, b) = bytes.split_at(size / 3);
            queue.put(Tag(index as u8), &[a, b], watchdog()).unwrap();
        }
        0
    });
    for (index, size) in sizes.into_iter().enumerate() {
        let message = queue.get(watchdog()).unwrap();
        assert_eq!(
            (message.tag(), message.bytes().len()),
            (Tag(index as u8), size)
        );
        assert!(message.bytes().iter().all(|byte| *byte == index as u8));
    }
    child.succeed();
    drop(queue);
    assert_sound(family);
    assert_eq!(family.fsck().unwrap().objects, 0);
}

#[test]
fn many_writers_and_readers_lose_and_double_nothing() {
    const EACH: usize = 4000;
    let family = family();
    let queue = plain(family);
    let seen = Words::new(4 * EACH);
    let writers: Vec<_> = (0..4usize)
        .map(|writer| {
            let queue = queue.clone();
            fork(move || {
                for number in 0..EACH {
                    let name = ((writer * EACH + number) as u32).to_le_bytes();
                    let filler = vec![7u8; number % 200];
                    queue.put(Tag::RAW, &[&name, &filler], watchdog()).unwrap();
                }
                0
            })
        })
        .collect();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let queue = queue.clone();
            fork(move || {
                let mut last = [None; 4];
                loop {
                    let message = match queue.get(watchdog()) {
                        Ok(message) => message,
                        Err(Error::Closed { .. }) => return 0,
                        Err(_) => return 1,
                    };
                    let name =
                        u32::from_le_bytes(message.bytes()[..4].try_into().unwrap()) as usize;
                    let (writer, number) = (name / EACH, name % EACH);
                    assert!(
                        last[writer] < Some(number),
                        "each writer's messages come in order"
                    );
                    last[writer] = Some(number);
                    seen.add(name, 1);
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|mut writer| writer.succeed());
    queue.close().unwrap();
    readers.into_iter().for_each(|mut reader| reader.succeed());
    assert!((0..4 * EACH).all(|name| seen.get(name) == 1));
    assert_sound(family);
}

#[test]
fn a_bounded_queue_makes_writers_wait_and_counts_exactly() {
    let family = family();
    let queue = Queue::create(
        family,
        &Options {
            max_items: Some(3),
            ..Options::default()
        },
    )
    .unwrap();
    for _ in 0..3 {
        queue.put(Tag::RAW, &[b"x"], Deadline::PASSED).unwrap();
    }
    assert!(queue.is_full() && queue.len() == 3);
    assert!(
        queue
            .put(Tag::RAW, &[b"y"], Deadline::PASSED)
            .unwrap_err()
            .is_timeout()
    );
    assert!(
        queue
            .put(
                Tag::RAW,
                &[&[1; 500]],
                Deadline::after(Duration::from_millis(5))
            )
            .unwrap_err()
            .is_timeout()
    );
    let mut child = fork(|| {
        for number in 0..1000u32 {
            queue
                .put(Tag::RAW, &[&number.to_le_bytes()], watchdog())
                .unwrap();
        }
        0
    });
    for _ in 0..3 {
        assert_eq!(queue.get(watchdog()).unwrap().bytes(), b"x");
    }
    for number in 0..1000u32 {
        assert!(queue.len() <= 3);
        assert_eq!(queue.get(watchdog()).unwrap().bytes(), number.to_le_bytes());
    }
    child.succeed();
    assert!(queue.is_empty());
    assert_sound(family);
}

#[test]
fn batches_are_put_and_got_whole() {
    let family = family();
    let queue = plain(family);
    let long = vec![3u8; 300];
    let parts: Vec<[&[u8]; 1]> = (0..500)
        .map(|i| [if i % 3 == 0 { &long[..] } else { &b"short"[..] }])
        .collect();
    let batch: Vec<_> = parts
        .iter()
        .map(|parts| Outgoing::bytes(Tag::RAW, parts))
        .collect();
    assert_eq!(queue.put_many(&batch, watchdog()).unwrap(), 500);
    let mut got = Vec::new();
    while got.len() < 500 {
        got.extend(queue.get_many(64, Deadline::PASSED).unwrap());
    }
    for (message, parts) in got.iter().zip(&parts) {
        assert_eq!(message.bytes(), parts[0]);
    }
    drop(got);
    let bounded = Queue::create(
        family,
        &Options {
            max_items: Some(10),
            ..Options::default()
        },
    )
    .unwrap();
    assert_eq!(
        bounded.put_many(&batch, Deadline::PASSED).unwrap(),
        10,
        "as many as fit"
    );
    drop(bounded);
    assert_sound(family);
}

#[test]
fn a_closed_queue_refuses_puts_and_gives_what_is_inside() {
    let family = family();
    let queue = plain(family);
    queue.put(Tag::RAW, &[b"last"], Deadline::PASSED).unwrap();
    let mut waiting = fork(|| {
        assert_eq!(queue.get(watchdog()).unwrap().bytes(), b"last");
        match queue.get(watchdog()) {
            Err(Error::Closed { .. }) => 0,
            _ => 1,
        }
    });
    until("the child took it", || queue.is_empty());
    queue.close().unwrap();
    assert!(matches!(
        queue.put(Tag::RAW, &[b"no"], Deadline::PASSED),
        Err(Error::Closed { .. })
    ));
    waiting.succeed();
}

#[test]
fn join_waits_for_done_and_a_death_does_not_hang_it() {
    let family = family();
    let options = Options {
        joinable: true,
        ..Options::default()
    };
    let queue = Queue::create(family, &options).unwrap();
    for number in 0..6u8 {
        queue.put(Tag::RAW, &[&[number]], Deadline::PASSED).unwrap();
    }
    assert_eq!(queue.unfinished(), 6);
    assert!(queue.join(Deadline::PASSED).unwrap_err().is_timeout());
    let mut good = fork(|| {
        for _ in 0..3 {
            queue.get(watchdog()).unwrap();
            queue.task_done().unwrap();
        }
        0
    });
    good.succeed();
    let mut dies = fork(|| {
        let _held: Vec<_> = (0..3).map(|_| queue.get(watchdog()).unwrap()).collect();
        loop {
            std::thread::park();
        }
    });
    until("the other took three", || queue.is_empty());
    assert_eq!(queue.unfinished(), 3);
    dies.kill();
    queue.join(watchdog()).unwrap();
    assert!(
        matches!(queue.task_done(), Err(Error::NotHeld { .. })),
        "more done than put"
    );
    assert_sound(family);
}

#[test]
fn a_message_in_a_dead_hand_is_delivered_again() {
    let family = family();
    let queue = Queue::create(
        family,
        &Options {
            on_death: OnDeath::Redeliver,
            ..Options::default()
        },
    )
    .unwrap();
    queue
        .put(Tag::JSON, &[b"precious"], Deadline::PASSED)
        .unwrap();
    let mut dies = fork(|| {
        let _held = queue.get(watchdog()).unwrap();
        loop {
            std::thread::park();
        }
    });
    until("the child took it", || queue.is_empty());
    let victim = dies.pid();
    let mut heir = fork(|| {
        let message = queue.get(watchdog()).unwrap();
        assert_eq!(
            (message.bytes(), message.victim()),
            (&b"precious"[..], Some(victim))
        );
        queue.done(&message).unwrap();
        0
    });
    dies.kill();
    heir.succeed();
    assert_eq!(queue.unfinished(), 0);
    let message = {
        queue.put(Tag::RAW, &[b"again"], Deadline::PASSED).unwrap();
        queue.get(Deadline::PASSED).unwrap()
    };
    queue.give_back(message).unwrap();
    queue.close().unwrap();
    let message = queue
        .get(Deadline::PASSED)
        .expect("a closed queue gives what came back");
    queue.done(&message).unwrap();
    assert!(matches!(queue.get(watchdog()), Err(Error::Closed { .. })));
    drop(message);
    drop(queue);
    assert_sound(family);
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
}

#[test]
fn dead_letters_say_who_died() {
    let family = family();
    let letters = plain(family);
    let queue = Queue::create(
        family,
        &Options {
            on_death: OnDeath::DeadLetters(letters.handle()),
            ..Options::default()
        },
    )
    .unwrap();
    queue.put(Tag::RAW, &[b"job 1"], Deadline::PASSED).unwrap();
    let mut dies = fork(|| {
        let _held = queue.get(watchdog()).unwrap();
        loop {
            std::thread::park();
        }
    });
    until("the child took it", || queue.is_empty());
    let victim = dies.pid();
    dies.kill();
    assert_sound(family);
    let letter = letters
        .get(Deadline::PASSED)
        .expect("fsck reclaimed the dead process");
    assert_eq!(
        (letter.bytes(), letter.victim()),
        (&b"job 1"[..], Some(victim))
    );
    drop(letter);
    drop((queue, letters));
    assert_sound(family);
    assert_eq!(family.fsck().unwrap().objects, 0);
}

#[test]
fn queues_travel_in_queues_and_live_as_long_as_the_message() {
    let family = family();
    let queue = plain(family);
    let answers = plain(family);
    let handle = answers.handle();
    queue
        .put_message(
            Outgoing {
                tag: Tag::RAW,
                parts: &[b"answer there"],
                handles: &[handle, queue.handle()],
            },
            watchdog(),
        )
        .unwrap();
    drop(answers);
    assert_sound(family);
    let message = queue.get(Deadline::PASSED).unwrap();
    let again = Queue::attach(family, message.handles()[0]).expect("the message kept it alive");
    drop(message);
    again.put(Tag::RAW, &[b"yes"], Deadline::PASSED).unwrap();
    drop(again);
    assert!(
        Queue::attach(family, handle).is_err(),
        "nobody keeps it any more"
    );
    assert_sound(family);
}

#[test]
fn a_queue_with_messages_goes_with_its_last_process() {
    let family = family();
    let mut child = fork(|| {
        let queue = plain(family);
        for size in [0usize, 10, 100, 10_000, 1 << 20] {
            queue
                .put(Tag::RAW, &[&vec![1; size]], Deadline::PASSED)
                .unwrap();
        }
        let inner = plain(family);
        inner.put(Tag::RAW, &[&[5; 100]], Deadline::PASSED).unwrap();
        queue
            .put_message(
                Outgoing {
                    tag: Tag::RAW,
                    parts: &[],
                    handles: &[inner.handle()],
                },
                Deadline::PASSED,
            )
            .unwrap();
        std::mem::forget((queue, inner));
        0
    });
    child.succeed();
    let findings = family.fsck().unwrap();
    assert_eq!(findings.faults, Vec::<String>::new());
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
fn a_full_arena_is_the_callers_error_and_draining_makes_room() {
    let family = procession_core::family()
        .memory_max(32 << 20)
        .create()
        .unwrap();
    let queue = plain(family);
    let error = loop {
        if let Err(error) = queue.put(Tag::RAW, &[&[9; 100_000]], Deadline::PASSED) {
            break error;
        }
    };
    assert!(
        matches!(error, Error::Exhausted { .. }) && error.hint().is_some(),
        "{error}"
    );
    let inside = queue.len();
    assert!(inside > 250, "{inside} messages of 100 kB fill 32 MiB");
    while queue.get(Deadline::PASSED).is_ok() {}
    queue
        .put(Tag::RAW, &[&vec![9; 20 << 20]], Deadline::PASSED)
        .unwrap();
    assert_sound(family);
}

#[test]
fn a_drained_queue_keeps_no_memory() {
    let family = procession_core::family()
        .keep_warm(4 << 20)
        .create()
        .unwrap();
    let queue = plain(family);
    let resident = || {
        use std::os::fd::AsRawFd;
        let arena = format!("/proc/self/fd/{}", family.arena().as_raw_fd());
        std::os::linux::fs::MetadataExt::st_blocks(&std::fs::metadata(arena).unwrap()) * 512
    };
    for size in [1000usize, 1 << 20] {
        for _ in 0..(256 << 20) / size {
            queue
                .put(Tag::RAW, &[&vec![1; size]], Deadline::PASSED)
                .unwrap();
        }
        assert!(resident() > 256 << 20);
        let mut other = fork(|| {
            while queue.get(Deadline::PASSED).is_ok() {}
            0
        });
        other.succeed();
        assert!(
            resident() < 40 << 20,
            "{} MiB kept after messages of {size}",
            resident() >> 20
        );
    }
    assert_sound(family);
}

#[test]
fn a_doorbell_is_readable_while_messages_are_inside() {
    let family = family();
    let queue = plain(family);
    let readable = |queue: &Queue, deadline| {
        !procession_core::connection::wait(&[queue.doorbell().unwrap()], deadline)
            .unwrap()
            .is_empty()
    };
    assert!(!readable(&queue, Deadline::PASSED));
    let mut child = fork(|| {
        for number in 0..2000u32 {
            queue
                .put(Tag::RAW, &[&number.to_le_bytes()], watchdog())
                .unwrap();
        }
        0
    });
    let mut next = 0u32;
    while next < 2000 {
        assert!(readable(&queue, watchdog()), "message {next} was announced");
        while let Ok(message) = queue.get(Deadline::PASSED) {
            assert_eq!(message.bytes(), next.to_le_bytes());
            next += 1;
        }
    }
    child.succeed();
    assert!(!readable(&queue, Deadline::PASSED), "empty and quiet");
    queue.close().unwrap();
    assert!(
        readable(&queue, Deadline::PASSED),
        "whoever polls learns of the end"
    );
    drop(queue);
    assert_sound(family);
    assert_eq!(
        family.fsck().unwrap().objects,
        0,
        "the ticket went with the queue"
    );
}

#[test]
fn a_doorbell_rings_for_producers_that_die() {
    let family = family();
    let queue = plain(family);
    queue.doorbell().unwrap();
    let mut random = Random::new("a_doorbell_rings_for_producers_that_die");
    let mut came = 0;
    for _ in 0..100 {
        let mut child = fork(|| {
            loop {
                queue.put(Tag::RAW, &[b"ding"], watchdog()).unwrap();
            }
        });
        until("something came", || !queue.is_empty());
        for _ in 0..random.below(3000) {
            std::hint::spin_loop();
        }
        child.kill();
        family.fsck().unwrap();
        while !queue.is_empty() {
            let ready = procession_core::connection::wait(&[queue.doorbell().unwrap()], watchdog())
                .unwrap();
            assert_eq!(ready, [0]);
            came += queue.get_many(1000, Deadline::PASSED).unwrap().len();
        }
    }
    assert!(came >= 100);
    assert_sound(family);
}

/// Producers and consumers of one queue are killed at random, a thousand times.
fn storm(name: &str, options: &Options, kills: u32) {
    const PRODUCERS: usize = 3;
    const CONSUMERS: usize = 3;
    const EACH: usize = 2000;
    let lives = kills as usize + PRODUCERS + CONSUMERS + 1000;
    let family = family();
    let queue = Queue::create(family, options).unwrap();
    let leased = options.on_death == OnDeath::Redeliver;
    // By life of a producer: puts begun, puts returned. By message: how often it came.
    let (begun, returned, came) = (
        Words::new(lives),
        Words::new(lives),
        Words::new(lives * EACH),
    );

    let produce = |life: usize| {
        let queue = queue.clone();
        fork(move || {
            let mut random = Random::seeded(life as u64);
            for number in 0..EACH {
                let size = if random.below(4) == 0 {
                    random.below(20_000)
                } else {
                    random.below(60)
                };
                let name = ((life * EACH + number) as u32).to_le_bytes();
                begun.set(life, number as u32 + 1);
                queue
                    .put(
                        Tag::RAW,
                        &[&name, &vec![life as u8; size as usize]],
                        watchdog(),
                    )
                    .unwrap();
                returned.set(life, number as u32 + 1);
            }
            0
        })
    };
    let consume = || {
        let queue = queue.clone();
        fork(move || {
            while let Ok(message) = queue.get(watchdog()) {
                let (name, filler) = message.bytes().split_at(4);
                let name = u32::from_le_bytes(name.try_into().unwrap()) as usize;
                assert!(
                    filler.iter().all(|byte| *byte == (name / EACH) as u8),
                    "a message is whole"
                );
                came.add(name, 1);
                if leased {
                    queue.done(&message).unwrap();
                }
            }
            0
        })
    };

    let mut random = Random::new(name);
    let mut next_life = 0;
    let mut start_producer = || {
        next_life += 1;
        produce(next_life - 1)
    };
    let mut producers: Vec<_> = (0..PRODUCERS).map(|_| start_producer()).collect();
    let mut consumers: Vec<_> = (0..CONSUMERS).map(|_| consume()).collect();
    let mut consumers_killed = 0;
    for _ in 0..kills {
        for _ in 0..random.below(2000) {
            std::hint::spin_loop();
        }
        if random.below(2) == 0 {
            let index = random.below(PRODUCERS as u64) as usize;
            producers[index].kill();
            producers[index] = start_producer();
        } else {
            let index = random.below(CONSUMERS as u64) as usize;
            consumers[index].kill();
            consumers_killed += 1;
            consumers[index] = consume();
        }
    }
    producers.iter_mut().for_each(|producer| producer.kill());
    queue.close().unwrap();
    // What the dead held goes back before the survivors drain the queue.
    family.fsck().unwrap();
    consumers.iter_mut().for_each(|consumer| consumer.succeed());

    let (mut put, mut missing, mut doubled) = (0u64, 0, 0);
    for life in 0..next_life {
        for number in 0..EACH as u32 {
            let times = came.get(life * EACH + number as usize);
            if number < returned.get(life) {
                put += 1;
                missing += u32::from(times == 0);
            }
            assert!(
                times == 0 || number < begun.get(life),
                "a message that nobody put"
            );
            doubled += times.saturating_sub(1);
        }
    }
    println!("{name}: {kills} kills, {put} messages put, {missing} missing, {doubled} doubled");
    assert!(put > u64::from(kills), "the storm was a storm");
    if leased {
        assert_eq!(missing, 0, "a message on loan is never lost");
        assert!(
            doubled <= consumers_killed,
            "only what a dead consumer had done and not said comes twice"
        );
    } else {
        assert_eq!(doubled, 0);
        assert!(
            missing <= consumers_killed,
            "at most the message in a killed process's hands"
        );
    }
    assert_eq!(queue.len(), 0);
    drop((producers, consumers));
    assert_sound(family);
    drop(queue);
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

fn kills() -> u32 {
    if std::env::var("PROCESSION_STORM").as_deref() == Ok("long") {
        20_000
    } else {
        1000
    }
}

#[test]
fn storm_of_kills_on_a_queue() {
    storm("storm_of_kills_on_a_queue", &Options::default(), kills());
}

#[test]
fn storm_of_kills_on_a_bounded_queue() {
    storm(
        "storm_of_kills_on_a_bounded_queue",
        &Options {
            max_items: Some(5),
            ..Options::default()
        },
        kills() / 2,
    );
}

#[test]
fn storm_of_kills_on_a_redelivering_queue() {
    let options = Options {
        on_death: OnDeath::Redeliver,
        ..Options::default()
    };
    storm(
        "storm_of_kills_on_a_redelivering_queue",
        &options,
        kills() / 2,
    );
}
