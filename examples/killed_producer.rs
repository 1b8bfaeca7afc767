//! Producers killed while they write: what they put arrives whole and in order, and the queue goes on for the next.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procession::{Process, Queue, Result};
use std::time::{Duration, Instant};

/// A numbered message of many bytes, which all say its number.
type Numbered = (u32, Vec<u8>);

/// Puts messages as fast as it can, for ever.
fn produce(messages: Queue<Numbered>) {
    for number in 0.. {
        let length = 100_000 + (number as usize * 7919) % 100_000;
        messages
            .put((number, vec![number as u8; length]))
            .expect("the queue is open");
    }
}

#[procession::main]
fn main() -> Result<()> {
    const KILLS: u32 = 20;
    let messages = Queue::bounded(4)?;
    let mut received = 0;
    let start = Instant::now();
    for kill in 0..KILLS {
        let producer: Process<()> = Process::spawn(produce, (messages.clone(),))?;
        // Some while, so that each is killed somewhere else: when it copies, when it waits for room.
        let until = Instant::now() + Duration::from_millis(u64::from(3 * kill) + 1);
        let mut next = 0;
        while next == 0 || Instant::now() < until {
            check(messages.get()?, &mut next);
        }
        producer.kill()?;
        let death = producer.join().expect_err("it was killed");
        // What it had put is there, and nothing of what it was about to put.
        let mut after = 0;
        while let Some(message) = messages.try_get()? {
            check(message, &mut next);
            after += 1;
        }
        println!("{death}; {next} messages, {after} of them got after its end");
        received += next;
    }
    assert!(messages.is_empty());
    println!(
        "{KILLS} producers killed, {received} messages, each whole, none twice, none missing, in {:.1?}",
        start.elapsed()
    );
    Ok(())
}

/// Each message is the next one, and whole.
fn check((number, bytes): Numbered, next: &mut u32) {
    assert_eq!(number, *next);
    assert!(bytes.len() >= 100_000 && bytes.iter().all(|byte| *byte == number as u8));
    *next += 1;
}
