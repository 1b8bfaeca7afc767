//! Rounds in which every contender runs once, and the table of their medians.

use crate::isolated;

/// One line of a table: something to measure, given how often, in nanoseconds for each time.
pub struct Contender<'a> {
    name: &'a str,
    measure: Box<dyn Fn(u64) -> f64 + 'a>,
}

impl<'a> Contender<'a> {
    /// A contender of this name.
    pub fn new(name: &'a str, measure: impl Fn(u64) -> f64 + 'a) -> Contender<'a> {
        Contender {
            name,
            measure: Box::new(measure),
        }
    }
}

impl std::fmt::Debug for Contender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// What came out for one contender.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Whose it is.
    pub name: String,
    /// The median time, in nanoseconds.
    pub nanos: f64,
    /// The median, over the rounds, of this contender's time by that of the first one in the same round.
    pub ratio: f64,
}

/// How many rounds a table takes: `ROUNDS` in the environment, or 9.
pub fn rounds() -> usize {
    std::env::var("ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|rounds| *rounds > 0)
        .unwrap_or(9)
}

/// Lets all contenders run in turns, each in a process of its own. The first is the one to compare with.
///
/// Each is tried once with `count` to find how often it must run for some 40 milliseconds, but at most `most` times.
///
/// `RIVALS=text` in the environment leaves out those whose name does not have the text in it.
pub fn interleave(contenders: &[Contender<'_>], count: u64, most: u64) -> Vec<Figure> {
    const NANOS_WANTED: f64 = 40e6;
    let only = std::env::var("RIVALS").unwrap_or_default();
    let contenders: Vec<_> = contenders
        .iter()
        .enumerate()
        .filter(|(index, contender)| *index == 0 || contender.name.contains(&only))
        .map(|(_, contender)| contender)
        .collect();
    let counts: Vec<u64> = contenders
        .iter()
        .map(|contender| {
            let mut count = count.min(most);
            loop {
                let nanos = isolated(|| (contender.measure)(count)).max(0.1);
                let wanted = ((NANOS_WANTED / nanos) as u64).clamp(8, most);
                // A short try is mostly start: believe it only once it was long enough.
                if wanted <= count * 8 {
                    return wanted;
                }
                count *= 8;
            }
        })
        .collect();
    let mut times = vec![Vec::new(); contenders.len()];
    for _ in 0..rounds() {
        for ((contender, count), times) in contenders.iter().zip(&counts).zip(&mut times) {
            times.push(isolated(|| (contender.measure)(*count)));
        }
    }
    let first = times[0].clone();
    contenders
        .iter()
        .zip(times)
        .map(|(contender, times)| Figure {
            name: contender.name.to_owned(),
            ratio: median(times.iter().zip(&first).map(|(own, first)| own / first)),
            nanos: median(times.iter().copied()),
        })
        .collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// How a time is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// As the time itself.
    Time,
    /// As how many there are in a second.
    Rate,
}

impl Unit {
    fn write(self, nanos: f64) -> String {
        match self {
            Unit::Time if nanos < 995.0 => format!("{nanos:.0} ns"),
            Unit::Time if nanos < 9_950.0 => format!("{:.2} µs", nanos / 1e3),
            Unit::Time if nanos < 995_000.0 => format!("{:.0} µs", nanos / 1e3),
            Unit::Time => format!("{:.2} ms", nanos / 1e6),
            Unit::Rate => {
                let rate = 1e9 / nanos;
                match rate {
                    _ if rate >= 1e6 => format!("{:.2} M/s", rate / 1e6),
                    _ if rate >= 1e4 => format!("{:.0} k/s", rate / 1e3),
                    _ if rate >= 1e3 => format!("{:.1} k/s", rate / 1e3),
                    _ => format!("{rate:.0} /s"),
                }
            }
        }
    }
}

/// Prints a table in Markdown: contenders down, `columns` across. A contender without a figure has a dash.
pub fn print_table(title: &str, unit: Unit, columns: &[(&str, Vec<Figure>)]) {
    let mut names: Vec<&str> = Vec::new();
    for figure in columns.iter().flat_map(|(_, figures)| figures) {
        if !names.contains(&figure.name.as_str()) {
            names.push(&figure.name);
        }
    }
    println!("\n### {title}\n");
    let heads: Vec<&str> = columns.iter().map(|(head, _)| *head).collect();
    println!("| | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(heads.len()));
    for name in names {
        let cells: Vec<String> = columns
            .iter()
            .map(|(_, figures)| {
                let figure = figures.iter().find(|figure| figure.name == name);
                figure.map_or("–".to_owned(), |figure| {
                    format!("{} ({:.2})", unit.write(figure.nanos), figure.ratio)
                })
            })
            .collect();
        println!("| {name} | {} |", cells.join(" | "));
    }
}
