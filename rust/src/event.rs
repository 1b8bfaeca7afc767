//! A flag that many wait for.

use crate::codec::travels;
use crate::error::Result;
use crate::program::family;
use crate::waiting::{in_time, through_signals};
use procession_core::sync::Event as Engine;
use procession_core::{self as core, Deadline};
use std::fmt;
use std::time::Duration;

/// A flag that many processes wait for; it stays set until somebody clears it.
///
/// ```
/// use procession::{Event, Process};
///
/// fn runner(go: Event) -> String {
///     go.wait().unwrap();
///     "gone".to_string()
/// }
///
/// procession::init();
/// let go = Event::new()?;
/// let child = Process::spawn(runner, (go.clone(),))?;
/// go.set()?;
/// assert_eq!(child.join()?, "gone");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Event {
    engine: Engine,
}

travels!(
    Event,
    "an event",
    |event| event.engine.handle(),
    |family, handle| { Engine::attach(family, handle).map(|engine| Event { engine }) }
);

impl Event {
    /// Creates an event that is not set.
    ///
    /// ```
    /// # procession::init();
    /// let event = procession::Event::new()?;
    /// assert!(!event.is_set());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn new() -> Result<Event> {
        Ok(Event {
            engine: Engine::create(family()?)?,
        })
    }

    /// Sets it, and lets all go on who wait.
    pub fn set(&self) -> Result<()> {
        Ok(self.engine.set()?)
    }

    /// Clears it. Who waited while it was set goes on all the same.
    ///
    /// ```
    /// # procession::init();
    /// let event = procession::Event::new()?;
    /// event.set()?;
    /// event.clear()?;
    /// assert!(!event.is_set());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn clear(&self) -> Result<()> {
        Ok(self.engine.clear()?)
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.engine.is_set()
    }

    /// Waits until it is set, or was since the call began.
    pub fn wait(&self) -> Result<()> {
        Ok(self.wait_until(Deadline::NEVER)?)
    }

    /// Waits until it is set, at most so long; whether it was.
    ///
    /// ```
    /// # procession::init();
    /// let event = procession::Event::new()?;
    /// assert!(!event.wait_timeout(std::time::Duration::from_millis(5))?);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        Ok(in_time(self.wait_until(Deadline::after(timeout)))?.is_some())
    }

    fn wait_until(&self, deadline: Deadline) -> core::Result<()> {
        let moment = self.engine.moment();
        through_signals(|| self.engine.wait_since(moment, deadline))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}
