//! Waiting for data to change.

use crate::codec::travels;
use crate::error::{Error, Result};
use crate::mutex::{LockError, MutexGuard};
use crate::program::family;
use crate::waiting::{in_time, through_signals};
use bytemuck::Pod;
use procession_core::Deadline;
use procession_core::sync::Condition;
use std::fmt;
use std::time::Duration;

/// Lets those who hold a [`Mutex`](crate::Mutex) wait until another process has changed what they wait for.
///
/// A waiter that is killed blocks nobody, and takes no notification with it.
///
/// ```
/// use procession::{Condvar, Mutex, Process};
///
/// fn make_ready(ready: Mutex<u8>, changed: Condvar) {
///     *ready.lock().unwrap() = 1;
///     changed.notify_all().unwrap();
/// }
///
/// procession::init();
/// let (ready, changed) = (Mutex::new(0)?, Condvar::new()?);
/// let child = Process::spawn(make_ready, (ready.clone(), changed.clone()))?;
/// let guard = changed.wait_while(ready.lock().unwrap(), |ready| *ready == 0).unwrap();
/// assert_eq!(*guard, 1);
/// # child.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Condvar {
    engine: Condition,
}

travels!(
    Condvar,
    "a condition variable",
    |condvar| condvar.engine.handle(),
    |family, handle| { Condition::attach(family, handle).map(|engine| Condvar { engine }) }
);

impl Condvar {
    /// Creates one that nobody waits for.
    ///
    /// ```
    /// # procession::init();
    /// let condvar = procession::Condvar::new()?;
    /// assert_eq!(condvar.notify_all()?, 0);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new() -> Result<Condvar> {
        Ok(Condvar {
            engine: Condition::create(family()?)?,
        })
    }

    /// Stores the guard's data, frees its lock, waits until notified, and takes the lock again.
    ///
    /// Between the notification and the lock others may have been there: look again, or use
    /// [`wait_while`](Condvar::wait_while). Errors as [`Mutex::lock`](crate::Mutex::lock).
    pub fn wait<'a, T: Pod>(
        &self,
        guard: MutexGuard<'a, T>,
    ) -> Result<MutexGuard<'a, T>, LockError<'a, T>> {
        self.wait_until(guard, Deadline::NEVER)
            .map(|(guard, _)| guard)
    }

    /// [`wait`](Condvar::wait) for at most so long; also whether it was notified.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{Condvar, Mutex};
    ///
    /// let (mutex, condvar) = (Mutex::new(0)?, Condvar::new()?);
    /// let guard = mutex.lock().unwrap();
    /// let (guard, notified) = condvar.wait_timeout(guard, std::time::Duration::from_millis(5)).unwrap();
    /// assert_eq!((*guard, notified), (0, false));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn wait_timeout<'a, T: Pod>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> Result<(MutexGuard<'a, T>, bool), LockError<'a, T>> {
        self.wait_until(guard, Deadline::after(timeout))
    }

    /// Waits for as long as `condition` holds.
    pub fn wait_while<'a, T: Pod>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Result<MutexGuard<'a, T>, LockError<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Waits for as long as `condition` holds, and at most so long; also whether it holds no more.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{Condvar, Mutex};
    /// use std::time::Duration;
    ///
    /// let (mutex, condvar) = (Mutex::new(0)?, Condvar::new()?);
    /// let guard = mutex.lock().unwrap();
    /// let answer = condvar.wait_timeout_while(guard, Duration::from_millis(5), |number| *number == 0);
    /// assert!(!answer.unwrap().1);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn wait_timeout_while<'a, T: Pod>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> Result<(MutexGuard<'a, T>, bool), LockError<'a, T>> {
        let deadline = Deadline::after(timeout);
        while condition(&mut guard) {
            if deadline.has_passed() {
                return Ok((guard, false));
            }
            (guard, _) = self.wait_until(guard, deadline)?;
        }
        Ok((guard, true))
    }

    fn wait_until<'a, T: Pod>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Deadline,
    ) -> Result<(MutexGuard<'a, T>, bool), LockError<'a, T>> {
        let mutex = guard.mutex();
        let mut waiter = self.engine.register().map_err(Error::from)?;
        drop(guard);
        let notified = in_time(through_signals(|| waiter.wait(deadline)));
        let notified = notified.map_err(Error::from)?.is_some();
        let guard = mutex.lock()?;
        // Not before the lock is held again: should this process die waiting for it, another gets the notification.
        drop(waiter);
        Ok((guard, notified))
    }

    /// Notifies one who waits, the one who has waited longest; whether there was one.
    pub fn notify_one(&self) -> Result<bool> {
        Ok(self.engine.notify(1)? > 0)
    }

    /// Notifies all who wait; how many there were.
    pub fn notify_all(&self) -> Result<u32> {
        Ok(self.engine.notify_all()?)
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Condvar")
            .field("waiting", &self.engine.waiting())
            .finish()
    }
}
