//! Two processes and a pipe: questions one way, answers the other, until the asking end is gone.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procession::{Connection, Process, Result, pipe};

/// Runs in the other process: receives a text, sends its words in the other order.
fn turn_around(texts: Connection<String, String>) -> u32 {
    let mut answered = 0;
    for text in texts.iter() {
        let text = text.expect("the text can be read");
        let turned: Vec<&str> = text.split(' ').rev().collect();
        if texts.send(turned.join(" ")).is_err() {
            break;
        }
        answered += 1;
    }
    answered
}

#[procession::main]
fn main() -> Result<()> {
    let (near, far) = pipe::<String, String>()?;
    let child = Process::spawn(turn_around, (far,))?;
    println!(
        "process {} asks process {}",
        std::process::id(),
        child.pid()
    );

    for text in ["hello world", "answers follow questions", "one"] {
        near.send(text.to_string())?;
        let answer = near.recv()?;
        println!("  {text:?} became {answer:?}");
        assert!(answer.split(' ').rev().eq(text.split(' ')));
    }

    // The end of the pipe is the end of the other process's loop.
    drop(near);
    let answered = child.join()?;
    assert_eq!(answered, 3);
    println!("the other process answered {answered} questions and ended");
    Ok(())
}
