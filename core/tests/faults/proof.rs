//! Steps an operation, kills it at each state, recovers, and counts what was checked.

use crate::arch;
use crate::arena::{self, Looker};
use crate::page::{Page, Word};
use crate::process::{self, Process, Stop};
use crate::scene::{Operation, Scene, Survivor, Way};
use procession_core::{Family, testing};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::os::fd::OwnedFd;

/// How long one operation may take altogether, in seconds.
pub const PATIENCE: u32 = 3000;

/// Failures of one operation that are told.
const FAILURES_MAX: usize = 6;

/// What survivors do in copies.
const WAYS: [Way; 3] = [Way::SweepsFirst, Way::WorksFirst, Way::Abandons];

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Whether each state is survived in every way, or in one, by turns.
    all_ways: bool,
    /// States inside whose recovery there are deaths too.
    recoveries: usize,
    /// Deaths inside one recovery: at each of so many states from its start, and then at fewer and fewer.
    deaths_each: usize,
    /// Real kills, and pauses.
    kills: usize,
}

impl Extent {
    pub fn from_environment() -> Extent {
        let usual = if cfg!(debug_assertions) {
            "short"
        } else {
            "full"
        };
        let wanted = std::env::var("PROCESSION_FAULTS").unwrap_or_else(|_| usual.to_owned());
        let (all_ways, recoveries, deaths_each, kills) = match wanted.as_str() {
            "short" => (false, 1, 8, 1),
            "full" => (true, 8, 40, 12),
            "long" => (true, usize::MAX, usize::MAX, usize::MAX),
            other => panic!("PROCESSION_FAULTS is short, full or long, not {other}"),
        };
        Extent {
            all_ways,
            recoveries,
            deaths_each,
            kills,
        }
    }
}

/// What was done for one operation.
#[derive(Default)]
pub struct Row {
    pub name: String,
    steps: u64,
    states: usize,
    /// States in which all survivors found everything right.
    recovered: usize,
    recoveries: usize,
    /// States that were seen inside those recoveries, and deaths tried at them, and those that ended well.
    inner_states: usize,
    inner_deaths: usize,
    inner_recovered: usize,
    kills: usize,
    kills_survived: usize,
    /// Real kills at which the survivor was asleep, waiting.
    blocked: usize,
    /// Times that the victim only stood still, and all was well.
    pauses: usize,
    pauses_survived: usize,
    points: BTreeSet<String>,
    pub failures: Vec<String>,
}

/// Where a death took place, for people.
struct Place {
    step: u64,
    state: usize,
    program_counter: u64,
}

/// Kills the operation everywhere.
pub fn prove(operation: &Operation, extent: Extent) -> Row {
    let mut row = Row {
        name: operation.name.to_owned(),
        ..Row::default()
    };
    if let Err(error) = prove_states(operation, &mut row, extent) {
        row.failures.push(format!("depth one: {error}"));
    }
    if row.failures.len() < FAILURES_MAX {
        let states = spread(row.states, extent.recoveries);
        if let Err(error) = prove_inside(operation, &mut row, &states, extent.deaths_each) {
            row.failures.push(format!("inside recovery: {error}"));
        }
    }
    if row.failures.len() < FAILURES_MAX {
        for state in spread(row.states, extent.kills) {
            for end in [End::Killed, End::Paused] {
                if let Err(error) = in_the_same_arena(operation, &mut row, state, end) {
                    row.failures
                        .push(format!("{end:?} at state {state}: {error}"));
                }
            }
            if row.failures.len() >= FAILURES_MAX {
                break;
            }
        }
    }
    row
}

/// `count` of the numbers below `all`, evenly.
fn spread(all: usize, count: usize) -> BTreeSet<usize> {
    let count = count.min(all);
    (0..count)
        .map(|i| (2 * i + 1) * all / (2 * count))
        .collect()
}

/// Steps a process and calls `at` in each state that was not seen before, the one before the first step included.
fn step_through(
    process: &mut Process,
    family: &'static Family,
    mut at: impl FnMut(Place) -> bool,
) -> Result<(u64, usize), String> {
    let mut looker = Looker::new(family);
    let (mut step, mut state) = (0, 0);
    loop {
        if step == 0 || looker.is_new() {
            let place = Place {
                step,
                state,
                program_counter: process.program_counter(),
            };
            state += 1;
            if !at(place) {
                return Ok((step, state));
            }
        }
        if !process.step()? {
            return Ok((step, state));
        }
        step += 1;
        if step > arch::STEPS_MAX {
            return Err(arch::ENDLESS.to_owned());
        }
    }
}

fn prove_states(operation: &Operation, row: &mut Row, extent: Extent) -> Result<(), String> {
    let scene = (operation.scene)();
    let page = Page::new();
    let ready = &scene.ready;
    let noted = Page::new();
    let mut victim = process::stepped(page, || noting(noted, ready()))?;
    let mut dead = scene.corpses.clone();
    dead.push(victim.pid as u32);
    let (mut recovered, mut failures) = (0, Vec::new());
    let (steps, states) = step_through(&mut victim, scene.family, |place| {
        let mut all = true;
        for (turn, way) in WAYS.into_iter().enumerate() {
            if !extent.all_ways && turn != place.state % WAYS.len() {
                continue;
            }
            let copy = arena::copy(scene.family);
            if let Err(error) = survive(&scene, copy, &dead, way) {
                all = false;
                failures.push(format!(
                    "state {} (step {}, {}), {way:?}: {error}",
                    place.state,
                    place.step,
                    source_line(place.program_counter),
                ));
            }
        }
        recovered += usize::from(all);
        failures.len() < FAILURES_MAX
    })
    .map_err(|error| format!("{error} {}", page.read()))?;
    row.points
        .extend(noted.read().split_whitespace().map(str::to_owned));
    (row.steps, row.states, row.recovered) = (steps, states, recovered);
    row.failures.extend(failures);
    Ok(())
}

/// Does `act`, and writes down which fault points it passed.
fn noting(noted: Page, act: Box<dyn FnOnce()>) -> Box<dyn FnOnce()> {
    Box::new(move || {
        act();
        if let Some(points) = testing::passed() {
            noted.write(&format!("{} {}", noted.read(), points.join(" ")));
        }
    })
}

/// Lets a survivor live on in a copy in which `dead` are dead; returns the outcome that it found.
fn survive(scene: &Scene, copy: OwnedFd, dead: &[u32], way: Way) -> Result<usize, String> {
    let page = Page::new_shared();
    page.write("");
    page.set(Word::Killed, 1);
    let mut survivor = process::fork(page, process::PATIENCE, || {
        let family = testing::open(copy).expect("a copy is an arena");
        for pid in dead {
            testing::strike(family, *pid);
        }
        let survivor = Survivor { family, page, way };
        survivor.check(scene) as i32
    });
    answer(survivor.wait(), page)
}

fn answer(stop: Stop, page: Page) -> Result<usize, String> {
    match stop {
        Stop::Exited(outcome) if outcome < 100 => Ok(outcome as usize),
        Stop::Killed(libc::SIGALRM) => Err(format!("hung while {}", page.read())),
        other => Err(format!("{other:?} while {}", page.read())),
    }
}

/// At the given states of the victim, steps a recoverer too and kills it at its states.
fn prove_inside(
    operation: &Operation,
    row: &mut Row,
    states: &BTreeSet<usize>,
    deaths_each: usize,
) -> Result<(), String> {
    let scene = (operation.scene)();
    let page = Page::new();
    let ready = &scene.ready;
    let mut victim = process::stepped(page, ready)?;
    let mut dead = scene.corpses.clone();
    dead.push(victim.pid as u32);
    let mut answer = Ok(());
    step_through(&mut victim, scene.family, |place| {
        if states.contains(&place.state) {
            row.recoveries += 1;
            let copy = arena::copy(scene.family);
            if let Err(error) = recover_and_die(&scene, row, copy, &dead, &place, deaths_each) {
                answer = Err(error);
            }
        }
        answer.is_ok()
            && row.failures.len() < FAILURES_MAX
            && states.last().is_some_and(|last| place.state < *last)
    })?;
    answer
}

fn recover_and_die(
    scene: &Scene,
    row: &mut Row,
    copy: OwnedFd,
    dead: &[u32],
    victim: &Place,
    deaths_each: usize,
) -> Result<(), String> {
    // Each of the first states, and then fewer and fewer: they are mostly alike (block after block), and how many there
    // will be is not known.
    let mut next = 0;
    let (mut recoverer, family, noted) = recoverer(copy, dead)?;
    let mut all_dead = dead.to_vec();
    all_dead.push(recoverer.pid as u32);
    let (_, states) = step_through(&mut recoverer, family, |place| {
        if place.state < next {
            return true;
        }
        next = (place.state + 1)
            .max(place.state.saturating_mul(deaths_each.saturating_add(1)) / deaths_each);
        row.inner_deaths += 1;
        let way = WAYS[place.state % WAYS.len()];
        match survive(scene, arena::copy(family), &all_dead, way) {
            Ok(_) => row.inner_recovered += 1,
            Err(error) => row.failures.push(format!(
                "state {} (step {}, {}), then state {} of the recovery (step {}, {}), {way:?}: {error}",
                victim.state,
                victim.step,
                source_line(victim.program_counter),
                place.state,
                place.step,
                source_line(place.program_counter),
            )),
        }
        row.failures.len() < FAILURES_MAX
    })?;
    row.inner_states += states;
    row.points
        .extend(noted.read().split_whitespace().map(str::to_owned));
    Ok(())
}

/// A process that has a seat in the copy and will look for the dead there.
fn recoverer(copy: OwnedFd, dead: &[u32]) -> Result<(Process, &'static Family, Page), String> {
    let family = testing::open(copy).expect("a copy is an arena");
    for pid in dead {
        testing::strike(family, *pid);
    }
    let (page, noted) = (Page::new(), Page::new());
    let process = process::stepped(page, || {
        testing::enter(family).expect("a seat");
        noting(noted, Box::new(|| testing::sweep(family).expect("a seat")))
    })?;
    Ok((process, family, noted))
}

/// What becomes of a victim that shares its arena with a survivor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is killed at the state.
    Killed,
    /// It stands still there for as long as the survivor gets on without it, goes on to its end, and is killed then.
    Paused,
}

/// Stops the victim for good or for a while in the given state, with a survivor at work in the same arena.
fn in_the_same_arena(
    operation: &Operation,
    row: &mut Row,
    state: usize,
    end: End,
) -> Result<(), String> {
    let scene = (operation.scene)();
    let victims = Page::new();
    let mut victim = process::stepped(victims, &scene.ready)?;
    step_through(&mut victim, scene.family, |place| place.state < state)?;
    let page = Page::new_shared();
    page.write("");
    page.set(Word::Killed, 0);
    page.set(Word::Arrived, 0);
    let mut survivor = process::fork(page, process::PATIENCE, || {
        let family = testing::open(arena::same(scene.family)).expect("an arena");
        let survivor = Survivor {
            family,
            page,
            way: match end {
                End::Killed => Way::WorksFirst,
                End::Paused => Way::LooksOn,
            },
        };
        survivor.check(&scene) as i32
    });
    // It gets as far as it can: through its work, or to a place where it waits for the victim.
    let mut asleep = 0;
    while page.get(Word::Arrived) == 0 && asleep < 10 && !survivor.has_ended() {
        asleep = if survivor.sleeps() { asleep + 1 } else { 0 };
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let blocked = page.get(Word::Arrived) == 0;
    match end {
        End::Killed => {
            row.kills += 1;
            row.blocked += usize::from(blocked);
        }
        End::Paused => {
            row.pauses += 1;
            victim
                .finish()
                .map_err(|error| format!("{error} {}", victims.read()))?;
            if !testing::pids(scene.family).contains(&(victim.pid as u32)) {
                return Err("the victim was taken for dead".to_owned());
            }
            while page.get(Word::Arrived) == 0 && !survivor.has_ended() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
    victim.kill();
    page.set(Word::Killed, 1);
    answer(survivor.wait(), page)?;
    match end {
        End::Killed => row.kills_survived += 1,
        End::Paused => row.pauses_survived += 1,
    }
    Ok(())
}

/// The line of the source that an address stands for, if a tool can tell; else the address in the program.
fn source_line(program_counter: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_default();
    let base = maps
        .lines()
        .find(|line| line.ends_with(&*program.to_string_lossy()));
    let base = base.and_then(|line| u64::from_str_radix(line.split_once('-')?.0, 16).ok());
    let Some(offset) = base.and_then(|base| program_counter.checked_sub(base)) else {
        return format!("{program_counter:#x}");
    };
    let told = std::process::Command::new("addr2line")
        .args(["-s", "-i", "-e"])
        .arg(&program)
        .arg(format!("{offset:#x}"))
        .output();
    match told {
        Ok(told) if told.status.success() && told.stdout.first() != Some(&b'?') => {
            String::from_utf8_lossy(&told.stdout)
                .trim()
                .replace('\n', " < ")
        }
        _ => format!("{offset:#x}"),
    }
}

impl Row {
    pub fn failed(name: &str, failure: String) -> Row {
        Row {
            name: name.to_owned(),
            failures: vec![failure],
            ..Row::default()
        }
    }

    fn numbers(&self) -> [usize; 12] {
        [
            self.steps as usize,
            self.states,
            self.recovered,
            self.recoveries,
            self.inner_states,
            self.inner_deaths,
            self.inner_recovered,
            self.kills,
            self.kills_survived,
            self.blocked,
            self.pauses,
            self.pauses_survived,
        ]
    }

    /// One line for each part, to be read by [`Row::from_text`] in another process.
    pub fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.name);
        let _ = writeln!(text, "{}", self.numbers().map(|n| n.to_string()).join(" "));
        let points: Vec<_> = self.points.iter().cloned().collect();
        let _ = writeln!(text, "{}", points.join(" "));
        for failure in &self.failures {
            let _ = writeln!(text, "{}", failure.replace('\n', " "));
        }
        text
    }

    pub fn from_text(text: &str) -> Row {
        let mut lines = text.lines();
        let name = lines.next().unwrap_or_default().to_owned();
        let numbers = lines.next().unwrap_or_default();
        let mut numbers = numbers.split(' ').map(|n| n.parse::<usize>().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Row {
            name,
            steps: next() as u64,
            states: next(),
            recovered: next(),
            recoveries: next(),
            inner_states: next(),
            inner_deaths: next(),
            inner_recovered: next(),
            kills: next(),
            kills_survived: next(),
            blocked: next(),
            pauses: next(),
            pauses_survived: next(),
            points: lines
                .next()
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            failures: lines.map(str::to_owned).collect(),
        }
    }

    pub fn line(&self) -> String {
        let verdict = if self.failures.is_empty() {
            ""
        } else {
            " FAILED"
        };
        format!(
            "{:<44} {:>7} {:>6} {:>6}   {:>4} {:>6} {:>6} {:>6}   {:>4} {:>4} {:>4}   {:>4} {:>4}{verdict}",
            self.name,
            self.steps,
            self.states,
            self.recovered,
            self.recoveries,
            self.inner_states,
            self.inner_deaths,
            self.inner_recovered,
            self.kills,
            self.kills_survived,
            self.blocked,
            self.pauses,
            self.pauses_survived,
        )
    }
}

/// The table, in Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| operation | steps | states | recovered | recoveries stepped | states in them | deaths there | recovered | real kills | survived | with a sleeper | pauses | undisturbed |\n\
         |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    let mut sum = [0; 12];
    for row in rows {
        let numbers = row.numbers();
        sum.iter_mut().zip(numbers).for_each(|(sum, n)| *sum += n);
        let _ = writeln!(
            text,
            "| {} | {} |",
            row.name,
            numbers.map(|n| n.to_string()).join(" | ")
        );
    }
    let _ = writeln!(text, "| all | {} |", sum.map(|n| n.to_string()).join(" | "));
    text
}

/// The table as a page of the documentation.
pub fn page(table: &str, rows: &[Row], extent: Extent) -> String {
    let failed: usize = rows.iter().map(|row| row.failures.len()).sum();
    format!(
        "# Killed at every store\n\n\
         Written by `PROCESSION_TABLE=docs/design/kill-table.md make faults`; `core/tests/faults` tells what the columns mean.\n\
         A state counts as recovered only if all three survivors (one sweeps first, one works first, one abandons the queues) found everything right.\n\
         Build: {} {}, {extent:?}. Failures: {failed}.\n\n{table}",
        std::env::consts::ARCH,
        if cfg!(debug_assertions) {
            "debug"
        } else {
            "release"
        },
    )
}

/// Fault points in the core's source that no operation passed; none if this build does not note them.
pub fn points_without_operation(rows: &[Row]) -> Vec<String> {
    if testing::passed().is_none() {
        return Vec::new();
    }
    let passed: BTreeSet<&str> = rows
        .iter()
        .flat_map(|row| &row.points)
        .map(String::as_str)
        .collect();
    let mut points = BTreeSet::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/src"
    ))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)
            .expect("the source is here")
            .flatten()
        {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let named = text.split("fault::point(\"").skip(1);
                points.extend(named.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            }
        }
    }
    points.retain(|point| !passed.contains(point.as_str()));
    points.into_iter().collect()
}
