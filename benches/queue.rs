//! Queues: procession between processes, beside what else moves messages between processes and between threads.
#![allow(unsafe_code, reason = "a socket pair, by hand")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(missing_docs, reason = "a program")]

use ipc_channel::ipc::{IpcBytesReceiver, IpcBytesSender};
use procession_benches::{
    Contender, Ends, Figure, Place, Receiver, Sender, Sides, Unit, interleave, look, ping,
    print_table, stream,
};
use procession_core::{Deadline, Family, Options, Outgoing, Queue, Tag};
use std::sync::{OnceLock, mpsc};

const SIZES: [(&str, usize); 4] = [
    ("16 B", 16),
    ("1 KiB", 1 << 10),
    ("64 KiB", 64 << 10),
    ("1 MiB", 1 << 20),
];

/// The most that one measurement sends: a reader that falls behind leaves all of it in an unbounded queue.
const BYTES_MAX: u64 = 256 << 20;

/// Messages in one call of `put_many` and `get_many`.
const BATCH: usize = 64;

fn main() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|only| only == name);
    if wanted("stream") {
        print_table(
            "One way, both sides running: messages a second",
            Unit::Rate,
            &by_size(streams),
        );
    }
    if wanted("many") {
        print_table(
            "Two writers, two readers: messages a second",
            Unit::Rate,
            &[("16 B", many(16))],
        );
    }
    if wanted("ping") {
        print_table(
            "There and back, two processors: time of a round trip",
            Unit::Time,
            &by_size(|size| pings(size, Place::Apart)),
        );
    }
    if wanted("together") {
        print_table(
            "There and back, one processor: time of a round trip",
            Unit::Time,
            &[("16 B", pings(16, Place::Together))],
        );
    }
}

/// A column for each size; `SIZE=16` in the environment wants one alone.
fn by_size(measure: impl Fn(usize) -> Vec<Figure>) -> Vec<(&'static str, Vec<Figure>)> {
    let only: Option<usize> = std::env::var("SIZE")
        .ok()
        .and_then(|text| text.parse().ok());
    let wanted = SIZES
        .iter()
        .filter(|(_, size)| only.is_none_or(|only| only == *size));
    wanted.map(|(head, size)| (*head, measure(*size))).collect()
}

/// How many messages a bounded queue takes.
fn bound(size: usize) -> u64 {
    match size {
        0..=4096 => 1024,
        4097..=131_072 => 64,
        _ => 8,
    }
}

fn streams(size: usize) -> Vec<Figure> {
    const APART: Place = Place::Apart;
    const PROCESSES: Sides = Sides::Processes;
    let most = (BYTES_MAX / size as u64).min(4_000_000);
    let limit = Some(bound(size));
    let mut contenders = vec![
        Contender::new("procession, processes", move |count| {
            stream(PROCESSES, APART, || procession(None, 1), size, count)
        }),
        Contender::new("procession bounded, processes", move |count| {
            stream(PROCESSES, APART, || procession(limit, 1), size, count)
        }),
        Contender::new("ipc-channel, processes", move |count| {
            stream(PROCESSES, APART, ipc, size, count)
        }),
        Contender::new("socketpair, processes", move |count| {
            stream(PROCESSES, APART, || socket(size, 1), size, count)
        }),
        Contender::new("crossbeam, threads", move |count| {
            crossbeam_stream(APART, None, 1, size, count)
        }),
        Contender::new("crossbeam bounded, threads", move |count| {
            crossbeam_stream(APART, limit, 1, size, count)
        }),
        Contender::new("std mpsc, threads", move |count| match size {
            16 => stream(Sides::Threads, APART, std_mpsc::<[u8; 16]>, size, count),
            _ => stream(Sides::Threads, APART, std_mpsc::<Vec<u8>>, size, count),
        }),
    ];
    if size <= 1024 {
        let batched = Contender::new("procession by 64, processes", move |count| {
            stream(PROCESSES, APART, batches, size, count)
        });
        contenders.insert(2, batched);
    }
    interleave(&contenders, 64, most)
}

fn many(size: usize) -> Vec<Figure> {
    const ANYWHERE: Place = Place::Anywhere;
    let limit = Some(bound(size));
    let contenders = [
        Contender::new("procession, processes", move |count| {
            stream(
                Sides::Processes,
                ANYWHERE,
                || procession(None, 2),
                size,
                count,
            )
        }),
        Contender::new("procession bounded, processes", move |count| {
            stream(
                Sides::Processes,
                ANYWHERE,
                || procession(limit, 2),
                size,
                count,
            )
        }),
        Contender::new("socketpair, processes", move |count| {
            stream(Sides::Processes, ANYWHERE, || socket(size, 2), size, count)
        }),
        Contender::new("crossbeam, threads", move |count| {
            crossbeam_stream(ANYWHERE, None, 2, size, count)
        }),
        Contender::new("crossbeam bounded, threads", move |count| {
            crossbeam_stream(ANYWHERE, limit, 2, size, count)
        }),
    ];
    interleave(&contenders, 64, 4_000_000)
}

fn pings(size: usize, place: Place) -> Vec<Figure> {
    const PROCESSES: Sides = Sides::Processes;
    const THREADS: Sides = Sides::Threads;
    let contenders = [
        Contender::new("procession, processes", move |count| {
            ping(PROCESSES, place, || procession(None, 1), size, count)
        }),
        Contender::new("ipc-channel, processes", move |count| {
            ping(PROCESSES, place, ipc, size, count)
        }),
        Contender::new("socketpair, processes", move |count| {
            ping(PROCESSES, place, || socket(size, 1), size, count)
        }),
        Contender::new("crossbeam, threads", move |count| match size {
            16 => ping(
                THREADS,
                place,
                || crossbeam::<[u8; 16]>(None, 1),
                size,
                count,
            ),
            _ => ping(
                THREADS,
                place,
                || crossbeam::<Vec<u8>>(None, 1),
                size,
                count,
            ),
        }),
        Contender::new("std mpsc, threads", move |count| match size {
            16 => ping(THREADS, place, std_mpsc::<[u8; 16]>, size, count),
            _ => ping(THREADS, place, std_mpsc::<Vec<u8>>, size, count),
        }),
    ];
    interleave(&contenders, 64, BYTES_MAX / size as u64)
}

/// One end of a queue, ours to give the benchmark's traits to.
#[derive(Clone)]
struct End<T>(T);

fn procession(max_items: Option<u64>, sides: usize) -> Ends<End<Queue>, End<Queue>> {
    let family = FAMILY.get_or_init(|| procession_core::family().create().expect("an arena"));
    let options = Options {
        max_items,
        ..Options::default()
    };
    let queue = Queue::create(family, &options).expect("a queue");
    let ends = || {
        std::iter::repeat_with(|| End(queue.clone()))
            .take(sides)
            .collect()
    };
    (ends(), ends())
}

/// Made anew for each measurement: each runs in a process of its own.
static FAMILY: OnceLock<&Family> = OnceLock::new();

impl Sender for End<Queue> {
    fn send(&mut self, bytes: &[u8]) {
        self.0
            .put(Tag::RAW, &[bytes], Deadline::NEVER)
            .expect("an open queue");
    }
}

impl Receiver for End<Queue> {
    fn receive(&mut self) -> u8 {
        look(self.0.get(Deadline::NEVER).expect("a message").bytes())
    }
}

/// A queue of procession that is written and read by many messages at a time.
struct Batching {
    queue: Queue,
    kept: Vec<Vec<u8>>,
    spare: Vec<Vec<u8>>,
    got: std::vec::IntoIter<procession_core::Message>,
}

fn batches() -> Ends<Batching, Batching> {
    let (mut senders, _) = procession(None, 1);
    let End(queue) = senders.pop().expect("one");
    let end = || Batching {
        queue: queue.clone(),
        kept: Vec::new(),
        spare: Vec::new(),
        got: Vec::new().into_iter(),
    };
    (vec![end()], vec![end()])
}

impl Sender for Batching {
    fn send(&mut self, bytes: &[u8]) {
        let mut place = self.spare.pop().unwrap_or_default();
        place.clear();
        place.extend_from_slice(bytes);
        self.kept.push(place);
        if self.kept.len() == BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let parts: Vec<[&[u8]; 1]> = self.kept.iter().map(|bytes| [&bytes[..]]).collect();
        let messages: Vec<_> = parts
            .iter()
            .map(|parts| Outgoing::bytes(Tag::RAW, parts))
            .collect();
        let put = self.queue.put_many(&messages, Deadline::NEVER);
        assert_eq!(put.expect("an open queue"), messages.len());
        self.spare.append(&mut self.kept);
    }
}

impl Receiver for Batching {
    fn receive(&mut self) -> u8 {
        loop {
            if let Some(message) = self.got.next() {
                return look(message.bytes());
            }
            let got = self.queue.get_many(BATCH, Deadline::NEVER);
            self.got = got.expect("messages").into_iter();
        }
    }
}

/// What a channel between threads carries: an array where the size is known, else a vector, made for each message.
trait Payload: Send {
    fn make(bytes: &[u8]) -> Self;
    fn bytes(&self) -> &[u8];
}

impl Payload for [u8; 16] {
    fn make(bytes: &[u8]) -> Self {
        bytes.try_into().expect("sixteen bytes")
    }

    fn bytes(&self) -> &[u8] {
        self
    }
}

impl Payload for Vec<u8> {
    fn make(bytes: &[u8]) -> Self {
        bytes.to_vec()
    }

    fn bytes(&self) -> &[u8] {
        self
    }
}

type Crossbeam<P> = Ends<End<crossbeam_channel::Sender<P>>, End<crossbeam_channel::Receiver<P>>>;

fn crossbeam<P: Payload>(limit: Option<u64>, sides: usize) -> Crossbeam<P> {
    let (sender, receiver) = match limit {
        Some(limit) => crossbeam_channel::bounded(limit as usize),
        None => crossbeam_channel::unbounded(),
    };
    (vec![End(sender); sides], vec![End(receiver); sides])
}

fn crossbeam_stream(
    place: Place,
    limit: Option<u64>,
    sides: usize,
    size: usize,
    count: u64,
) -> f64 {
    match size {
        16 => {
            let ends = || crossbeam::<[u8; 16]>(limit, sides);
            stream(Sides::Threads, place, ends, size, count)
        }
        _ => {
            let ends = || crossbeam::<Vec<u8>>(limit, sides);
            stream(Sides::Threads, place, ends, size, count)
        }
    }
}

impl<P: Payload> Sender for End<crossbeam_channel::Sender<P>> {
    fn send(&mut self, bytes: &[u8]) {
        let sent = self.0.send(P::make(bytes));
        assert!(sent.is_ok(), "somebody receives");
    }
}

impl<P: Payload> Receiver for End<crossbeam_channel::Receiver<P>> {
    fn receive(&mut self) -> u8 {
        look(self.0.recv().expect("a message").bytes())
    }
}

fn std_mpsc<P: Payload>() -> Ends<End<mpsc::Sender<P>>, End<mpsc::Receiver<P>>> {
    let (sender, receiver) = mpsc::channel();
    (vec![End(sender)], vec![End(receiver)])
}

impl<P: Payload> Sender for End<mpsc::Sender<P>> {
    fn send(&mut self, bytes: &[u8]) {
        let sent = self.0.send(P::make(bytes));
        assert!(sent.is_ok(), "somebody receives");
    }
}

impl<P: Payload> Receiver for End<mpsc::Receiver<P>> {
    fn receive(&mut self) -> u8 {
        look(self.0.recv().expect("a message").bytes())
    }
}

/// Bytes as they are, without serde.
fn ipc() -> Ends<End<IpcBytesSender>, End<IpcBytesReceiver>> {
    let (sender, receiver) = ipc_channel::ipc::bytes_channel().expect("a channel");
    (vec![End(sender)], vec![End(receiver)])
}

impl Sender for End<IpcBytesSender> {
    fn send(&mut self, bytes: &[u8]) {
        self.0.send(bytes).expect("somebody receives");
    }
}

impl Receiver for End<IpcBytesReceiver> {
    fn receive(&mut self) -> u8 {
        look(&self.0.recv().expect("a message"))
    }
}

/// One end of a socket pair that keeps messages apart.
struct Socket {
    fd: i32,
    buffer: Vec<u8>,
}

/// What goes into one packet: the system refuses those above its buffer's size.
const PACKET: usize = 64 << 10;

fn socket(size: usize, sides: usize) -> Ends<Socket, Socket> {
    let mut fds = [0; 2];
    // SAFETY: the pointer is to two numbers. Nobody closes them: the measurement's process ends soon.
    let made =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0, "a socket pair");
    let ends = |fd| {
        let end = move || Socket {
            fd,
            buffer: vec![0; size],
        };
        std::iter::repeat_with(end).take(sides).collect()
    };
    (ends(fds[0]), ends(fds[1]))
}

impl Sender for Socket {
    fn send(&mut self, bytes: &[u8]) {
        for packet in bytes.chunks(PACKET) {
            // SAFETY: the pointer and the length are the slice's.
            let sent = unsafe { libc::send(self.fd, packet.as_ptr().cast(), packet.len(), 0) };
            assert_eq!(sent, packet.len() as isize, "somebody receives");
        }
    }
}

impl Receiver for Socket {
    fn receive(&mut self) -> u8 {
        for packet in self.buffer.chunks_mut(PACKET) {
            // SAFETY: the pointer and the length are the slice's.
            let got = unsafe { libc::recv(self.fd, packet.as_mut_ptr().cast(), packet.len(), 0) };
            assert_eq!(got, packet.len() as isize, "a packet");
        }
        look(&self.buffer)
    }
}
