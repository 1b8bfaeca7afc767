//! Kills a process at every store of every operation, recovers, and checks what is left.
//!
//! `operations` is the table; `scene` what stands around an operation and what must hold after a death; `proof` steps,
//! copies, kills and recovers; `process` and `arch` trace. A run prints a table; `PROCESSION_TABLE=path` also writes it.
//!
//! - *states*: what the arena looks like after each instruction, counted once each. At each of them the victim is dead
//!   in three copies of the arena, and a survivor lives on in each: one looks for the dead first, one works first, one
//!   leaves the queues as they are, to be destroyed so.
//! - *inside recovery*: at some of these states a recoverer is stepped too, and dies as well, at each of its first states
//!   and then at fewer and fewer; a third process lives on.
//! - *real kills*: at some states the victim really dies by SIGKILL, with a survivor at work or waiting in the arena.
//! - *pauses*: at the same states the victim only stands still and goes on later: nobody may take it for dead.
//!
//! A build with debug assertions also looks that every `fault::point` of the core's source is passed by some operation.
//! Not seen: stores that change nothing, more than one thread in a victim, a machine that runs out of memory.
//!
//! `PROCESSION_FAULTS` says how much: `short` (what `make test` does), `full` (`make faults`), `long` (all states inside
//! every recovery, and a real kill at every state). An argument runs the operations whose name contains it.
#![expect(clippy::print_stdout, reason = "the table is what it is for")]
#![expect(
    unreachable_pub,
    reason = "a program: nothing of it is reachable from elsewhere"
)]

mod arch;
mod arena;
mod memory;
mod operations;
mod page;
mod process;
mod proof;
mod queues;
mod scene;

use page::Page;
use proof::{Extent, Row};
use std::sync::Mutex;

static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// What the last panic of this process said.
fn last_panic() -> String {
    LAST_PANIC
        .lock()
        .map(|text| text.clone())
        .unwrap_or_default()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        return;
    }
    let filter = arguments.iter().find(|a| !a.starts_with("--"));
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut text) = LAST_PANIC.lock() {
            *text = info.to_string();
        }
    }));
    let extent = Extent::from_environment();
    let mut operations = operations::all();
    let complete = filter.is_none();
    if let Some(filter) = filter {
        operations.retain(|operation| operation.name.contains(filter.as_str()));
    }
    println!(
        "killing at every store of {} operations, {extent:?}",
        operations.len()
    );
    let start = std::time::Instant::now();
    let rows = run(operations, extent);
    let table = proof::table(&rows);
    println!("\n{table}");
    println!("{:.1} s", start.elapsed().as_secs_f64());
    let mut failed = rows.iter().filter(|row| !row.failures.is_empty()).count();
    for row in &rows {
        for failure in &row.failures {
            println!("FAILED {}: {failure}", row.name);
        }
    }
    if complete {
        let missing = proof::points_without_operation(&rows);
        for point in &missing {
            if operations::AWAITED.contains(&point.as_str()) {
                println!("not covered yet: the fault point `{point}`");
            } else {
                println!(
                    "FAILED no operation passes the fault point `{point}`: add one to the table"
                );
                failed += 1;
            }
        }
        let covered = |point: &&&str| !missing.iter().any(|name| name == **point);
        for point in operations::AWAITED.iter().filter(covered) {
            if procession_core::testing::passed().is_some() {
                println!(
                    "FAILED the fault point `{point}` is covered: take it from the list of those awaited"
                );
                failed += 1;
            }
        }
    }
    if let Ok(path) = std::env::var("PROCESSION_TABLE") {
        std::fs::write(&path, proof::page(&table, &rows, extent)).expect("the table is written");
    }
    if failed > 0 {
        std::process::exit(101);
    }
}

/// Runs each operation in a process of its own, as many at a time as there are processors.
fn run(operations: Vec<scene::Operation>, extent: Extent) -> Vec<Row> {
    let lanes = procession_core::processors();
    let mut waiting = operations.into_iter();
    let mut running: Vec<Option<(&'static str, Page, process::Process)>> = Vec::new();
    running.resize_with(lanes, || None);
    let mut rows = Vec::new();
    loop {
        for (lane, place) in running.iter_mut().enumerate() {
            if place.is_none()
                && let Some(operation) = waiting.next()
            {
                let page = Page::new();
                let name = operation.name;
                let process = process::fork(page, proof::PATIENCE, move || {
                    process::stay_on_one_processor(lane);
                    let row = proof::prove(&operation, extent);
                    page.write(&row.to_text());
                    0
                });
                *place = Some((name, page, process));
            }
        }
        let Some(ended) = process::wait_any(&mut running) else {
            return rows;
        };
        let (name, page, stop) = ended;
        let row = match stop {
            process::Stop::Exited(0) => Row::from_text(&page.read()),
            other => Row::failed(
                name,
                format!("the harness itself: {other:?} {}", page.read()),
            ),
        };
        println!("{}", row.line());
        rows.push(row);
    }
}
