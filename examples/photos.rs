//! Compresses a folder of photographs on all cores: decodes each, shrinks it to some widths, encodes the results.
//!
//!     photos DIR [--out DIR] [--widths 1600,800] [--broken] [--kill]
//!
//! A photograph that cannot be read is named and skipped. With `--kill`, a worker is killed in the middle of its work:
//! the photograph in its hands is done again, and the others do not notice.
#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use clap::Parser;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageReader};
use indicatif::{ProgressBar, ProgressStyle};
use procession::{JobError, Pool, SharedSlice};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Compress a folder of photographs with a pool of processes.
#[derive(Parser)]
struct Options {
    /// The folder; files that are no JPEG, PNG or WebP by their name are skipped.
    #[arg(default_value = "examples/photographs")]
    folder: PathBuf,
    /// Where the results go; without it, a temporary directory that is removed at the end.
    #[arg(long)]
    out: Option<PathBuf>,
    /// The widths to shrink to, in pixels.
    #[arg(long, value_delimiter = ',', default_value = "1600,800", value_parser = clap::value_parser!(u32).range(1..))]
    widths: Vec<u32>,
    /// Put a broken file among the photographs.
    #[arg(long)]
    broken: bool,
    /// Kill a worker in the middle of its work.
    #[arg(long)]
    kill: bool,
}

/// What one call is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Task {
    photo: PathBuf,
    /// Where the results go.
    out: PathBuf,
    widths: Vec<u32>,
    index: usize,
    /// Who works on each photograph now, by process number.
    busy: SharedSlice<u32>,
    /// How often each was begun.
    begun: SharedSlice<u32>,
}

/// What came of one photograph.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Saved {
    files: u32,
    bytes_before: u64,
    bytes_after: u64,
}

/// Runs in a worker.
#[procession::task]
fn compress(task: Task) -> Result<Saved, String> {
    task.begun.fetch_add(task.index, 1);
    task.busy.store(task.index, std::process::id());
    let saved = try_compress(&task).map_err(|error| error.to_string().trim().to_owned());
    task.busy.store(task.index, 0);
    saved
}

fn try_compress(task: &Task) -> Result<Saved, Box<dyn Error>> {
    let mut decoder = ImageReader::open(&task.photo)?
        .with_guessed_format()?
        .into_decoder()?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    let mut saved = Saved {
        bytes_before: task.photo.metadata()?.len(),
        ..Saved::default()
    };
    let mut widths: Vec<u32> = task
        .widths
        .iter()
        .map(|width| (*width).min(image.width()))
        .collect();
    widths.sort_unstable();
    widths.dedup();
    for width in widths {
        let height = (u64::from(image.height()) * u64::from(width)).div_ceil(image.width().into());
        let small = image.resize_exact(width, (height as u32).max(1), FilterType::Lanczos3);
        saved.bytes_after += save(&small.into_rgb8(), &task.photo, &task.out, width)?;
        saved.files += 1;
    }
    Ok(saved)
}

/// Writes an image, whole or not at all: JPEG as JPEG, all else as WebP. Its length.
fn save(
    image: &image::RgbImage,
    photo: &Path,
    out: &Path,
    width: u32,
) -> Result<u64, Box<dyn Error>> {
    let stem = photo.file_stem().unwrap_or_default().to_string_lossy();
    let jpeg = has_extension(photo, &["jpg", "jpeg"]);
    let name = format!("{stem}-{width}.{}", if jpeg { "jpg" } else { "webp" });
    let (part, path) = (out.join(format!("{name}.part")), out.join(name));
    let file = BufWriter::new(File::create(&part)?);
    if jpeg {
        image.write_with_encoder(JpegEncoder::new_with_quality(file, 80))?;
    } else {
        image.write_with_encoder(WebPEncoder::new_lossless(file))?;
    }
    fs::rename(&part, &path)?;
    Ok(path.metadata()?.len())
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|found| {
        extensions
            .iter()
            .any(|known| found.eq_ignore_ascii_case(known))
    })
}

/// What one run over all photographs came to.
struct Run {
    workers: usize,
    took: Duration,
    saved: Saved,
    photos: usize,
    errors: Vec<String>,
}

#[procession::main]
fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let family = format!("photos-{}", std::process::id());
    procession::configure(|limits| limits.name(&family))?;

    let temporary = Temporary::create(&family)?;
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| temporary.0.join("out"));
    fs::create_dir_all(&out)?;
    let mut photos = find(&options.folder)?;
    if photos.is_empty() {
        return Err(format!("there are no photographs in {}", options.folder.display()).into());
    }
    if options.broken {
        photos.push(break_one(&photos[0], &temporary.0)?);
    }

    let mut runs = Vec::new();
    if options.kill {
        runs.push(run(&options, &photos, &out, Pool::new()?)?);
    } else {
        runs.push(run(&options, &photos, &out, Pool::with_workers(1)?)?);
        runs.push(run(&options, &photos, &out, Pool::new()?)?);
    }
    let broken = usize::from(options.broken);
    for run in &runs {
        assert_eq!(
            run.photos + run.errors.len(),
            photos.len(),
            "every photograph has its result"
        );
        assert!(run.errors.len() >= broken, "a broken file is an error");
    }
    show(&runs);
    check_that_nothing_remains(&family, &out)?;
    println!("nothing remains: no process, no shared memory, no half-written file");
    if let Some(out) = &options.out {
        println!("the results are in {}", out.display());
    }
    Ok(())
}

/// The photographs of a folder, by name.
fn find(folder: &Path) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut photos: Vec<_> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    photos.retain(|path| has_extension(path, &["jpg", "jpeg", "png", "webp"]));
    photos.sort();
    Ok(photos)
}

/// A file that begins like a photograph, and goes on like nothing.
fn break_one(photo: &Path, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let mut bytes = fs::read(photo)?;
    bytes.truncate(1000);
    bytes[16..].fill(0);
    let path = folder.join("broken.jpg");
    fs::write(&path, bytes)?;
    Ok(path)
}

fn run(
    options: &Options,
    photos: &[PathBuf],
    out: &Path,
    pool: Pool,
) -> Result<Run, Box<dyn Error>> {
    let busy = SharedSlice::zeroed(photos.len())?;
    let begun = SharedSlice::zeroed(photos.len())?;
    let tasks = photos.iter().enumerate().map(|(index, photo)| Task {
        photo: photo.clone(),
        out: out.to_owned(),
        widths: options.widths.clone(),
        index,
        busy: busy.clone(),
        begun: begun.clone(),
    });
    let workers = pool.workers();
    let bar = ProgressBar::new(photos.len() as u64).with_message(plural(workers, "worker"));
    bar.set_style(ProgressStyle::with_template(
        "{msg:>12} {bar:40} {pos}/{len} {elapsed}",
    )?);
    let mut run = Run {
        workers,
        took: Duration::ZERO,
        saved: Saved::default(),
        photos: 0,
        errors: Vec::new(),
    };
    let mut killed = None;
    let start = Instant::now();
    for (index, result) in pool.map_unordered(compress, tasks).retries(1) {
        match result {
            Ok(Ok(saved)) => {
                run.photos += 1;
                run.saved.files += saved.files;
                run.saved.bytes_before += saved.bytes_before;
                run.saved.bytes_after += saved.bytes_after;
            }
            Ok(Err(why)) => run
                .errors
                .push(format!("{}: {why}", photos[index].display())),
            Err(error @ (JobError::Panicked(_) | JobError::WorkerDied(_))) => {
                run.errors
                    .push(format!("{}: {error}", photos[index].display()));
            }
            Err(other) => return Err(other.into()),
        }
        bar.inc(1);
        if options.kill && killed.is_none() {
            killed = kill_one(&busy, &begun)?;
        }
    }
    run.took = start.elapsed();
    bar.finish();
    for error in &run.errors {
        println!("skipped {error}");
    }
    if options.kill {
        let (index, pid) =
            killed.ok_or("nobody was killed: there was no work left; try more photographs")?;
        assert_eq!(
            begun.load(index),
            2,
            "the photograph of the killed worker was done again"
        );
        let restarts: u64 = pool.stats().iter().map(|worker| worker.restarts).sum();
        assert!(restarts >= 1, "the killed worker was replaced");
        println!(
            "killed worker {pid} at work on {}: done again by another",
            photos[index].display()
        );
    }
    Ok(run)
}

/// Kills a worker that is at work, by its number as anybody could; which photograph it was at, and who it was.
fn kill_one(
    busy: &SharedSlice<u32>,
    begun: &SharedSlice<u32>,
) -> Result<Option<(usize, u32)>, Box<dyn Error>> {
    let patience = Instant::now() + Duration::from_secs(1);
    while Instant::now() < patience {
        let at_work = busy
            .to_vec()
            .into_iter()
            .enumerate()
            .find(|(_, pid)| *pid != 0);
        let Some((index, pid)) = at_work else {
            continue;
        };
        let process =
            rustix::process::Pid::from_raw(pid.try_into()?).ok_or("no process has number 0")?;
        rustix::process::kill_process(process, rustix::process::Signal::KILL)?;
        while is_running(pid) {
            std::thread::yield_now();
        }
        // It says so when it is done. If it was, before it died, it was not in the middle.
        let was_done = busy.load(index) == 0 && begun.load(index) == 1;
        if !was_done {
            return Ok(Some((index, pid)));
        }
    }
    Ok(None)
}

/// Whether a process has not ended yet.
fn is_running(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat
        .rsplit(") ")
        .next()
        .and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X'))
}

fn show(runs: &[Run]) {
    println!();
    println!(
        "{:>10} {:>7} {:>7} {:>12} {:>12} {:>9}",
        "workers", "photos", "files", "before", "after", "time"
    );
    for run in runs {
        println!(
            "{:>10} {:>7} {:>7} {:>12} {:>12} {:>8.2}s",
            run.workers,
            run.photos,
            run.saved.files,
            mebibytes(run.saved.bytes_before),
            mebibytes(run.saved.bytes_after),
            run.took.as_secs_f64(),
        );
    }
    println!();
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Looks for what a killed worker could have left: a child of ours, somebody else with our memory, half a file.
fn check_that_nothing_remains(family: &str, out: &Path) -> Result<(), Box<dyn Error>> {
    let own = std::process::id().to_string();
    let memory = format!("memfd:procession:{family}");
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let pid = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if pid == own || pid.parse::<u32>().is_err() {
            continue;
        }
        // A process that ends while we look has no files there any more.
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.split(' ').nth(1));
        if parent == Some(&own) {
            return Err(format!("process {pid} is left").into());
        }
        for fd in fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let target = fs::read_link(fd.path()).unwrap_or_default();
            if target.to_string_lossy().contains(&memory) {
                return Err(format!("process {pid} still has our memory").into());
            }
        }
    }
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        if has_extension(&path, &["part"]) {
            return Err(format!("{} is left", path.display()).into());
        }
    }
    Ok(())
}

/// A directory for the length of the program.
struct Temporary(PathBuf);

impl Temporary {
    fn create(name: &str) -> Result<Temporary, Box<dyn Error>> {
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Temporary(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
