//! Measures rivals side by side, in turns, in one run.
//!
//! A machine that others use is slow at one moment and fast at the next, so a figure alone says little. Here every
//! rival of a table runs once in each round, one after the other, and what is compared is their times within a round.
//! What is printed is the median over the rounds.
//!
//! Start with [`interleave`]. [`stream`] and [`ping`] are what it measures of queues; they know threads and processes.
#![allow(
    unsafe_code,
    reason = "forks, pins to processors and maps a page that the sides share"
)]
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

mod gate;
mod queues;
mod rounds;

pub use queues::{END, Ends, Place, Receiver, Sender, Sides, alternate, look, ping, stream};
pub use rounds::{Contender, Figure, Unit, interleave, print_table, rounds};

/// Runs `work` in a process of its own and gives its number: what it leaves behind ends with it.
pub fn isolated(work: impl FnOnce() -> f64) -> f64 {
    let gate = gate::Gate::new(1);
    gate::run_in_process(|| gate.set_answer(work())).wait();
    gate.answer()
}
