//! Clocks, processors, limits, control groups.

use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::sync::OnceLock;

/// Nanoseconds in a second.
pub(crate) const NANOS: u64 = 1_000_000_000;

/// The monotonic clock, in nanoseconds.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * NANOS + now.tv_nsec as u64
}

/// The size of a page, in bytes.
pub(crate) fn page_size() -> usize {
    rustix::param::page_size()
}

/// How many processors this process may use: its affinity, cut by the quota of its control group; at least 1.
pub fn processors() -> usize {
    let by_affinity = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cgroup_quota()
        .map_or(by_affinity, |quota| by_affinity.min(quota))
        .max(1)
}

/// Whether spinning can help: another processor may run whom we wait for.
pub(crate) fn may_spin() -> bool {
    static MANY: OnceLock<bool> = OnceLock::new();
    *MANY.get_or_init(|| processors() > 1)
}

/// Whole processors that the control group grants, rounded up. (`available_parallelism` knows of cgroups too; it rounds
/// down, which leaves a group of 1.5 processors with one worker.)
fn cgroup_quota() -> Option<usize> {
    let text = fs::read_to_string(cgroup_folder()?.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
    usize::try_from(quota.div_ceil(period.max(1))).ok()
}

/// The folder of this process's control group (version 2), when it can be seen.
pub(crate) fn cgroup_folder() -> Option<std::path::PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(std::path::Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

/// How many processes of this control group the out-of-memory killer has taken so far; `None` when it cannot be seen.
pub(crate) fn oom_kills() -> Option<u64> {
    let text = fs::read_to_string(cgroup_folder()?.join("memory.events")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?
        .trim()
        .parse()
        .ok()
}

/// The largest part of the address space that this process may still reserve in one piece, as `RLIMIT_AS` allows.
pub(crate) fn address_space_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::As).current
}

/// Sixteen random bytes.
pub(crate) fn random_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    if filled != Ok(bytes.len()) {
        // Without the system's randomness the family's number comes from the clock: it names, it does not protect.
        bytes[..8].copy_from_slice(&monotonic_nanos().to_ne_bytes());
        bytes[8..12].copy_from_slice(&std::process::id().to_ne_bytes());
    }
    bytes
}
