//! A number of permits.

use crate::codec::travels;
use crate::error::Result;
use crate::program::family;
use crate::waiting::{in_time, through_signals};
use procession_core::Deadline;
use procession_core::sync::Semaphore as Engine;
use std::fmt;
use std::time::Duration;

/// A number of permits that processes take and give.
///
/// A permit has no owner: one that a killed process held is gone, unless the semaphore is
/// [robust](SemaphoreBuilder::robust).
///
/// ```
/// use procession::{Process, Semaphore};
///
/// fn use_a_seat(seats: Semaphore) {
///     let _seat = seats.acquire().unwrap();
/// }
///
/// procession::init();
/// let seats = Semaphore::new(2)?;
/// let children: Vec<_> = (0..4).map(|_| Process::spawn(use_a_seat, (seats.clone(),))).collect::<Result<_, _>>()?;
/// for child in children {
///     child.join()?;
/// }
/// assert_eq!(seats.available(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Semaphore {
    engine: Engine,
}

travels!(
    Semaphore,
    "a semaphore",
    |semaphore| semaphore.engine.handle(),
    |family, handle| { Engine::attach(family, handle).map(|engine| Semaphore { engine }) }
);

impl Semaphore {
    /// Creates a semaphore with so many permits.
    ///
    /// ```
    /// # procession::init();
    /// let semaphore = procession::Semaphore::new(1)?;
    /// let permit = semaphore.acquire()?;
    /// assert!(semaphore.try_acquire()?.is_none());
    /// drop(permit);
    /// assert!(semaphore.try_acquire()?.is_some());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new(permits: u32) -> Result<Semaphore> {
        Semaphore::builder(permits).create()
    }

    /// Begins a semaphore that is not as usual.
    ///
    /// ```
    /// # procession::init();
    /// let semaphore = procession::Semaphore::builder(2).max(2).robust().create()?;
    /// assert!(semaphore.release(1).is_err());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn builder(permits: u32) -> SemaphoreBuilder {
        SemaphoreBuilder {
            permits,
            max: None,
            robust: false,
        }
    }

    /// Takes a permit, waiting for one. It is given back when it is dropped.
    pub fn acquire(&self) -> Result<Permit<'_>> {
        through_signals(|| self.engine.acquire(Deadline::NEVER))?;
        Ok(Permit::new(self))
    }

    /// Takes a permit if there is one now.
    pub fn try_acquire(&self) -> Result<Option<Permit<'_>>> {
        Ok(self.engine.try_acquire()?.then(|| Permit::new(self)))
    }

    /// Takes a permit, waiting at most so long for one.
    ///
    /// ```
    /// # procession::init();
    /// let semaphore = procession::Semaphore::new(0)?;
    /// assert!(semaphore.acquire_timeout(std::time::Duration::from_millis(5))?.is_none());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Option<Permit<'_>>> {
        let deadline = Deadline::after(timeout);
        let acquired = in_time(through_signals(|| self.engine.acquire(deadline)))?;
        Ok(acquired.map(|()| Permit::new(self)))
    }

    /// Gives permits that nobody has to have taken.
    ///
    /// Fails when there would be more than there may be; then none is given.
    ///
    /// ```
    /// # procession::init();
    /// let finished = procession::Semaphore::new(0)?;
    /// finished.release(3)?;
    /// assert_eq!(finished.available(), 3);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn release(&self, permits: u32) -> Result<()> {
        Ok(self.engine.release(permits)?)
    }

    /// How many permits are to be had.
    pub fn available(&self) -> u32 {
        self.engine.value()
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

/// A permit of a [`Semaphore`], given back when it is dropped.
///
/// ```
/// # procession::init();
/// let semaphore = procession::Semaphore::new(1)?;
/// semaphore.acquire()?.forget();
/// assert_eq!(semaphore.available(), 0);
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the permit gives it back"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
    process: u32,
}

impl<'a> Permit<'a> {
    fn new(semaphore: &'a Semaphore) -> Permit<'a> {
        Permit {
            semaphore,
            process: std::process::id(),
        }
    }

    /// Keeps the permit for good; [`Semaphore::release`] gives it back, in any process.
    pub fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        // In a forked child it is a copy of its parent's.
        if self.process == std::process::id() {
            let _ = self.semaphore.engine.release(1);
        }
    }
}

/// How a semaphore is to be; from [`Semaphore::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `create`"]
pub struct SemaphoreBuilder {
    permits: u32,
    max: Option<u32>,
    robust: bool,
}

impl SemaphoreBuilder {
    /// The most permits there may be: giving one more is an error.
    pub fn max(mut self, permits: u32) -> SemaphoreBuilder {
        self.max = Some(permits);
        self
    }

    /// Gives back the permits of processes that died. Each operation then costs a lock.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{Process, Semaphore};
    ///
    /// fn die_with_it(semaphore: Semaphore) {
    ///     let _permit = semaphore.acquire().unwrap();
    ///     std::process::abort();
    /// }
    ///
    /// let semaphore = Semaphore::builder(1).robust().create()?;
    /// assert!(Process::spawn(die_with_it, (semaphore.clone(),))?.join().is_err());
    /// let _permit = semaphore.acquire()?;
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn robust(mut self) -> SemaphoreBuilder {
        self.robust = true;
        self
    }

    /// Creates the semaphore.
    pub fn create(self) -> Result<Semaphore> {
        Ok(Semaphore {
            engine: Engine::create(family()?, self.permits, self.max, self.robust)?,
        })
    }
}
