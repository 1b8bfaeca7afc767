//! Shared values under a lock: no addition is lost, and a process that is killed with the lock costs nothing but its own.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procession::{Event, LockError, Mutex, Pod, Process, Result, SharedValue, Zeroable};

/// Plain data, in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[bytemuck(crate = "procession::bytemuck")]
#[repr(C)]
struct Tally {
    count: u64,
    sum: u64,
}

const EACH: u64 = 10_000;

fn add(tally: Mutex<Tally>, quick: SharedValue<u64>) {
    for n in 1..=EACH {
        // Under the lock: both numbers change, or none.
        let mut tally = tally.lock().expect("nobody dies here");
        tally.count += 1;
        tally.sum += n;
        drop(tally);
        // Without one: a single number.
        quick.fetch_add(1);
    }
}

fn die_with_the_lock(tally: Mutex<Tally>, taken: Event) {
    let mut tally = tally.lock().expect("nobody died yet");
    tally.count = 0;
    taken.set().expect("the event lives");
    loop {
        std::thread::park();
    }
}

#[procession::main]
fn main() -> Result<()> {
    let tally = Mutex::new(Tally { count: 0, sum: 0 })?;
    let quick = SharedValue::new(0)?;
    let children = (0..4)
        .map(|_| Process::spawn(add, (tally.clone(), quick.clone())))
        .collect::<Result<Vec<_>>>()?;
    for child in children {
        child.join()?;
    }
    let expected = Tally {
        count: 4 * EACH,
        sum: 4 * EACH * (EACH + 1) / 2,
    };
    assert_eq!(*tally.lock()?, expected);
    assert_eq!(quick.load(), 4 * EACH);
    println!("four processes, {EACH} times each: {:?}", *tally.lock()?);

    let taken = Event::new()?;
    let victim: Process<()> = Process::spawn(die_with_the_lock, (tally.clone(), taken.clone()))?;
    taken.wait()?;
    assert!(tally.try_lock()?.is_none());
    println!("process {} has the lock, {tally:?}", victim.pid());
    victim.kill()?;
    match tally.lock() {
        Err(LockError::OwnerDied(guard)) => {
            assert_eq!(*guard, expected);
            println!(
                "it was killed; the lock is ours, told that its owner died, and holds {:?}",
                *guard
            );
        }
        Ok(_) => unreachable!("its owner died"),
        Err(LockError::Failed(error)) => return Err(error),
    }
    println!("{}", victim.join().expect_err("it was killed"));
    assert_eq!(*tally.lock()?, expected);
    Ok(())
}
