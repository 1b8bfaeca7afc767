//! Queues of values: many writers, many readers, any process of the family.

use crate::codec::{self, travels};
use crate::error::{Error, Result};
use crate::program::family;
use crate::waiting::{in_time, through_signals};
use procession_core::{self as core, Deadline, Outgoing};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::time::Duration;

/// A queue of values between any processes of the family.
///
/// Clones are the same queue; it can be sent to other processes as an argument, through another queue, or in any other
/// way, and lives for as long as somebody holds it. What was put stays put, also when its writer is killed just after;
/// what a reader was killed with is gone with it, see [`JoinableQueue`](crate::JoinableQueue) for another way.
///
/// ```
/// use procession::{Process, Queue};
///
/// fn count(to: u32, out: Queue<u32>) {
///     (0..to).for_each(|number| out.put(number).unwrap());
///     out.close().unwrap();
/// }
///
/// procession::init();
/// let queue = Queue::bounded(2)?;
/// let child = Process::spawn(count, (4, queue.clone()))?;
/// let numbers: Vec<u32> = queue.iter().collect::<Result<_, _>>()?;
/// assert_eq!(numbers, [0, 1, 2, 3]);
/// child.join()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Queue<T> {
    engine: core::Queue,
    values: PhantomData<fn(T) -> T>,
}

travels!(
    Queue<T>,
    "a queue",
    |queue| queue.engine.handle(),
    |family, handle| { core::Queue::attach(family, handle).map(Queue::over) }
);

impl<T> Queue<T> {
    /// Creates a queue without a limit: putting never waits.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put("any number of these".to_string())?;
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn unbounded() -> Result<Queue<T>> {
        Queue::create(&core::Options::default())
    }

    /// Creates a queue with room for so many values; at least one.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::bounded(1)?;
    /// queue.put(1)?;
    /// assert!(queue.is_full());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn bounded(capacity: usize) -> Result<Queue<T>> {
        Queue::create(&core::Options {
            max_items: Some(capacity.max(1) as u64),
            ..Default::default()
        })
    }

    fn create(options: &core::Options) -> Result<Queue<T>> {
        Ok(Queue::over(core::Queue::create(family()?, options)?))
    }

    fn over(engine: core::Queue) -> Queue<T> {
        Queue {
            engine,
            values: PhantomData,
        }
    }

    /// How many values are inside, exactly.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put_all(["a".to_string(), "b".to_string()])?;
    /// assert_eq!((queue.len(), queue.is_empty()), (2, false));
    /// # Ok::<(), procession::Error>(())
    /// ```
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

    /// Refuses further values. Those inside can still be got; after them, getting fails, and iterating ends.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put(1)?;
    /// queue.close()?;
    /// assert_eq!(queue.put(2).unwrap_err().value, 2);
    /// assert_eq!(queue.get()?, 1);
    /// assert!(queue.get().unwrap_err().is_closed());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn close(&self) -> Result<()> {
        Ok(self.engine.close()?)
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.engine.is_closed()
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts a value at the tail, waiting for room.
    ///
    /// The value is encoded here and now: an error is the caller's, and has the value in it.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put(vec![1.5, 2.5])?;
    /// assert_eq!(queue.get()?, [1.5, 2.5]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_until(value, Deadline::NEVER)
    }

    /// Puts a value if there is room now.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::bounded(1)?;
    /// queue.try_put('a')?;
    /// let error = queue.try_put('b').unwrap_err();
    /// assert!(error.is_full());
    /// assert_eq!(error.value, 'b');
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn try_put(&self, value: T) -> Result<(), PutError<T>> {
        self.put_until(value, Deadline::PASSED)
    }

    /// Puts a value, waiting at most so long for room.
    ///
    /// ```
    /// # procession::init();
    /// use std::time::Duration;
    ///
    /// let queue = procession::Queue::bounded(1)?;
    /// queue.put('a')?;
    /// let error = queue.put_timeout('b', Duration::from_millis(5)).unwrap_err();
    /// assert!(error.is_full());
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn put_timeout(&self, value: T, timeout: Duration) -> Result<(), PutError<T>> {
        self.put_until(value, Deadline::after(timeout))
    }

    fn put_until(&self, value: T, deadline: Deadline) -> Result<(), PutError<T>> {
        put(&self.engine, value, deadline)
    }

    /// Puts values in order, a batch at a time rather than each by itself, waiting for room. The error has those in it
    /// that were not put.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put_all(0..1000)?;
    /// assert_eq!(queue.len(), 1000);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn put_all(&self, values: impl IntoIterator<Item = T>) -> Result<(), PutError<Vec<T>>> {
        put_all(&self.engine, values)
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the value at the head, waiting for one.
    ///
    /// Fails when none will come any more, because the queue was closed; see [`Error::is_closed`].
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put(("seven".to_string(), 7))?;
    /// assert_eq!(queue.get()?, ("seven".to_string(), 7));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn get(&self) -> Result<T> {
        self.get_until(Deadline::NEVER)
    }

    /// Takes the value at the head if there is one now.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::<i32>::unbounded()?;
    /// assert_eq!(queue.try_get()?, None);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn try_get(&self) -> Result<Option<T>> {
        self.get_in_time(Deadline::PASSED)
    }

    /// Takes the value at the head, waiting at most so long for one.
    ///
    /// ```
    /// # procession::init();
    /// use std::time::Duration;
    ///
    /// let queue = procession::Queue::<i32>::unbounded()?;
    /// assert_eq!(queue.get_timeout(Duration::from_millis(5))?, None);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn get_timeout(&self, timeout: Duration) -> Result<Option<T>> {
        self.get_in_time(Deadline::after(timeout))
    }

    /// Takes up to `most` values at once, waiting for the first only.
    ///
    /// Each is a result of its own: one that cannot be decoded takes no other with it.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put_all([1, 2, 3])?;
    /// let numbers: Vec<i32> = queue.get_many(10)?.into_iter().collect::<Result<_, _>>()?;
    /// assert_eq!(numbers, [1, 2, 3]);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn get_many(&self, most: usize) -> Result<Vec<Result<T>>> {
        let messages = through_signals(|| self.engine.get_many(most, Deadline::NEVER))?;
        Ok(messages.iter().map(codec::decode_message).collect())
    }

    /// The values as they come, until the queue is closed and empty.
    ///
    /// ```
    /// # procession::init();
    /// let queue = procession::Queue::unbounded()?;
    /// queue.put_all([3, 4])?;
    /// queue.close()?;
    /// let sum: i32 = queue.iter().sum::<Result<i32, _>>()?;
    /// assert_eq!(sum, 7);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { queue: self }
    }

    fn get_in_time(&self, deadline: Deadline) -> Result<Option<T>> {
        match in_time(through_signals(|| self.engine.get(deadline)))? {
            Some(message) => codec::decode_message(&message).map(Some),
            None => Ok(None),
        }
    }

    fn get_until(&self, deadline: Deadline) -> Result<T> {
        codec::decode_message(&through_signals(|| self.engine.get(deadline))?)
    }
}

/// Puts a value into a queue of either kind.
pub(crate) fn put<T: Serialize>(
    engine: &core::Queue,
    value: T,
    deadline: Deadline,
) -> Result<(), PutError<T>> {
    let put = codec::send(&value, |message| {
        through_signals(|| engine.put_message(message, deadline))
    });
    put.map_err(|error| PutError { value, error })
}

/// Puts values into a queue of either kind, as many as it takes.
pub(crate) fn put_all<T: Serialize>(
    engine: &core::Queue,
    values: impl IntoIterator<Item = T>,
) -> Result<(), PutError<Vec<T>>> {
    let mut left: Vec<T> = values.into_iter().collect();
    let encoded: Vec<_> = match left.iter().map(codec::encode).collect::<Result<_>>() {
        Ok(encoded) => encoded,
        Err(error) => return Err(PutError { value: left, error }),
    };
    let parts: Vec<_> = encoded.iter().map(|value| [value.bytes()]).collect();
    let messages: Vec<_> = encoded
        .iter()
        .zip(&parts)
        .map(|(value, parts)| value.as_message(parts))
        .collect::<Vec<Outgoing<'_>>>();
    let mut put = 0;
    while put < messages.len() {
        match through_signals(|| engine.put_many(&messages[put..], Deadline::NEVER)) {
            Ok(count) => put += count,
            Err(error) => {
                return Err(PutError {
                    value: left.split_off(put),
                    error: error.into(),
                });
            }
        }
    }
    Ok(())
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Queue<T> {
        Queue::over(self.engine.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Queue<T> {
    type Item = Result<T>;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

/// The values of a queue as they come; from [`Queue::iter`].
#[derive(Debug)]
pub struct Iter<'a, T> {
    queue: &'a Queue<T>,
}

impl<T: DeserializeOwned> Iterator for Iter<'_, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        match self.queue.get() {
            Err(error) if error.is_closed() => None,
            value => Some(value),
        }
    }
}

impl<T: DeserializeOwned> FusedIterator for Iter<'_, T> {}

/// Why a value was not put, with the value.
///
/// ```
/// # procession::init();
/// let queue = procession::Queue::bounded(1)?;
/// queue.put("first".to_string())?;
/// let refused = queue.try_put("second".to_string()).unwrap_err();
/// assert!(refused.is_full());
/// queue.get()?;
/// queue.put(refused.value)?;
/// # Ok::<(), procession::Error>(())
/// ```
pub struct PutError<T> {
    /// What was to be put.
    pub value: T,
    /// Why it was not.
    pub error: Error,
}

impl<T> PutError<T> {
    /// Whether there was no room in time.
    pub fn is_full(&self) -> bool {
        self.error.is_timeout()
    }

    /// Whether the queue was closed, or the other end of the pipe.
    pub fn is_closed(&self) -> bool {
        self.error.is_closed()
    }

    /// The value.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PutError").field(&self.error).finish()
    }
}

impl<T> fmt::Display for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> std::error::Error for PutError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<T> From<PutError<T>> for Error {
    fn from(refused: PutError<T>) -> Error {
        refused.error
    }
}
