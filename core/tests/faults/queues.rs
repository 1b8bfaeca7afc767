//! The queue's operations.

use crate::operations::{family, family_keeping};
use crate::page::Page;
use crate::process;
use crate::scene::{Operation, Scene, bytes_of, put, put_with_handles};
use procession_core::{Deadline, Family, Message, OnDeath, Options, Outgoing, Queue, Tag, testing};
use std::time::Duration;

fn plain(family: &'static Family) -> Queue {
    Queue::create(family, &Options::default()).expect("a queue")
}

fn with(family: &'static Family, options: Options) -> Queue {
    Queue::create(family, &options).expect("a queue")
}

fn bounded(family: &'static Family, max: u64) -> Queue {
    with(
        family,
        Options {
            max_items: Some(max),
            ..Options::default()
        },
    )
}

fn redelivering(family: &'static Family) -> Queue {
    with(
        family,
        Options {
            on_death: OnDeath::Redeliver,
            ..Options::default()
        },
    )
}

fn joinable(family: &'static Family) -> Queue {
    with(
        family,
        Options {
            joinable: true,
            ..Options::default()
        },
    )
}

fn fill(queue: &Queue, numbers: std::ops::Range<u32>, length: usize) {
    numbers.for_each(|number| put(queue, number, length));
}

fn get(queue: &Queue) -> Message {
    queue.get(Deadline::PASSED).expect("a message is there")
}

/// A victim with a seat that then does `act` with the queue.
fn acts(scene: Scene, queue: &Queue, act: impl Fn(&Queue) + Clone + 'static) -> Scene {
    let queue = queue.clone();
    scene.victim(move || {
        testing::enter(queue.family()).expect("a seat");
        let (queue, act) = (queue.clone(), act.clone());
        move || {
            act(&queue);
            std::mem::forget(queue);
        }
    })
}

fn one(queue: &Queue) -> Scene {
    Scene::new(queue.family()).queue(queue)
}

/// Two messages inside, the victim puts a third of that length.
fn put_of(length: usize) -> Scene {
    let queue = plain(family());
    fill(&queue, 1..3, 8);
    let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[1, 2, 3]]]);
    acts(scene, &queue, move |queue| put(queue, 3, length))
}

/// Two messages of that length inside, the victim gets the first.
fn get_of(length: usize) -> Scene {
    let queue = plain(family());
    fill(&queue, 1..3, length);
    let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]);
    acts(scene, &queue, |queue| std::mem::forget(get(queue)))
}

/// As many messages of that length as a batch of the victim's has, put or got across a segment's end.
fn batch(lengths: [usize; 3]) -> Vec<Vec<u8>> {
    (20..)
        .zip(lengths)
        .map(|(number, length)| bytes_of(number, length))
        .collect()
}

fn put_batch(queue: &Queue, lengths: [usize; 3]) {
    let bytes = batch(lengths);
    let parts: Vec<[&[u8]; 1]> = bytes.iter().map(|bytes| [&bytes[..]]).collect();
    let messages: Vec<_> = parts
        .iter()
        .map(|parts| Outgoing::bytes(Tag::RAW, parts))
        .collect();
    assert_eq!(
        queue.put_many(&messages, Deadline::PASSED).expect("room"),
        3
    );
}

/// A process that takes a message of the queue and dies with it.
fn dies_with_a_message(queue: &Queue) {
    let mut holder = process::fork(Page::new(), process::PATIENCE, || {
        std::mem::forget(get(queue));
        0
    });
    assert_eq!(
        holder.wait(),
        process::Stop::Exited(0),
        "the holder took it"
    );
}

/// The victim reclaims a process that died with message 1 of the queue in its hands.
fn reclaims(scene: Scene, queue: &Queue) -> Scene {
    dies_with_a_message(queue);
    acts(scene, queue, |queue| {
        testing::sweep(queue.family()).expect("a seat")
    })
}

/// A queue that the victim makes, gets ready, and then drops.
fn drops(prepare: impl Fn(&Queue) + Clone + 'static, options: Options) -> Scene {
    let family = family();
    Scene::new(family).victim(move || {
        let queue = with(family, options);
        prepare(&queue);
        move || drop(queue)
    })
}

pub fn operations() -> Vec<Operation> {
    let mut all: Vec<Operation> = Vec::new();
    let mut add = |name, scene| all.push(Operation { name, scene });

    add("queue: create", || {
        let family = family();
        Scene::new(family).victim(move || {
            testing::enter(family).expect("a seat");
            move || std::mem::forget(plain(family))
        })
    });
    add("queue: create with dead letters", || {
        let letters = plain(family());
        acts(one(&letters).outcomes(&[&[&[]]]), &letters, |letters| {
            let options = Options {
                on_death: OnDeath::DeadLetters(letters.handle()),
                ..Options::default()
            };
            std::mem::forget(with(letters.family(), options));
        })
    });
    add("queue: attach", || {
        let queue = plain(family());
        let (family, handle) = (queue.family(), queue.handle());
        one(&queue).outcomes(&[&[&[]]]).victim(move || {
            let family = testing::open(crate::arena::same(family)).expect("an arena");
            testing::enter(family).expect("a seat");
            move || std::mem::forget(Queue::attach(family, handle).expect("it lives"))
        })
    });
    add("queue: detach, others attached", || {
        let queue = plain(family());
        let (family, handle) = (queue.family(), queue.handle());
        one(&queue).outcomes(&[&[&[]]]).victim(move || {
            let family = testing::open(crate::arena::same(family)).expect("an arena");
            let queue = Queue::attach(family, handle).expect("it lives");
            move || drop(queue)
        })
    });

    add("queue: put inline", || put_of(8));
    add("queue: put block", || put_of(100));
    add("queue: put run of units", || put_of(20_000));
    add("queue: put first, linking a segment", || {
        let queue = plain(family());
        let scene = one(&queue).outcomes(&[&[&[]], &[&[1]]]);
        acts(scene, &queue, |queue| put(queue, 1, 8))
    });
    add("queue: put sixteenth, linking a segment", || {
        let queue = plain(family());
        fill(&queue, 1..16, 8);
        let before: Vec<u32> = (1..16).collect();
        let after: Vec<u32> = (1..17).collect();
        let scene = one(&queue).outcomes(&[&[&before], &[&after]]);
        acts(scene, &queue, |queue| put(queue, 16, 100))
    });
    add("queue: put with handles", || {
        let family = family();
        let (queue, other) = (plain(family), plain(family));
        let handle = other.handle();
        let scene = one(&queue).keep(other).outcomes(&[&[&[]], &[&[1]]]);
        acts(scene, &queue, move |queue| {
            put_with_handles(queue, 1, 8, &[handle, handle])
        })
    });
    add("queue: put with the only hold on a queue", || {
        let queue = plain(family());
        let scene = one(&queue).outcomes(&[&[&[]], &[&[1]]]);
        acts(scene, &queue, |queue| {
            let inner = plain(queue.family());
            put(&inner, 7, 100);
            put_with_handles(queue, 1, 8, &[inner.handle()]);
            drop(inner);
        })
    });
    add("queue: put redelivering", || {
        let queue = redelivering(family());
        let scene = one(&queue).outcomes(&[&[&[]], &[&[1]]]);
        acts(scene, &queue, |queue| put(queue, 1, 8))
    });
    add("queue: put bounded", || {
        let queue = bounded(family(), 3);
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[1, 2, 3]]]);
        acts(scene, &queue, |queue| put(queue, 3, 8))
    });
    add("queue: put bounded, full, in vain", || {
        let queue = bounded(family(), 2);
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]]]);
        acts(scene, &queue, |queue| {
            let deadline = Deadline::after(Duration::from_millis(200));
            assert!(queue.put(Tag::RAW, &[&bytes_of(3, 100)], deadline).is_err());
        })
    });
    add("queue: put many inline", || {
        let queue = plain(family());
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[1, 2, 20, 21, 22]]]);
        acts(scene, &queue, |queue| put_batch(queue, [8, 9, 10]))
    });
    add("queue: put many blocks", || {
        let queue = plain(family());
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[1, 2, 20, 21, 22]]]);
        acts(scene, &queue, |queue| put_batch(queue, [100, 8, 200]))
    });
    add("queue: put many across segments", || {
        let queue = plain(family());
        fill(&queue, 1..15, 8);
        let lists = [0, 1, 3].map(|put| (1..15).chain(20..20 + put).collect::<Vec<u32>>());
        let scene = one(&queue).outcomes(&[&[&lists[0]], &[&lists[1]], &[&lists[2]]]);
        acts(scene, &queue, |queue| put_batch(queue, [100, 8, 200]))
    });

    add("queue: get inline", || get_of(8));
    add("queue: get block", || get_of(100));
    add("queue: get run of units", || get_of(20_000));
    add("queue: get block and drop it", || {
        let queue = plain(family());
        fill(&queue, 1..3, 100);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]);
        acts(scene, &queue, |queue| drop(get(queue)))
    });
    add("queue: get run and drop it, pages back", || {
        let queue = plain(family_keeping(0));
        fill(&queue, 1..3, 20_000);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]);
        acts(scene, &queue, |queue| drop(get(queue)))
    });
    add("queue: get with handles and drop it", || {
        let family = family();
        let (queue, other) = (plain(family), plain(family));
        put_with_handles(&queue, 1, 8, &[other.handle(), other.handle()]);
        put(&other, 7, 100);
        put(&queue, 2, 8);
        drop(other);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]);
        acts(scene, &queue, |queue| drop(get(queue)))
    });
    add("queue: get unlinking a segment", || {
        let queue = plain(family());
        fill(&queue, 1..18, 8);
        (1..16).for_each(|_| drop(get(&queue)));
        let scene = one(&queue).outcomes(&[&[&[16, 17]], &[&[17]]]);
        acts(scene, &queue, |queue| std::mem::forget(get(queue)))
    });
    add("queue: get bounded, full", || {
        let queue = bounded(family(), 2);
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]);
        acts(scene, &queue, |queue| std::mem::forget(get(queue)))
    });
    add("queue: get empty, in vain", || {
        let queue = plain(family());
        let scene = one(&queue).outcomes(&[&[&[]]]);
        acts(scene, &queue, |queue| {
            let deadline = Deadline::after(Duration::from_millis(200));
            assert!(queue.get(deadline).is_err());
        })
    });
    add("queue: get many", || {
        let queue = plain(family());
        fill(&queue, 1..3, 100);
        fill(&queue, 3..5, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2, 3, 4]], &[&[4]]]);
        acts(scene, &queue, |queue| {
            std::mem::forget(queue.get_many(3, Deadline::PASSED).expect("messages"))
        })
    });
    add("queue: get redelivering", || {
        let queue = redelivering(family());
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]]]).in_any_order();
        acts(scene, &queue, |queue| std::mem::forget(get(queue)))
    });
    add("queue: get joinable", || {
        let queue = joinable(family());
        fill(&queue, 1..3, 100);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]);
        acts(scene, &queue, |queue| std::mem::forget(get(queue)))
    });

    add("queue: done, joinable", || {
        let queue = joinable(family());
        fill(&queue, 1..3, 8);
        with_message(
            one(&queue).outcomes(&[&[&[2]]]),
            &queue,
            |queue, message| {
                queue.task_done().expect("on loan");
                drop(message);
            },
        )
    });
    add("queue: done, redelivering", || {
        let queue = redelivering(family());
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[2]]]).in_any_order();
        with_message(scene, &queue, |queue, message| {
            queue.done(&message).expect("on loan");
            drop(message);
        })
    });
    add("queue: give back", || {
        let queue = redelivering(family());
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]]]).in_any_order();
        with_message(scene, &queue, |queue, message| {
            queue.give_back(message).expect("on loan");
        })
    });
    add("queue: give back, linking a segment", || {
        let queue = redelivering(family());
        fill(&queue, 1..16, 8);
        let all: Vec<u32> = (1..16).collect();
        let scene = one(&queue).outcomes(&[&[&all]]).in_any_order();
        with_message(scene, &queue, |queue, message| {
            queue.give_back(message).expect("on loan");
        })
    });
    add("queue: lost, redelivered", || {
        let queue = redelivering(family());
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]]]).in_any_order();
        reclaims(scene, &queue)
    });
    add("queue: lost, to the dead letters", || {
        let family = family();
        let letters = plain(family);
        let options = Options {
            on_death: OnDeath::DeadLetters(letters.handle()),
            ..Options::default()
        };
        let queue = with(family, options);
        fill(&queue, 1..3, 8);
        // The letters first: who takes one there meets nothing else that the victim holds.
        let scene = one(&letters)
            .queue(&queue)
            .outcomes(&[&[&[1], &[2]]])
            .in_any_order();
        reclaims(scene, &queue)
    });
    add("queue: lost, dropped and counted", || {
        let queue = joinable(family());
        fill(&queue, 1..3, 8);
        reclaims(one(&queue).outcomes(&[&[&[2]]]), &queue)
    });

    add("queue: put with a doorbell", || {
        let queue = plain(family());
        queue.doorbell().expect("a doorbell");
        fill(&queue, 1..3, 8);
        let scene = one(&queue).outcomes(&[&[&[1, 2]], &[&[1, 2, 3]]]);
        acts(scene, &queue, |queue| put(queue, 3, 8))
    });
    add("queue: get the last with a doorbell", || {
        let queue = plain(family());
        queue.doorbell().expect("a doorbell");
        fill(&queue, 1..2, 8);
        let scene = one(&queue).outcomes(&[&[&[1]], &[&[]]]);
        acts(scene, &queue, |queue| std::mem::forget(get(queue)))
    });
    add("queue: make a doorbell", || {
        let queue = plain(family());
        fill(&queue, 1..3, 8);
        acts(one(&queue).outcomes(&[&[&[1, 2]]]), &queue, |queue| {
            queue.doorbell().expect("a doorbell");
        })
    });
    add("queue: close", || {
        let queue = plain(family());
        fill(&queue, 1..3, 8);
        acts(one(&queue).outcomes(&[&[&[1, 2]]]), &queue, |queue| {
            queue.close().expect("a seat")
        })
    });
    add("queue: destroy empty", || drops(|_| {}, Options::default()));
    add("queue: destroy with messages", || {
        drops(
            |queue| {
                fill(queue, 1..3, 8);
                fill(queue, 3..5, 100);
            },
            Options::default(),
        )
    });
    add("queue: destroy with segments and a run", || {
        drops(
            |queue| {
                fill(queue, 1..18, 8);
                put(queue, 18, 20_000);
            },
            Options::default(),
        )
    });
    add("queue: destroy with a queue inside", || {
        drops(
            |queue| {
                let inner = plain(queue.family());
                put(&inner, 7, 100);
                put_with_handles(queue, 1, 8, &[inner.handle()]);
            },
            Options::default(),
        )
    });
    add("queue: destroy redelivering, one on loan", || {
        drops(
            |queue| {
                fill(queue, 1..4, 8);
                std::mem::forget(get(queue));
            },
            Options {
                on_death: OnDeath::Redeliver,
                ..Options::default()
            },
        )
    });
    all
}

/// A victim that holds the first message, and then does `act` with it.
fn with_message(
    scene: Scene,
    queue: &Queue,
    act: impl Fn(&Queue, Message) + Clone + 'static,
) -> Scene {
    let queue = queue.clone();
    scene.victim(move || {
        let (queue, message, act) = (queue.clone(), get(&queue), act.clone());
        move || {
            act(&queue, message);
            std::mem::forget(queue);
        }
    })
}
