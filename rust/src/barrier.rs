//! A meeting point.

use crate::codec::travels;
use crate::error::Result;
use crate::program::family;
use crate::waiting::{in_time, through_signals};
use procession_core::sync::Barrier as Engine;
use procession_core::{self as core, Deadline};
use std::fmt;
use std::time::Duration;

/// Lets a fixed number of processes, or threads of them, wait for each other, again and again.
///
/// When one that waits dies or gives up, the barrier breaks: all who wait, and all who come, get an error at once, see
/// [`Error::is_broken`](crate::Error::is_broken), until it is [reset](Barrier::reset).
///
/// ```
/// use procession::{Barrier, Process};
///
/// fn meet(barrier: Barrier) -> bool {
///     barrier.wait().unwrap().is_leader()
/// }
///
/// procession::init();
/// let barrier = Barrier::new(3)?;
/// let others = [Process::spawn(meet, (barrier.clone(),))?, Process::spawn(meet, (barrier.clone(),))?];
/// let mut leaders = u32::from(barrier.wait()?.is_leader());
/// for other in others {
///     leaders += u32::from(other.join()?);
/// }
/// assert_eq!(leaders, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Barrier {
    engine: Engine,
}

travels!(
    Barrier,
    "a barrier",
    |barrier| barrier.engine.handle(),
    |family, handle| { Engine::attach(family, handle).map(|engine| Barrier { engine }) }
);

impl Barrier {
    /// Creates a barrier for so many.
    ///
    /// ```
    /// # procession::init();
    /// let barrier = procession::Barrier::new(1)?;
    /// assert!(barrier.wait()?.is_leader());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new(parties: u32) -> Result<Barrier> {
        Ok(Barrier {
            engine: Engine::create(family()?, parties)?,
        })
    }

    /// Waits until all are there.
    pub fn wait(&self) -> Result<BarrierWaitResult> {
        let index = self.wait_until(Deadline::NEVER)?;
        Ok(BarrierWaitResult { index })
    }

    /// Waits until all are there, at most so long. `None` breaks the barrier for the others.
    ///
    /// ```
    /// # procession::init();
    /// let barrier = procession::Barrier::new(2)?;
    /// assert!(barrier.wait_timeout(std::time::Duration::from_millis(5))?.is_none());
    /// assert!(barrier.wait().unwrap_err().is_broken());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<BarrierWaitResult>> {
        let index = in_time(self.wait_until(Deadline::after(timeout)))?;
        Ok(index.map(|index| BarrierWaitResult { index }))
    }

    fn wait_until(&self, deadline: Deadline) -> core::Result<u32> {
        let mut arrival = through_signals(|| self.engine.arrive(deadline))?;
        through_signals(|| arrival.wait(deadline))
    }

    /// Breaks it: who waits, and who comes, gets an error.
    pub fn abort(&self) -> Result<()> {
        Ok(self.engine.abort()?)
    }

    /// Begins anew. Who waits gets an error.
    ///
    /// ```
    /// # procession::init();
    /// let barrier = procession::Barrier::new(1)?;
    /// barrier.abort()?;
    /// assert!(barrier.wait().unwrap_err().is_broken());
    /// barrier.reset()?;
    /// barrier.wait()?;
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn reset(&self) -> Result<()> {
        Ok(self.engine.reset()?)
    }

    /// How many must come.
    pub fn parties(&self) -> u32 {
        self.engine.parties()
    }

    /// How many are there and wait for the others.
    pub fn waiting(&self) -> u32 {
        self.engine.waiting()
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.engine.is_broken()
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

/// As which one a process came to a [`Barrier`].
///
/// ```
/// # procession::init();
/// let result = procession::Barrier::new(1)?.wait()?;
/// assert_eq!((result.index(), result.is_leader()), (0, true));
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarrierWaitResult {
    index: u32,
}

impl BarrierWaitResult {
    /// Whether it is the one among them that does what is to be done once.
    pub fn is_leader(&self) -> bool {
        self.index == 0
    }

    /// Its number among them, from 0; each has another.
    pub fn index(&self) -> u32 {
        self.index
    }
}
