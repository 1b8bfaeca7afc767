//! Queues of values, and objects inside messages.

use procession::{Error, JoinError, JoinableQueue, Process, Queue};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle { radius: f64 },
    Named(String, Box<Shape>),
}

#[procession::test]
fn values_of_any_serde_type_arrive() {
    fn echo(
        values: Queue<(Shape, BTreeMap<u8, Vec<u8>>)>,
        back: Queue<(Shape, BTreeMap<u8, Vec<u8>>)>,
    ) {
        for value in &values {
            back.put(value.unwrap()).unwrap();
        }
    }
    let (there, back) = (Queue::unbounded().unwrap(), Queue::unbounded().unwrap());
    let child = Process::spawn(echo, (there.clone(), back.clone())).unwrap();
    let map = BTreeMap::from([(1, vec![1; 100_000]), (2, vec![])]);
    let shapes = [
        Shape::Point,
        Shape::Circle { radius: 0.25 },
        Shape::Named("big".repeat(1000), Box::new(Shape::Point)),
    ];
    for shape in shapes {
        there.put((shape.clone(), map.clone())).unwrap();
        assert_eq!(back.get().unwrap(), (shape, map.clone()));
    }
    there.close().unwrap();
    child.join().unwrap();
}

#[procession::test]
fn a_queue_travels_through_a_queue() {
    fn answer(requests: Queue<(u32, Queue<u32>)>) {
        for request in &requests {
            let (number, reply) = request.unwrap();
            reply.put(number + 1).unwrap();
        }
    }
    let requests = Queue::unbounded().unwrap();
    let child = Process::spawn(answer, (requests.clone(),)).unwrap();
    for number in 0..50 {
        let reply = Queue::unbounded().unwrap();
        requests.put((number, reply.clone())).unwrap();
        assert_eq!(reply.get().unwrap(), number + 1);
    }
    requests.close().unwrap();
    child.join().unwrap();
}

#[procession::test]
fn a_message_keeps_the_queue_in_it_alive() {
    let outer = Queue::unbounded().unwrap();
    {
        let inner = Queue::unbounded().unwrap();
        inner.put("still here".to_string()).unwrap();
        outer.put(Some(inner)).unwrap();
    }
    let inner = outer.get().unwrap().unwrap();
    assert_eq!(inner.get().unwrap(), "still here");
}

#[procession::test]
fn a_handle_outside_of_procession_is_a_clear_error() {
    let queue = Queue::<u8>::unbounded().unwrap();
    let text = serde_json::to_string(&queue).unwrap_err().to_string();
    assert!(
        text.contains("a queue can be sent only through procession"),
        "{text}"
    );
    let text = serde_json::from_str::<Queue<u8>>("7")
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("a queue can be sent only through procession"),
        "{text}"
    );
}

#[procession::test]
fn a_stale_handle_is_told_with_its_cause() {
    let numbers = Queue::<u64>::unbounded().unwrap();
    numbers.put(0x1234_5678).unwrap();
    // The same queue, read as if it held queues.
    let carrier = Queue::unbounded().unwrap();
    carrier.put(numbers).unwrap();
    fn misread(carrier: Queue<Queue<Queue<u8>>>) -> String {
        match carrier.get().unwrap().get() {
            Err(error @ Error::Decode { .. }) => {
                std::error::Error::source(&error).unwrap().to_string()
            }
            other => format!("{other:?}"),
        }
    }
    // SAFETY is not at stake: bytes that are no handle are refused.
    let bytes = serde_roundtrip::<_, Queue<Queue<Queue<u8>>>>(carrier);
    let why = Process::spawn(misread, (bytes,)).unwrap().join().unwrap();
    assert!(why.contains("failed to attach queue by handle"), "{why}");
}

/// A value read as another type, by way of a queue of queues.
fn serde_roundtrip<A: Serialize, B: serde::de::DeserializeOwned>(value: A) -> B {
    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Never {}
    let _ = std::marker::PhantomData::<Never>;
    let queue = Queue::<Either<A, B>>::unbounded().unwrap();
    queue.put(Either::There(value)).ok().unwrap();
    match queue.get().unwrap() {
        Either::Here(value) => value,
        Either::There(_) => unreachable!(),
    }
}

enum Either<A, B> {
    There(A),
    Here(B),
}

impl<A: Serialize, B> Serialize for Either<A, B> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Either::There(value) => value.serialize(serializer),
            Either::Here(_) => unreachable!(),
        }
    }
}

impl<'de, A, B: Deserialize<'de>> Deserialize<'de> for Either<A, B> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        B::deserialize(deserializer).map(Either::Here)
    }
}

#[procession::test]
fn a_refused_value_comes_back() {
    let queue = Queue::bounded(1).unwrap();
    queue.put(String::from("first")).unwrap();
    let refused = queue
        .put_timeout("second".into(), Duration::from_millis(5))
        .unwrap_err();
    assert!(refused.is_full() && !refused.is_closed());
    assert_eq!(refused.into_inner(), "second");
    queue.close().unwrap();
    let refused = queue
        .put_all(["third".into(), "fourth".into()])
        .unwrap_err();
    assert!(refused.is_closed());
    assert_eq!(refused.value, ["third", "fourth"]);
}

#[procession::test]
fn a_full_queue_takes_the_rest_as_room_comes() {
    let queue = Queue::bounded(3).unwrap();
    let child = Process::spawn(
        |queue: Queue<u32>| queue.put_all(0..100).unwrap(),
        (queue.clone(),),
    )
    .unwrap();
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let batch = queue.get_many(10).unwrap();
        seen.extend(batch.into_iter().map(Result::unwrap));
    }
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    child.join().unwrap();
}

#[procession::test]
fn what_was_put_outlives_its_killed_writer() {
    let queue = Queue::unbounded().unwrap();
    let child: Process<()> = Process::spawn(
        |queue: Queue<u32>| {
            for number in 0.. {
                queue.put(number).unwrap();
            }
        },
        (queue.clone(),),
    )
    .unwrap();
    assert_eq!(queue.get().unwrap(), 0);
    child.kill().unwrap();
    assert!(matches!(child.join(), Err(JoinError::Died(_))));
    queue.close().unwrap();
    let rest: Vec<u32> = queue.iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(rest, (1..=rest.len() as u32).collect::<Vec<_>>());
}

#[procession::test]
fn debug_shows_what_is_inside() {
    let queue = Queue::bounded(5).unwrap();
    queue.put(1).unwrap();
    assert_eq!(
        format!("{queue:?}"),
        "Queue { len: 1, max_items: 5, closed: false, .. }"
    );
}

#[procession::test]
fn joining_waits_for_what_other_processes_do() {
    fn work(tasks: JoinableQueue<u32>, done: Queue<u32>) {
        for task in &tasks {
            done.put(task.unwrap().done().unwrap()).unwrap();
        }
    }
    let (tasks, done) = (
        JoinableQueue::unbounded().unwrap(),
        Queue::unbounded().unwrap(),
    );
    let workers: Vec<_> = (0..2)
        .map(|_| Process::spawn(work, (tasks.clone(), done.clone())).unwrap())
        .collect();
    tasks.put_all(0..100).unwrap();
    tasks.join().unwrap();
    assert_eq!((tasks.unfinished(), tasks.len()), (0, 0));
    tasks.close().unwrap();
    workers
        .into_iter()
        .for_each(|worker| worker.join().unwrap());
    done.close().unwrap();
    let done: HashSet<u32> = done.iter().collect::<Result<_, _>>().unwrap();
    assert_eq!(done.len(), 100);
}

fn take_and_be_killed(tasks: JoinableQueue<u32>, taken: Queue<u32>) {
    let task = tasks.get().unwrap();
    taken.put(*task).unwrap();
    loop {
        std::thread::park();
    }
}

#[procession::test]
fn a_dead_reader_s_message_counts_as_done() {
    let (tasks, taken) = (
        JoinableQueue::unbounded().unwrap(),
        Queue::unbounded().unwrap(),
    );
    tasks.put(7).unwrap();
    let child: Process<()> =
        Process::spawn(take_and_be_killed, (tasks.clone(), taken.clone())).unwrap();
    assert_eq!(taken.get().unwrap(), 7);
    assert_eq!(tasks.unfinished(), 1);
    child.kill().unwrap();
    assert!(child.join().is_err());
    assert!(tasks.join_timeout(LONG).unwrap());
    assert_eq!(tasks.try_get().unwrap().map(|task| *task), None);
}

#[procession::test]
fn a_dead_reader_s_message_goes_to_another_if_it_redelivers() {
    let tasks = JoinableQueue::builder().redeliver().create().unwrap();
    let taken = Queue::unbounded().unwrap();
    tasks.put(7).unwrap();
    let child: Process<()> =
        Process::spawn(take_and_be_killed, (tasks.clone(), taken.clone())).unwrap();
    assert_eq!(taken.get().unwrap(), 7);
    child.kill().unwrap();
    assert!(child.join().is_err());
    let again = tasks.get_timeout(LONG).unwrap().unwrap();
    assert_eq!(again.done().unwrap(), 7);
    assert!(tasks.join_timeout(LONG).unwrap());
}

#[procession::test]
fn a_dropped_delivery_is_like_a_dead_reader_s() {
    let plain = JoinableQueue::unbounded().unwrap();
    plain.put(1).unwrap();
    drop(plain.get().unwrap());
    assert_eq!((plain.len(), plain.unfinished()), (0, 0));
    let again = JoinableQueue::builder().redeliver().create().unwrap();
    again.put(1).unwrap();
    drop(again.get().unwrap());
    assert_eq!((again.len(), again.unfinished()), (1, 1));
}
