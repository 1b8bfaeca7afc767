//! What is measured of queues: messages one way, with both sides running, and there and back.

use crate::gate::{Gate, PASSES, pin, run_in_process};
use std::hint::black_box;

/// The first byte of the message that ends a stream.
pub const END: u8 = 0xff;

/// The end of a queue where messages go in.
pub trait Sender: Send {
    /// Sends a message.
    fn send(&mut self, bytes: &[u8]);

    /// Sends what was kept back, for those who send in batches.
    fn flush(&mut self) {}
}

/// The end of a queue where messages come out.
pub trait Receiver: Send {
    /// Receives a message, [`look`]s at all of it, and gives its first byte.
    fn receive(&mut self) -> u8;
}

/// Reads a byte of each cache line, so that whoever only moved a pointer has still to bring the message here.
pub fn look(bytes: &[u8]) -> u8 {
    black_box(bytes.iter().step_by(64).fold(0, |sum, byte| sum ^ byte));
    bytes[0]
}

/// What the sides of a queue are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// Threads of one process.
    Threads,
    /// Processes.
    Processes,
}

/// Where they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Wherever the system puts them.
    Anywhere,
    /// Each on a processor of its own.
    Apart,
    /// All on one processor.
    Together,
}

impl Place {
    /// Called by each side before a pass. Sides that run apart are bound after the first, so that a queue that asks
    /// how many processors there are gets a true answer.
    fn take(self, side: usize, pass: usize) {
        match self {
            Place::Apart if pass == 1 => pin(side),
            Place::Anywhere | Place::Apart | Place::Together => {}
        }
    }

    /// Makes the queues, where they are used. Sides that run together are bound before there is anything.
    fn open<T>(self, open: impl FnOnce() -> T) -> T {
        if self == Place::Together {
            pin(0);
        }
        open()
    }
}

type Part<'a> = Box<dyn FnOnce(&Gate) + Send + 'a>;

/// Sends `count` messages of `size` bytes through a queue, and tells the nanoseconds for each.
pub fn stream<S: Sender, R: Receiver>(
    sides: Sides,
    place: Place,
    open: impl FnOnce() -> Ends<S, R>,
    size: usize,
    count: u64,
) -> f64 {
    let (senders, receivers) = place.open(open);
    let (inward, outward) = (senders.len() as u64, receivers.len() as u64);
    let mut parts: Vec<Part<'_>> = Vec::new();
    for (side, mut sender) in senders.into_iter().enumerate() {
        parts.push(Box::new(move |gate| {
            let message = vec![1; size];
            let last = vec![END; size];
            for pass in 0..PASSES {
                place.take(side, pass);
                gate.meet(pass);
                let each = passing(pass, count) / inward;
                if pass == 1 {
                    gate.begin();
                }
                for _ in 0..each {
                    sender.send(black_box(&message));
                }
                sender.flush();
                if gate.finish(pass) == inward {
                    (0..outward).for_each(|_| sender.send(&last));
                    sender.flush();
                }
            }
        }));
    }
    for (index, mut receiver) in receivers.into_iter().enumerate() {
        let side = parts.len();
        debug_assert_eq!(side, inward as usize + index);
        parts.push(Box::new(move |gate| {
            for pass in 0..PASSES {
                place.take(side, pass);
                gate.meet(pass);
                while receiver.receive() != END {}
                gate.end();
            }
        }));
    }
    let gate = Gate::new(inward + outward);
    run(sides, &gate, parts);
    gate.elapsed() as f64 / (count / inward * inward) as f64
}

/// The sending and the receiving ends of one channel.
pub type Ends<S, R> = (Vec<S>, Vec<R>);

/// Sends a message there and back `count` times, and tells the nanoseconds for each round trip.
pub fn ping<S: Sender, R: Receiver>(
    sides: Sides,
    place: Place,
    open: impl Fn() -> Ends<S, R>,
    size: usize,
    count: u64,
) -> f64 {
    let (there, back) = place.open(|| (open(), open()));
    let one = |ends: (Vec<S>, Vec<R>)| {
        let (mut senders, mut receivers) = ends;
        (
            senders.pop().expect("a sender"),
            receivers.pop().expect("a receiver"),
        )
    };
    let (mut out, mut far_in) = one(there);
    let (mut far_out, mut back_in) = one(back);
    let caller: Part<'_> = Box::new(move |gate| {
        let message = vec![1; size];
        for pass in 0..PASSES {
            place.take(0, pass);
            gate.meet(pass);
            if pass == 1 {
                gate.begin();
            }
            for _ in 0..passing(pass, count) {
                out.send(black_box(&message));
                out.flush();
                back_in.receive();
            }
            gate.end();
        }
    });
    let answerer: Part<'_> = Box::new(move |gate| {
        let message = vec![1; size];
        for pass in 0..PASSES {
            place.take(1, pass);
            gate.meet(pass);
            for _ in 0..passing(pass, count) {
                far_in.receive();
                far_out.send(black_box(&message));
                far_out.flush();
            }
        }
    });
    let gate = Gate::new(2);
    run(sides, &gate, vec![caller, answerer]);
    gate.elapsed() as f64 / count as f64
}

/// Has `sides` do `turn` over and over, `count` times together, and tells the nanoseconds for each.
pub fn alternate(sides: Sides, parties: u64, count: u64, turn: impl Fn() + Sync) -> f64 {
    let turn = &turn;
    let parts = (0..parties)
        .map(|_| -> Part<'_> {
            Box::new(move |gate| {
                for pass in 0..PASSES {
                    gate.meet(pass);
                    if pass == 1 {
                        gate.begin();
                    }
                    (0..passing(pass, count) / parties).for_each(|_| turn());
                    gate.end();
                }
            })
        })
        .collect();
    let gate = Gate::new(parties);
    run(sides, &gate, parts);
    gate.elapsed() as f64 / (count / parties * parties) as f64
}

/// How many messages a pass has: the first is shorter.
fn passing(pass: usize, count: u64) -> u64 {
    if pass == 0 { count.div_ceil(4) } else { count }
}

fn run(sides: Sides, gate: &Gate, parts: Vec<Part<'_>>) {
    match sides {
        Sides::Threads => std::thread::scope(|scope| {
            for part in parts {
                scope.spawn(|| part(gate));
            }
        }),
        Sides::Processes => {
            let forked: Vec<_> = parts
                .into_iter()
                .map(|part| run_in_process(|| part(gate)))
                .collect();
            forked.into_iter().for_each(|side| side.wait());
        }
    }
}
