//! A queue with workers and an end signal: closing the queue ends every worker once the queue is empty.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procession::{Builder, Queue, Result};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    number: u64,
    steps: u32,
    by: u32,
}

/// Runs in each worker: takes numbers until there are no more, and counts the steps of each to 1.
fn count_steps(numbers: Queue<u64>, results: Queue<Counted>) -> u32 {
    let mut done = 0;
    for number in &numbers {
        let number = number.expect("the number can be read");
        let (mut n, mut steps) = (number, 0);
        while n > 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        let by = std::process::id();
        results
            .put(Counted { number, steps, by })
            .expect("the results are open");
        done += 1;
    }
    done
}

#[procession::main]
fn main() -> Result<()> {
    const LAST: u64 = 2000;
    // Bounded: whoever puts waits for the workers, rather than fill the memory.
    let numbers = Queue::bounded(64)?;
    let results = Queue::unbounded()?;
    let workers = (1..=3)
        .map(|n| {
            let builder = Builder::new().name(format!("counter-{n}"));
            builder.spawn(count_steps, (numbers.clone(), results.clone()))
        })
        .collect::<Result<Vec<_>>>()?;

    numbers.put_all(1..=LAST)?;
    // The end signal: no more will come. What is in the queue is still done.
    numbers.close()?;

    let mut done = 0;
    for worker in workers {
        let name = worker.name().to_string();
        let count = worker.join()?;
        println!("{name} counted the steps of {count} numbers");
        done += u64::from(count);
    }
    assert_eq!(done, LAST);

    results.close()?;
    let mut seen = vec![false; LAST as usize];
    let mut longest: Option<Counted> = None;
    for result in &results {
        let result = result?;
        assert!(
            !std::mem::replace(&mut seen[result.number as usize - 1], true),
            "each comes once"
        );
        if longest
            .as_ref()
            .is_none_or(|longest| result.steps > longest.steps)
        {
            longest = Some(result);
        }
    }
    assert!(seen.into_iter().all(|seen| seen), "none is missing");
    let Counted { number, steps, by } = longest.expect("there are results");
    assert_eq!((number, steps), (1161, 181));
    println!(
        "of the numbers up to {LAST}, {number} takes the most steps: {steps}, said process {by}"
    );
    Ok(())
}
