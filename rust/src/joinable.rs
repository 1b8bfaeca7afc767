//! Queues that know when the work is done.

use crate::codec::{self, travels};
use crate::error::Result;
use crate::program::family;
use crate::queue::{self, PutError};
use crate::waiting::{in_time, through_signals};
use procession_core::{self as core, Deadline, Message, OnDeath};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// A [`Queue`](crate::Queue) that counts what is not done yet, and can wait until all is.
///
/// Getting gives a [`Delivery`], which says when it is done. What happens to one whose reader dies with it is chosen
/// where the queue is created: by default it is gone, and counts as done; with
/// [`redeliver`](JoinableQueueBuilder::redeliver) another reader gets it.
///
/// ```
/// use procession::{JoinableQueue, Process};
///
/// fn work(tasks: JoinableQueue<String>) {
///     for task in &tasks {
///         let task = task.unwrap();
///         println!("doing {}", *task);
///         task.done().unwrap();
///     }
/// }
///
/// procession::init();
/// let tasks = JoinableQueue::unbounded()?;
/// let worker = Process::spawn(work, (tasks.clone(),))?;
/// tasks.put("the dishes".to_string())?;
/// tasks.put("the windows".to_string())?;
/// tasks.join()?;
/// assert_eq!(tasks.unfinished(), 0);
/// tasks.close()?;
/// worker.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct JoinableQueue<T> {
    engine: core::Queue,
    values: PhantomData<fn(T) -> T>,
}

travels!(
    JoinableQueue<T>,
    "a queue",
    |queue| queue.engine.handle(),
    |family, handle| { core::Queue::attach(family, handle).map(JoinableQueue::over) }
);

impl<T> JoinableQueue<T> {
    /// Creates a queue without a limit.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::unbounded()?;
    /// queue.put(1)?;
    /// assert_eq!(queue.unfinished(), 1);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn unbounded() -> Result<JoinableQueue<T>> {
        JoinableQueue::builder().create()
    }

    /// Creates a queue with room for so many values; at least one.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::bounded(1)?;
    /// queue.put(1)?;
    /// assert!(queue.try_put(2).unwrap_err().is_full());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn bounded(capacity: usize) -> Result<JoinableQueue<T>> {
        JoinableQueue::builder().bounded(capacity).create()
    }

    /// Begins a queue that is not as usual.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::builder().bounded(100).redeliver().create()?;
    /// queue.put(1)?;
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn builder() -> JoinableQueueBuilder<T> {
        JoinableQueueBuilder {
            options: core::Options {
                joinable: true,
                ..Default::default()
            },
            values: PhantomData,
        }
    }

    fn over(engine: core::Queue) -> JoinableQueue<T> {
        JoinableQueue {
            engine,
            values: PhantomData,
        }
    }

    /// Waits until everything that was put is done.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::unbounded()?;
    /// queue.put(1)?;
    /// assert_eq!(queue.get()?.done()?, 1);
    /// queue.join()?;
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn join(&self) -> Result<()> {
        Ok(through_signals(|| self.engine.join(Deadline::NEVER))?)
    }

    /// Waits until everything that was put is done, at most so long; whether it is.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::unbounded()?;
    /// queue.put(1)?;
    /// assert!(!queue.join_timeout(std::time::Duration::from_millis(5))?);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        let deadline = Deadline::after(timeout);
        let joined = in_time(through_signals(|| self.engine.join(deadline)))?;
        Ok(joined.is_some())
    }

    /// How many values were put and are not done.
    pub fn unfinished(&self) -> usize {
        self.engine.unfinished() as usize
    }

    /// How many values are inside, exactly; those that somebody works on are not.
    pub fn len(&self) -> usize {
        self.engine.len()
    }

    /// Whether there is none inside.
    pub fn is_empty(&self) -> bool {
        self.engine.is_empty()
    }

    /// Whether as many are inside as there may be.
    pub fn is_full(&self) -> bool {
        self.engine.is_full()
    }

    /// How many may be inside; `None` without limit.
    pub fn capacity(&self) -> Option<usize> {
        self.engine.max_items().map(|max| max as usize)
    }

    /// Refuses further values; those inside can still be got.
    pub fn close(&self) -> Result<()> {
        Ok(self.engine.close()?)
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.engine.is_closed()
    }
}

impl<T: Serialize> JoinableQueue<T> {
    /// Puts a value at the tail, waiting for room.
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        queue::put(&self.engine, value, Deadline::NEVER)
    }

    /// Puts a value if there is room now.
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        queue::put(&self.engine, value, Deadline::PASSED)
    }

    /// Puts a value, waiting at most so long for room.
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
        queue::put(&self.engine, value, Deadline::after(timeout))
    }

    /// Puts values in order, a batch at a time, waiting for room. The error has those in it that were not put.
    pub fn put_all(&self, values: impl IntoIterator<Item = T>) -> Result<(), PutError<Vec<T>>> {
        queue::put_all(&self.engine, values)
    }
}

impl<T: DeserializeOwned> JoinableQueue<T> {
    /// Takes the value at the head, waiting for one. Fails when none will come any more.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::unbounded()?;
    /// queue.put(1)?;
    /// let delivery = queue.get()?;
    /// assert_eq!(*delivery, 1);
    /// delivery.done()?;
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn get(&self) -> Result<Delivery<T>> {
        let message = through_signals(|| self.engine.get(Deadline::NEVER))?;
        Delivery::new(self.engine.clone(), message)
    }

    /// Takes the value at the head if there is one now.
    pub fn try_get(&self) -> Result<Option<Delivery<T>>> {
        self.get_in_time(Deadline::PASSED)
    }

    /// Takes the value at the head, waiting at most so long for one.
    pub fn get_timeout(&self, timeout: Duration) -> Result<Option<Delivery<T>>> {
        self.get_in_time(Deadline::after(timeout))
    }

    /// The values as they come, until the queue is closed and empty.
    pub fn iter(&self) -> Deliveries<'_, T> {
        Deliveries { queue: self }
    }

    fn get_in_time(&self, deadline: Deadline) -> Result<Option<Delivery<T>>> {
        match in_time(through_signals(|| self.engine.get(deadline)))? {
            Some(message) => Delivery::new(self.engine.clone(), message).map(Some),
            None => Ok(None),
        }
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> JoinableQueue<T> {
        JoinableQueue::over(self.engine.clone())
    }
}

impl<T> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a JoinableQueue<T> {
    type Item = Result<Delivery<T>>;
    type IntoIter = Deliveries<'a, T>;

    fn into_iter(self) -> Deliveries<'a, T> {
        self.iter()
    }
}

/// The values of a joinable queue as they come; from [`JoinableQueue::iter`].
#[derive(Debug)]
pub struct Deliveries<'a, T> {
    queue: &'a JoinableQueue<T>,
}

impl<T: DeserializeOwned> Iterator for Deliveries<'_, T> {
    type Item = Result<Delivery<T>>;

    fn next(&mut self) -> Option<Result<Delivery<T>>> {
        match self.queue.get() {
            Err(error) if error.is_closed() => None,
            delivery => Some(delivery),
        }
    }
}

impl<T: DeserializeOwned> FusedIterator for Deliveries<'_, T> {}

/// A value that somebody works on.
///
/// [`done`](Delivery::done) says that the work on it is finished. Dropping it without a word is what the death of its
/// reader is: from a queue that [redelivers](JoinableQueueBuilder::redeliver), another reader gets it; from others it is
/// gone, and counts as done.
///
/// ```
/// # procession::init();
/// let queue = procession::JoinableQueue::builder().redeliver().create()?;
/// queue.put("work".to_string())?;
/// drop(queue.get()?);
/// let again = queue.get()?;
/// assert_eq!(again.done()?, "work");
/// # Ok::<(), procession::Error>(())
/// ```
#[must_use = "a delivery that is dropped counts as one whose reader died"]
pub struct Delivery<T> {
    /// Gone once it is done.
    parts: Option<Parts<T>>,
}

struct Parts<T> {
    value: T,
    message: Message,
    engine: core::Queue,
}

impl<T: DeserializeOwned> Delivery<T> {
    fn new(engine: core::Queue, message: Message) -> Result<Delivery<T>> {
        match codec::decode_message(&message) {
            Ok(value) => Ok(Delivery {
                parts: Some(Parts {
                    value,
                    message,
                    engine,
                }),
            }),
            Err(error) => {
                // Nobody else could read it either.
                let _ = engine.done(&message);
                Err(error)
            }
        }
    }
}

impl<T> Delivery<T> {
    /// Says that the work on it is finished, and gives the value.
    pub fn done(mut self) -> Result<T> {
        let parts = self.take_parts();
        parts.engine.done(&parts.message)?;
        Ok(parts.value)
    }

    /// Puts it at the end of the queue again, for another reader.
    pub fn give_back(mut self) -> Result<()> {
        let parts = self.take_parts();
        Ok(parts.engine.give_back(parts.message)?)
    }

    fn take_parts(&mut self) -> Parts<T> {
        self.parts.take().expect("there until it is done")
    }

    fn parts(&self) -> &Parts<T> {
        self.parts.as_ref().expect("there until it is done")
    }
}

impl<T> Drop for Delivery<T> {
    fn drop(&mut self) {
        let Some(parts) = self.parts.take() else {
            return;
        };
        // In a forked child, whose copy is not on loan to it, this does nothing. Should it fail otherwise, the message is on loan until this process ends, and then the same comes to pass.
        let _ = if parts.engine.redelivers() {
            parts.engine.give_back(parts.message)
        } else {
            parts.engine.done(&parts.message)
        };
    }
}

impl<T> Deref for Delivery<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.parts().value
    }
}

impl<T> DerefMut for Delivery<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.parts.as_mut().expect("there until it is done").value
    }
}

impl<T: fmt::Debug> fmt::Debug for Delivery<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Delivery").field(&**self).finish()
    }
}

/// How a joinable queue is to be; from [`JoinableQueue::builder`].
#[must_use = "a builder does nothing until `create`"]
pub struct JoinableQueueBuilder<T> {
    options: core::Options,
    values: PhantomData<fn(T) -> T>,
}

impl<T> JoinableQueueBuilder<T> {
    /// Room for so many values; at least one.
    pub fn bounded(mut self, capacity: usize) -> JoinableQueueBuilder<T> {
        self.options.max_items = Some(capacity.max(1) as u64);
        self
    }

    /// A value whose reader died or dropped it goes to another reader.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::JoinableQueue::builder().redeliver().create()?;
    /// queue.put(1)?;
    /// drop(queue.get()?);
    /// assert_eq!(queue.len(), 1);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn redeliver(mut self) -> JoinableQueueBuilder<T> {
        self.options.on_death = OnDeath::Redeliver;
        self
    }

    /// Creates the queue.
    pub fn create(self) -> Result<JoinableQueue<T>> {
        Ok(JoinableQueue::over(core::Queue::create(
            family()?,
            &self.options,
        )?))
    }
}

impl<T> fmt::Debug for JoinableQueueBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JoinableQueueBuilder")
            .field(&self.options)
            .finish()
    }
}
