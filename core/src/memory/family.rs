//! Who shares an arena: a root process and everything it starts.

use super::layout::{self, Header, LINE, MAGIC, PAGE, ProcSlot, ThreadSlot, UNIT};
use super::lock::Lock;
use super::object::{Attachments, Kind};
use super::offset::{self, Region};
use super::slabs::Heap;
use super::slots::ProcState;
use super::{epoch, reclaim};
use crate::error::{Error, Result};
use crate::sys::{machine, memory, process, socket};
use std::any::Any;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, OnceLock};

/// The calling thread's place in a family: what it writes into lock words and ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Me {
    /// The thread slot.
    pub(crate) slot: u32,
    /// The lock word that names it.
    pub(crate) word: u32,
    /// The process slot.
    pub(crate) process: u32,
}

impl Me {
    pub(crate) const NOBODY: Me = Me {
        slot: u32::MAX,
        word: 0,
        process: u32::MAX,
    };
}

/// A root process and everything it starts, sharing one arena.
///
/// A family lives as long as the process that is in it; it is handed around as `&'static`.
///
/// ```
/// let family = procession_core::family().name("docs").create()?;
/// assert!(family.usage().bytes_in_use < 1 << 20);
/// # Ok::<(), procession_core::Error>(())
/// ```
pub struct Family {
    region: &'static Region,
    header: &'static Header,
    processes: &'static [ProcSlot],
    threads: &'static [ThreadSlot],
    units: &'static [AtomicU64],
    kinds: &'static [Kind],
    local: AtomicPtr<Local>,
    creating: Lock<()>,
    /// The two ends of the socket in which descriptors lie; every member has both. See `connection::locker`.
    locker: OnceLock<(OwnedFd, OwnedFd)>,
}

/// What a kill leaves whole, a panic does too.
impl std::panic::RefUnwindSafe for Family {}

/// Messages on loan to this process, by the handle of their queue, oldest first.
type Leases = HashMap<u64, VecDeque<Arc<dyn Any + Send + Sync>>>;

/// What belongs to this process alone, for one epoch.
pub(crate) struct Local {
    epoch: u32,
    process: u32,
    pub(crate) heap: Lock<Heap>,
    pub(crate) attachments: Lock<Attachments>,
    /// Messages on loan to this process, by the handle of their queue, oldest first.
    pub(crate) leases: Lock<Leases>,
}

/// The limits of a family, from the environment unless set here.
///
/// | method | environment | default |
/// |---|---|---|
/// | [`memory_max`](Builder::memory_max) | `PROCESSION_MEMORY_MAX` (bytes; `K`, `M`, `G`, `T`) | the reserve |
/// | [`reserve`](Builder::reserve) | `PROCESSION_RESERVE` (bytes) | 64 GiB, a quarter of `RLIMIT_AS` if that is less |
/// | [`processes_max`](Builder::processes_max) | `PROCESSION_PROCESSES_MAX` | 1024 |
/// | [`threads_max`](Builder::threads_max) | `PROCESSION_THREADS_MAX` | 2048 |
/// | [`keep_warm`](Builder::keep_warm) | `PROCESSION_KEEP_WARM` (bytes) | 64 MiB |
#[derive(Debug)]
#[must_use = "a builder does nothing until `create`"]
pub struct Builder {
    name: String,
    memory_max: Option<u64>,
    reserve: Option<u64>,
    processes_max: Option<u64>,
    threads_max: Option<u64>,
    keep_warm: Option<u64>,
    kinds: &'static [Kind],
}

impl Builder {
    pub(crate) fn new(kinds: &'static [Kind]) -> Builder {
        Builder {
            name: String::new(),
            memory_max: None,
            reserve: None,
            processes_max: None,
            threads_max: None,
            keep_warm: None,
            kinds,
        }
    }

    /// A name for people, seen in `/proc/<pid>/fd` as `memfd:procession:<name>`.
    pub fn name(mut self, name: &str) -> Builder {
        self.name = name
            .chars()
            .filter(|c| !c.is_control() && *c != '/')
            .take(64)
            .collect();
        self
    }

    /// The most memory the arena may use, in bytes.
    pub fn memory_max(mut self, bytes: u64) -> Builder {
        self.memory_max = Some(bytes);
        self
    }

    /// How many bytes of address space each process sets aside for the arena.
    pub fn reserve(mut self, bytes: u64) -> Builder {
        self.reserve = Some(bytes);
        self
    }

    /// How many processes the family can have at a time; at most 1024.
    pub fn processes_max(mut self, count: u32) -> Builder {
        self.processes_max = Some(count.into());
        self
    }

    /// How many threads, of all processes together, can use the arena at a time; at most 16382.
    pub fn threads_max(mut self, count: u32) -> Builder {
        self.threads_max = Some(count.into());
        self
    }

    /// How many bytes of freed memory stay ready for use rather than go back to the system.
    pub fn keep_warm(mut self, bytes: u64) -> Builder {
        self.keep_warm = Some(bytes);
        self
    }

    /// Creates the arena, with the calling process as its root.
    pub fn create(self) -> Result<&'static Family> {
        let limits = self.limits()?;
        let slots_start = PAGE;
        let threads_start =
            slots_start + u64::from(limits.processes) * size_of::<ProcSlot>() as u64;
        let table_start =
            threads_start + u64::from(limits.threads) * size_of::<ThreadSlot>() as u64;
        let units_start =
            (table_start + limits.units * size_of::<u64>() as u64).next_multiple_of(UNIT);

        let fd = memory::create(&format!("procession:{}", self.name), units_start)?;
        let fd = process::above_stdio(fd)?;
        // What every process touches at once is backed now; the unit table fills as units come.
        memory::back(fd.as_fd(), 0, table_start)?;
        let region: &'static Region = Box::leak(Box::new(Region::new(
            fd,
            units_start,
            units_start + limits.units * UNIT,
        )?));
        let header = region.header();
        header
            .processes_max
            .store(limits.processes, Ordering::Relaxed);
        header.threads_max.store(limits.threads, Ordering::Relaxed);
        header.table_start.store(table_start, Ordering::Relaxed);
        header.units_start.store(units_start, Ordering::Relaxed);
        header.units_max.store(limits.units, Ordering::Relaxed);
        header
            .keep_warm
            .store(limits.keep_warm / UNIT, Ordering::Relaxed);
        header.committed.store(units_start, Ordering::Relaxed);
        header.generation.store(1, Ordering::Relaxed);
        let id = machine::random_bytes();
        header.family[0].store(
            u64::from_ne_bytes(id[..8].try_into().expect("eight bytes")),
            Ordering::Relaxed,
        );
        header.family[1].store(
            u64::from_ne_bytes(id[8..].try_into().expect("eight bytes")),
            Ordering::Relaxed,
        );
        for slot in region.views::<ThreadSlot>(threads_start, limits.threads.into())? {
            slot.token.init()?;
        }
        // Last: an arena without its magic is none.
        header.magic.store(MAGIC, Ordering::Release);
        let family = Family::open(region, self.kinds)?;
        family.local_state()?;
        // Before there is anyone else: a member that is forked by whomever has the same.
        let (put, look) = socket::pair()?;
        socket::set_buffer(put.as_fd(), 1 << 20);
        family.set_locker(put, look);
        Ok(family)
    }

    fn limits(&self) -> Result<Limits> {
        let reserve = match self.reserve {
            Some(reserve) => reserve,
            None => match from_environment("PROCESSION_RESERVE")? {
                Some(reserve) => reserve,
                None => {
                    let whole = 64 << 30;
                    machine::address_space_limit().map_or(whole, |limit| whole.min(limit / 4))
                }
            },
        };
        let bytes = self.memory_max.map_or_else(
            || from_environment("PROCESSION_MEMORY_MAX"),
            |max| Ok(Some(max)),
        )?;
        let bytes = bytes.unwrap_or(reserve).min(reserve);
        let count = |set: Option<u64>, name: &'static str, usual: u32, most: u32| -> Result<u32> {
            let count = set
                .map_or_else(|| from_environment(name), |set| Ok(Some(set)))?
                .unwrap_or(usual.into());
            match u32::try_from(count) {
                Ok(count) if (1..=most).contains(&count) => Ok(count),
                _ => Err(Error::TooLarge {
                    what: name,
                    length: count,
                    limit: most.into(),
                }),
            }
        };
        let processes = count(
            self.processes_max,
            "PROCESSION_PROCESSES_MAX",
            1024,
            layout::PROCESSES_MAX,
        )?;
        let threads = count(
            self.threads_max,
            "PROCESSION_THREADS_MAX",
            2048,
            layout::THREADS_MAX,
        )?;
        let keep_warm = self.keep_warm.map_or_else(
            || from_environment("PROCESSION_KEEP_WARM"),
            |kept| Ok(Some(kept)),
        )?;
        Ok(Limits {
            // A handle counts lines in 32 bits: 256 GiB.
            units: (bytes / UNIT).clamp(16, (1 << 32) * LINE / UNIT - 4096),
            processes,
            threads,
            keep_warm: keep_warm.unwrap_or(64 << 20),
        })
    }
}

struct Limits {
    units: u64,
    processes: u32,
    threads: u32,
    keep_warm: u64,
}

/// A number of bytes or things from the environment, with `K`, `M`, `G` or `T` after it.
fn from_environment(name: &'static str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let (digits, shift) = match text.as_bytes()[text.len() - 1].to_ascii_uppercase() {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number = digits
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift));
    number.map(Some).ok_or(Error::Malformed {
        what: name,
        why: "it is not a number, with K, M, G or T after it",
    })
}

impl Family {
    /// Opens a family by its arena's descriptor, for a child that goes on to [`Family::take_embryo`].
    pub(crate) fn open_for_child(fd: OwnedFd, kinds: &'static [Kind]) -> Result<&'static Family> {
        let (length, reserve) = offset::inspect(fd.as_fd())?;
        let region: &'static Region = Box::leak(Box::new(Region::new(fd, length, reserve)?));
        Family::open(region, kinds)
    }

    fn open(region: &'static Region, kinds: &'static [Kind]) -> Result<&'static Family> {
        let header = region.header();
        let (processes, threads) = (
            header.processes_max.load(Ordering::Acquire),
            header.threads_max.load(Ordering::Acquire),
        );
        if processes > layout::PROCESSES_MAX || threads > layout::THREADS_MAX {
            return Err(Error::ForeignArena {
                why: "its header contradicts itself",
            });
        }
        let threads_start = PAGE + u64::from(processes) * size_of::<ProcSlot>() as u64;
        let family = Box::leak(Box::new(Family {
            region,
            header,
            processes: region.views(PAGE, processes.into())?,
            threads: region.views(threads_start, threads.into())?,
            units: region.views(
                header.table_start.load(Ordering::Relaxed),
                header.units_max.load(Ordering::Relaxed),
            )?,
            kinds,
            local: AtomicPtr::new(std::ptr::null_mut()),
            creating: Lock::new(()),
            locker: OnceLock::new(),
        }));
        super::park::prepare();
        FAMILIES.get_or_init(install).lock().push(family);
        Ok(family)
    }

    /// This process's part, made on first use and made anew in a forked child.
    #[expect(unsafe_code, reason = "reads a pointer that is never freed")]
    pub(crate) fn local_state(&'static self) -> Result<&'static Local> {
        let local = self.local.load(Ordering::Acquire);
        // SAFETY: null, or a box leaked by `set_local`.
        match unsafe { local.as_ref() } {
            Some(local) if local.epoch == epoch::current() => Ok(local),
            before => self.begin(before),
        }
    }

    #[cold]
    fn begin(&'static self, before: Option<&'static Local>) -> Result<&'static Local> {
        let guard = self.creating.lock();
        let current = self.local.load(Ordering::Acquire);
        if before.map_or(std::ptr::null_mut(), |local| {
            std::ptr::from_ref(local).cast_mut()
        }) != current
        {
            drop(guard);
            return self.local_state();
        }
        // A fork that nobody announced: the child is a process of its own, with the parent's attachments.
        let parent = before.map(|local| local.process);
        let process = self.claim_process(ProcState::Alive, parent)?;
        let inherited = before
            .map(|local| local.attachments.lock().inherit())
            .unwrap_or_default();
        let local = self.set_local(process, inherited);
        drop(guard);
        super::object::attach_inherited(self, local)?;
        // The lowest free slot is ours: with so few left it is time to look whether those below live. Once there is none
        // it would be too late, for who sweeps needs a seat.
        if process as usize >= self.processes.len() * 3 / 4 {
            self.sweep(self.me()?);
        }
        Ok(local)
    }

    /// In a child that its parent prepared a slot for: moves in.
    pub(crate) fn take_embryo(&'static self, slot: u32, generation: u32) -> Result<()> {
        if slot as usize >= self.processes.len() {
            return Err(Error::Misuse {
                action: "take up a process slot",
                why: "the family has no slot of this number",
            });
        }
        let inherited = self
            .previous_local()
            .map(|local| local.attachments.lock().inherit())
            .unwrap_or_default();
        // The seat comes first: a process with a living thread is not taken for dead while its slot says nothing of it.
        let me = self.claim_thread(slot)?;
        if !reclaim::hatch(self, slot, generation) {
            self.leave(me, false);
            return Err(Error::Misuse {
                action: "take up a process slot",
                why: "the parent died or gave this child up before it began",
            });
        }
        self.describe_process(slot);
        let local = self.set_local(slot, inherited);
        self.sit(me);
        // The parent set these bits before the fork; what it attached to since then is seen here.
        super::object::attach_inherited(self, local)
    }

    #[expect(unsafe_code, reason = "reads a pointer that is never freed")]
    fn previous_local(&self) -> Option<&'static Local> {
        // SAFETY: null, or a box leaked by `set_local`.
        unsafe { self.local.load(Ordering::Acquire).as_ref() }
    }

    fn set_local(&'static self, process: u32, attachments: Attachments) -> &'static Local {
        let local = Box::leak(Box::new(Local {
            epoch: epoch::current(),
            process,
            heap: Lock::new(Heap::new()),
            attachments: Lock::new(attachments),
            leases: Lock::default(),
        }));
        self.local.store(local, Ordering::Release);
        local
    }

    /// The calling process's slot.
    pub(crate) fn process_slot(&'static self) -> Result<u32> {
        Ok(self.local_state()?.process)
    }

    /// The random number by which the members of a family know each other.
    pub fn id(&self) -> u128 {
        let [high, low] = &self.header.family;
        u128::from(high.load(Ordering::Relaxed)) << 64 | u128::from(low.load(Ordering::Relaxed))
    }

    /// The arena's descriptor.
    pub fn arena(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// In a new member: the family's locker, as it was given.
    pub(crate) fn set_locker(&self, put: OwnedFd, look: OwnedFd) {
        // A process is a member once: a second locker can only be a copy.
        let _ = self.locker.set((put, look));
    }

    /// The ends of the family's locker, where to put and where to look; `None` for who only looks at the arena.
    pub(crate) fn locker(&self) -> Option<(BorrowedFd<'_>, BorrowedFd<'_>)> {
        let (put, look) = self.locker.get()?;
        Some((put.as_fd(), look.as_fd()))
    }

    pub(crate) fn region(&self) -> &'static Region {
        self.region
    }

    pub(crate) fn header(&self) -> &'static Header {
        self.header
    }

    pub(crate) fn processes(&self) -> &'static [ProcSlot] {
        self.processes
    }

    pub(crate) fn threads(&self) -> &'static [ThreadSlot] {
        self.threads
    }

    /// The unit table: what each unit of the arena is.
    pub(crate) fn units(&self) -> &'static [AtomicU64] {
        self.units
    }

    pub(crate) fn kinds(&self) -> &'static [Kind] {
        self.kinds
    }
}

impl std::fmt::Debug for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Family")
            .field("id", &format_args!("{:032x}", self.id()))
            .finish_non_exhaustive()
    }
}

/// All families of this process, for the handlers around a fork.
static FAMILIES: OnceLock<Lock<Vec<&'static Family>>> = OnceLock::new();

/// The list of families, locked.
type Listed = MutexGuard<'static, Vec<&'static Family>>;

/// The locks of one family.
type Guards = (
    MutexGuard<'static, ()>,
    Option<(
        MutexGuard<'static, Heap>,
        MutexGuard<'static, Attachments>,
        MutexGuard<'static, Leases>,
    )>,
);

thread_local! {
    /// Held by the thread that forks, from before the fork until after it, on both sides.
    static HELD: RefCell<Option<(Listed, Vec<Guards>)>> =
        const { RefCell::new(None) };
}

fn install() -> Lock<Vec<&'static Family>> {
    // A fork copies locks as they are: nobody may be inside one of ours just then.
    extern "C" fn before() {
        let Some(families) = FAMILIES.get() else {
            return;
        };
        let families = families.lock();
        let guards = families.iter().map(|family| {
            let creating = family.creating.lock();
            let local = family.previous_local();
            (
                creating,
                local.map(|local| {
                    (
                        local.heap.lock(),
                        local.attachments.lock(),
                        local.leases.lock(),
                    )
                }),
            )
        });
        let guards = guards.collect();
        let _ = HELD.try_with(|held| held.replace(Some((families, guards))));
    }
    extern "C" fn after() {
        let _ = HELD.try_with(|held| held.replace(None));
    }
    process::at_fork(before, after, after);
    Lock::new(Vec::new())
}
