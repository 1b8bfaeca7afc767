//! Shared data behind a lock that its holder's death frees.

use crate::codec::travels;
use crate::error::{Error, Result};
use crate::program::family;
use crate::waiting::{in_time, through_signals};
use bytemuck::{Pod, Zeroable};
use procession_core::shared::{Guarded, GuardedGuard};
use procession_core::{self as core, Deadline};
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// Plain data that one thread at a time, of any process of the family, reads and changes.
///
/// A [guard](MutexGuard) works on a copy of its own and stores it when it is dropped, all or nothing: whoever is killed,
/// whenever, the data is what some guard meant it to be. When the holder died, [`lock`](Mutex::lock) says so once, with a
/// guard to look at the data and repair what it stands for.
///
/// The data is [`Pod`]: numbers, arrays of them, and structs of them that derive it.
///
/// ```
/// use procession::{Mutex, Process};
///
/// #[derive(Clone, Copy, procession::Pod, procession::Zeroable)]
/// #[bytemuck(crate = "procession::bytemuck")]
/// #[repr(C)]
/// struct Account {
///     balance: i64,
///     transfers: u64,
/// }
///
/// fn deposit(account: Mutex<Account>, times: u32) {
///     for _ in 0..times {
///         let mut account = account.lock().unwrap();
///         account.balance += 5;
///         account.transfers += 1;
///     }
/// }
///
/// procession::init();
/// let account = Mutex::new(Account { balance: 0, transfers: 0 })?;
/// let children = [Process::spawn(deposit, (account.clone(), 10))?, Process::spawn(deposit, (account.clone(), 20))?];
/// for child in children {
///     child.join()?;
/// }
/// assert_eq!(account.lock().unwrap().balance, 150);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mutex<T> {
    engine: Guarded,
    data: PhantomData<fn(T) -> T>,
}

travels!(
    Mutex<T>,
    "a mutex",
    |mutex| mutex.engine.handle(),
    |family, handle| {
        let engine = Guarded::attach(family, handle)?;
        if engine.len() != size_of::<T>() as u64 {
            return Err(core::Error::Malformed {
                what: "mutex",
                why: "its data is of another type",
            });
        }
        Ok(Mutex {
            engine,
            data: PhantomData,
        })
    }
);

impl<T: Pod> Mutex<T> {
    /// Creates a free lock with this data.
    ///
    /// ```
    /// # procession::init();
    /// let mutex = procession::Mutex::new([1.0, 2.0])?;
    /// assert_eq!(*mutex.lock().unwrap(), [1.0, 2.0]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new(data: T) -> Result<Mutex<T>> {
        let mutex = Mutex {
            engine: Guarded::create(family()?, size_of::<T>() as u64)?,
            data: PhantomData,
        };
        mutex
            .engine
            .lock(Deadline::NEVER)?
            .commit(bytemuck::bytes_of(&data))?;
        Ok(mutex)
    }

    /// Takes the lock, waiting for it.
    ///
    /// Fails with [`LockError::OwnerDied`] if the holder before died with it: the lock is held then, by the guard in the
    /// error. What the dead one had not stored is not in the data.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{LockError, Mutex, Process};
    ///
    /// fn die_with_it(mutex: Mutex<u32>) {
    ///     let mut guard = mutex.lock().unwrap();
    ///     *guard += 1;
    ///     std::process::abort();
    /// }
    ///
    /// let mutex = Mutex::new(7)?;
    /// assert!(Process::spawn(die_with_it, (mutex.clone(),))?.join().is_err());
    /// match mutex.lock() {
    ///     Err(LockError::OwnerDied(guard)) => assert_eq!(*guard, 7),
    ///     other => panic!("{other:?}"),
    /// }
    /// assert!(mutex.lock().is_ok(), "it is told once");
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn lock(&self) -> Result<MutexGuard<'_, T>, LockError<'_, T>> {
        let held = through_signals(|| self.engine.lock(Deadline::NEVER));
        self.guard(held.map_err(Error::from)?)
    }

    /// Takes the lock if nobody else has it.
    ///
    /// ```
    /// # procession::init();
    /// let mutex = procession::Mutex::new(1)?;
    /// let guard = mutex.try_lock().unwrap().unwrap();
    /// assert!(mutex.try_lock().unwrap().is_none());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn try_lock(&self) -> Result<Option<MutexGuard<'_, T>>, LockError<'_, T>> {
        self.lock_in_time(Deadline::PASSED)
    }

    /// Takes the lock, waiting at most so long for it.
    ///
    /// ```
    /// # procession::init();
    /// let mutex = procession::Mutex::new(1)?;
    /// let guard = mutex.lock().unwrap();
    /// let late = mutex.lock_timeout(std::time::Duration::from_millis(5)).unwrap();
    /// assert!(late.is_none());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn lock_timeout(
        &self,
        timeout: Duration,
    ) -> Result<Option<MutexGuard<'_, T>>, LockError<'_, T>> {
        self.lock_in_time(Deadline::after(timeout))
    }

    fn lock_in_time(
        &self,
        deadline: Deadline,
    ) -> Result<Option<MutexGuard<'_, T>>, LockError<'_, T>> {
        let held = in_time(through_signals(|| self.engine.lock(deadline)));
        match held.map_err(Error::from)? {
            Some(held) => self.guard(held).map(Some),
            None => Ok(None),
        }
    }

    fn guard<'a>(&'a self, held: GuardedGuard<'a>) -> Result<MutexGuard<'a, T>, LockError<'a, T>> {
        let mut data = T::zeroed();
        held.read(bytemuck::bytes_of_mut(&mut data))
            .map_err(Error::from)?;
        let owner_died = held.owner_died();
        let guard = MutexGuard {
            mutex: self,
            data,
            changed: false,
            panicking: std::thread::panicking(),
            held: Some(held),
        };
        if owner_died {
            Err(LockError::OwnerDied(guard))
        } else {
            Ok(guard)
        }
    }
}

impl<T> Clone for Mutex<T> {
    fn clone(&self) -> Mutex<T> {
        Mutex {
            engine: self.engine.clone(),
            data: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mutex").field(&self.engine).finish()
    }
}

/// The data of a locked [`Mutex`], as a copy that is stored when the guard is dropped.
///
/// A panic while the guard is held stores nothing: the data stays as it was, and nobody is poisoned.
///
/// ```
/// # procession::init();
/// let mutex = procession::Mutex::new(1)?;
/// {
///     let mut guard = mutex.lock().unwrap();
///     *guard = 2;
///     guard.commit()?; // stored now, whatever happens to this process from here on
///     *guard = 3;
///     guard.discard(); // and this is not
/// }
/// assert_eq!(*mutex.lock().unwrap(), 2);
/// # Ok::<(), procession::Error>(())
/// ```
#[must_use = "dropping the guard frees the lock"]
pub struct MutexGuard<'a, T: Pod> {
    mutex: &'a Mutex<T>,
    data: T,
    changed: bool,
    /// Whether the thread was panicking already when it took the lock.
    panicking: bool,
    /// There until the guard is dropped.
    held: Option<GuardedGuard<'a>>,
}

impl<'a, T: Pod> MutexGuard<'a, T> {
    /// Stores the data as it is, all or nothing, and keeps the lock.
    pub fn commit(&mut self) -> Result<()> {
        if let Some(held) = &mut self.held {
            held.commit(bytemuck::bytes_of(&self.data))?;
        }
        self.changed = false;
        Ok(())
    }

    /// Frees the lock without storing what was not committed.
    pub fn discard(mut self) {
        self.changed = false;
    }

    pub(crate) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T: Pod> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T: Pod> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        &mut self.data
    }
}

impl<T: Pod> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.changed && std::thread::panicking() == self.panicking {
            // Fails only for the copy of a guard in a forked child, whose the lock is not.
            let _ = self.commit();
        }
        self.held = None;
    }
}

impl<T: Pod + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}

/// Why a lock was not taken, or what there is to know before it is used.
///
/// ```
/// # procession::init();
/// use procession::{LockError, Mutex};
///
/// let mutex = Mutex::new(1)?;
/// let guard = mutex.lock().or_else(LockError::repair).unwrap();
/// assert_eq!(*guard, 1);
/// # Ok::<(), procession::Error>(())
/// ```
pub enum LockError<'a, T: Pod> {
    /// The holder before died with it. The lock is held, by this guard.
    OwnerDied(MutexGuard<'a, T>),
    /// It was not taken.
    Failed(Error),
}

impl<'a, T: Pod> LockError<'a, T> {
    /// The guard, if the lock is held.
    pub fn into_guard(self) -> Result<MutexGuard<'a, T>> {
        match self {
            LockError::OwnerDied(guard) => Ok(guard),
            LockError::Failed(error) => Err(error),
        }
    }
}

impl<'a, T: Repair> LockError<'a, T> {
    /// The guard, with the data repaired and stored.
    ///
    /// ```
    /// # procession::init();
    /// use procession::{LockError, Mutex, Process, Repair};
    ///
    /// #[derive(Clone, Copy, procession::Pod, procession::Zeroable)]
    /// #[bytemuck(crate = "procession::bytemuck")]
    /// #[repr(C)]
    /// struct Work {
    ///     begun: u32,
    ///     done: u32,
    /// }
    ///
    /// impl Repair for Work {
    ///     fn repair(&mut self) {
    ///         self.begun = self.done;
    ///     }
    /// }
    ///
    /// fn begin_and_die(work: Mutex<Work>) {
    ///     let mut work = work.lock().unwrap();
    ///     work.begun += 1;
    ///     work.commit().unwrap();
    ///     std::process::abort();
    /// }
    ///
    /// let work = Mutex::new(Work { begun: 0, done: 0 })?;
    /// assert!(Process::spawn(begin_and_die, (work.clone(),))?.join().is_err());
    /// let guard = work.lock().or_else(LockError::repair).unwrap();
    /// assert_eq!((guard.begun, guard.done), (0, 0));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn repair(self) -> Result<MutexGuard<'a, T>, LockError<'a, T>> {
        let mut guard = self.into_guard()?;
        guard.data.repair();
        guard.commit()?;
        Ok(guard)
    }
}

impl<T: Pod> fmt::Debug for LockError<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::OwnerDied(_) => f.write_str("OwnerDied(..)"),
            LockError::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

impl<T: Pod> fmt::Display for LockError<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::OwnerDied(_) => Error::OwnerDied.fmt(f),
            LockError::Failed(error) => error.fmt(f),
        }
    }
}

impl<T: Pod> std::error::Error for LockError<'_, T> {}

impl<T: Pod> From<Error> for LockError<'_, T> {
    fn from(error: Error) -> Self {
        LockError::Failed(error)
    }
}

impl<T: Pod> From<LockError<'_, T>> for Error {
    fn from(error: LockError<'_, T>) -> Error {
        match error {
            LockError::OwnerDied(_) => Error::OwnerDied,
            LockError::Failed(error) => error,
        }
    }
}

/// Data that knows how to become right after a holder of its lock died.
///
/// The data is whole anyway: what some guard stored last. To repair is to mend what that stands for, such as a promise
/// that the dead one will not keep. The default mends nothing.
///
/// ```
/// #[derive(Clone, Copy, procession::Pod, procession::Zeroable)]
/// #[bytemuck(crate = "procession::bytemuck")]
/// #[repr(transparent)]
/// struct Busy(u32);
///
/// impl procession::Repair for Busy {
///     fn repair(&mut self) {
///         self.0 = 0;
///     }
/// }
/// # let mut busy = Busy(1);
/// # procession::Repair::repair(&mut busy);
/// # assert_eq!(busy.0, 0);
/// ```
pub trait Repair: Pod {
    /// Mends the data; the lock is held.
    fn repair(&mut self) {}
}

macro_rules! plain {
    ($($number:ty)*) => {$( impl Repair for $number {} )*};
}

plain! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64 }

impl<T: Repair, const N: usize> Repair for [T; N]
where
    [T; N]: Zeroable + Pod,
{
    fn repair(&mut self) {
        self.iter_mut().for_each(T::repair);
    }
}
