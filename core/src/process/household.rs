//! What a process keeps of its own life and its children's. A forked child begins with an empty one.

use super::bootstrap::Parent;
use super::child::{Child, Entry};
use super::kept::{self, Kept};
use super::zygote::{Link, Prelude};
use crate::deadline::Deadline;
use crate::error::Result;
use crate::memory::epoch;
use crate::sys::poll::{self, Interest};
use crate::sys::process;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What a process keeps. Never locked across a wait, a fork, or an operation on the arena.
#[derive(Debug, Default)]
pub(crate) struct Household {
    epoch: u32,
    /// Children whose end was not seen yet, also those that the program dropped: nobody becomes a zombie.
    pub(super) children: Vec<Arc<Entry>>,
    /// Who started this process.
    pub(super) parent: Option<Arc<Parent>>,
    /// The read end, armed: held open for as long as the process lives.
    pub(super) lifeline: Option<Kept>,
    /// This process by descriptor, given to its children.
    pub(super) own: Option<Arc<Kept>>,
    /// The zygotes that this process started, one for each family.
    pub(super) zygotes: Vec<Arc<Link>>,
    /// What zygotes start with. The one thing that a forked child inherits.
    pub(super) prelude: Option<Prelude>,
}

static HOUSEHOLD: Mutex<Option<Household>> = Mutex::new(None);

/// The calling process's household.
pub(super) fn household<R>(work: impl FnOnce(&mut Household) -> R) -> R {
    static HANDLERS: OnceLock<()> = OnceLock::new();
    HANDLERS.get_or_init(install);
    let mut guard = lock();
    work(own(&mut guard))
}

fn own<'a>(guard: &'a mut MutexGuard<'_, Option<Household>>) -> &'a mut Household {
    let epoch = epoch::current();
    let mut prelude = None;
    if guard.as_ref().is_some_and(|found| found.epoch != epoch)
        && let Some(mut copied) = guard.take()
    {
        prelude = copied.prelude.take();
        // The rest is the parent's: none of it is ours to drop.
        std::mem::forget(copied);
    }
    guard.get_or_insert_with(|| Household {
        epoch,
        prelude,
        ..Household::default()
    })
}

fn lock() -> MutexGuard<'static, Option<Household>> {
    HOUSEHOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

thread_local! {
    /// Held by the thread that forks, from before the fork until after it, on both sides.
    static HELD: RefCell<Option<MutexGuard<'static, Option<Household>>>> = const { RefCell::new(None) };
}

/// A fork copies locks as they are: nobody may be inside one of ours just then.
///
/// Why the standard library's locks, and not parking_lot's? Those have a table of sleepers beside the lock, which a fork
/// may copy while another thread is changing it.
fn install() {
    extern "C" fn before() {
        let guard = lock();
        let _ = HELD.try_with(|held| held.replace(Some(guard)));
        kept::before_fork();
    }
    extern "C" fn parent() {
        kept::after_fork();
        let _ = HELD.try_with(|held| held.replace(None));
    }
    extern "C" fn child() {
        kept::close_copies();
        let _ = HELD.try_with(|held| held.replace(None));
    }
    process::at_fork(before, parent, child);
}

/// This process by descriptor: readable once it ended.
pub(super) fn own_descriptor() -> Result<Arc<Kept>> {
    if let Some(own) = household(|house| house.own.clone()) {
        return Ok(own);
    }
    let made = Arc::new(Kept::make(|| process::pidfd(process::pid()))?);
    Ok(household(|house| house.own.get_or_insert(made).clone()))
}

/// Notes a child that runs.
pub(super) fn adopt(entry: &Arc<Entry>) {
    household(|house| house.children.push(Arc::clone(entry)));
}

/// Forgets a child whose end was seen.
pub(super) fn forget(entry: &Arc<Entry>) {
    household(|house| house.children.retain(|known| !Arc::ptr_eq(known, entry)));
}

/// Collects the children that ended, also those that nobody holds any more.
pub(super) fn collect_ended() {
    let known = household(|house| house.children.clone());
    let watched: Vec<_> = known
        .iter()
        .map(|entry| (entry.pidfd().as_fd(), Interest::Readable))
        .collect();
    let Ok(ended) = poll::wait(&watched, Deadline::PASSED) else {
        // The next one to come by sees them as well.
        return;
    };
    for index in ended {
        // Who asks for this child will get the error; whoever starts another is not concerned.
        let _ = Child::of(Arc::clone(&known[index])).poll();
    }
}

/// The children of this process that run, in the order in which they were started. Those that ended are collected.
///
/// ```
/// assert!(procession_core::process::active_children().is_empty());
/// ```
pub fn active_children() -> Vec<Child> {
    collect_ended();
    let known = household(|house| house.children.clone());
    let shown = known.into_iter().filter(|entry| !entry.is_zygote());
    shown.map(Child::of).collect()
}

/// Ends the household at the end of a program: asks daemonic children to end, waits for the others.
///
/// Daemonic children get SIGTERM, and SIGKILL at the deadline. The others are waited for however long they take.
/// Detached children are left alone, and so are the children of other processes. After
/// [`Interrupted`](crate::Error::Interrupted), calling again goes on.
///
/// ```
/// procession_core::process::finish(procession_core::Deadline::PASSED)?;
/// # Ok::<(), procession_core::Error>(())
/// ```
pub fn finish(deadline_for_daemons: Deadline) -> Result<()> {
    let children = active_children();
    let attached = || children.iter().filter(|child| !child.is_detached());
    for child in attached().filter(|child| child.is_daemon()) {
        child.terminate()?;
    }
    for child in attached().filter(|child| !child.is_daemon()) {
        child.join(Deadline::NEVER)?;
    }
    for child in attached().filter(|child| child.is_daemon()) {
        match child.join(deadline_for_daemons) {
            Err(e) if e.is_timeout() => {
                child.kill()?;
                child.join(Deadline::NEVER)?;
            }
            ended => drop(ended?),
        }
    }
    let zygotes = household(|house| std::mem::take(&mut house.zygotes));
    for zygote in zygotes {
        zygote.end()?;
    }
    Ok(())
}
