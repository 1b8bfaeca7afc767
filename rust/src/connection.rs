//! Pipes: two ends, values whole or not at all, and an end of file when the other side is gone.

use crate::codec;
use crate::error::Result;
use crate::program::family;
use crate::queue::PutError;
use crate::waiting::{in_time, through_signals};
use procession_core::connection::{self as engine, Outgoing};
use procession_core::{self as core, Deadline};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Why a value was not sent, with the value.
pub type SendError<T> = PutError<T>;

/// Creates a pipe between two: the first end sends `A` and receives `B`, the second the other way round.
///
/// ```
/// use procession::{Connection, Process, pipe};
///
/// fn measure(texts: Connection<usize, String>) {
///     for text in texts.iter() {
///         texts.send(text.unwrap().len()).unwrap();
///     }
/// }
///
/// procession::init();
/// let (near, far) = pipe::<String, usize>()?;
/// let child = Process::spawn(measure, (far,))?;
/// near.send("four".to_string())?;
/// assert_eq!(near.recv()?, 4);
/// drop(near);
/// child.join()?;
/// # Ok::<(), procession::Error>(())
/// ```
pub fn pipe<A, B>() -> Result<(Connection<A, B>, Connection<B, A>)> {
    let (a, b) = engine::pair(family()?)?;
    Ok((Connection::over(a), Connection::over(b)))
}

/// Creates a pipe in one direction.
///
/// Unlike a [`Queue`](crate::Queue), it ends with its ends: when all senders are gone, closed or killed, the receiver gets
/// what they sent and then is told so.
///
/// ```
/// use procession::{Process, Sender, channel};
///
/// fn count(numbers: Sender<u32>) {
///     (0..3).for_each(|n| numbers.send(n).unwrap());
/// }
///
/// procession::init();
/// let (sender, receiver) = channel()?;
/// let child = Process::spawn(count, (sender,))?;
/// assert_eq!(receiver.iter().collect::<Result<Vec<_>, _>>()?, [0, 1, 2]);
/// child.join()?;
/// # Ok::<(), procession::Error>(())
/// ```
pub fn channel<T>() -> Result<(Sender<T>, Receiver<T>)> {
    let (receiver, sender) = engine::one_way(family()?)?;
    Ok((
        Sender {
            connection: Connection::over(sender),
        },
        Receiver {
            connection: Connection::over(receiver),
        },
    ))
}

/// One end of a [`pipe`]: sends `A`, receives `B`.
///
/// It can be sent to another process in any way. What is sent is a copy: the other end sees the end of file when all
/// copies are dropped, and the processes that had them have ended.
///
/// ```
/// # procession::init();
/// let (near, far) = procession::pipe::<u32, String>()?;
/// far.send("seven".to_string())?;
/// assert_eq!(near.recv()?, "seven");
/// drop(far);
/// assert!(near.recv().unwrap_err().is_closed());
/// assert_eq!(near.send(7).unwrap_err().value, 7);
/// # Ok::<(), procession::Error>(())
/// ```
pub struct Connection<A, B> {
    engine: engine::Connection,
    values: PhantomData<fn(A) -> B>,
}

impl<A, B> Connection<A, B> {
    fn over(engine: engine::Connection) -> Connection<A, B> {
        Connection {
            engine,
            values: PhantomData,
        }
    }

    /// Whether there is something to receive now: a value, or the end of file.
    ///
    /// ```
    /// # procession::init();
    /// let (near, far) = procession::pipe::<u32, u32>()?;
    /// assert!(!far.is_ready()?);
    /// near.send(1)?;
    /// assert!(far.is_ready()?);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn is_ready(&self) -> Result<bool> {
        Ok(through_signals(|| self.engine.poll(Deadline::PASSED))?)
    }

    /// Another handle to the same end.
    pub fn try_clone(&self) -> Result<Connection<A, B>> {
        let ticket = self.engine.deposit()?;
        let copy = engine::Connection::from_deposit(self.engine.family(), ticket.handle())?;
        Ok(Connection::over(copy))
    }
}

impl<A: Serialize, B> Connection<A, B> {
    /// Sends a value, waiting while the pipe is full.
    ///
    /// Fails when nobody has the other end any more.
    pub fn send(&self, value: A) -> Result<(), SendError<A>> {
        self.send_until(value, Deadline::NEVER)
    }

    /// Sends a value if the pipe takes it now.
    ///
    /// ```
    /// # procession::init();
    /// let (near, far) = procession::pipe::<u32, u32>()?;
    /// let mut sent = 0;
    /// while near.try_send(sent).is_ok() {
    ///     sent += 1;
    /// }
    /// assert!(sent > 0);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn try_send(&self, value: A) -> Result<(), SendError<A>> {
        self.send_until(value, Deadline::PASSED)
    }

    /// Sends a value, waiting at most so long while the pipe is full.
    pub fn send_timeout(&self, value: A, timeout: Duration) -> Result<(), SendError<A>> {
        self.send_until(value, Deadline::after(timeout))
    }

    fn send_until(&self, value: A, deadline: Deadline) -> Result<(), SendError<A>> {
        let sent = codec::send(&value, |message| {
            let message = Outgoing {
                tag: message.tag,
                parts: message.parts,
                handles: message.handles,
                fds: &[],
            };
            through_signals(|| self.engine.send_message(&message, deadline))
        });
        sent.map_err(|error| PutError { value, error })
    }
}

impl<A, B: DeserializeOwned> Connection<A, B> {
    /// Receives a value, waiting for one.
    ///
    /// Fails when nobody has the other end any more and all is received; see [`Error::is_closed`](crate::Error::is_closed).
    pub fn recv(&self) -> Result<B> {
        let received = through_signals(|| self.engine.recv(Deadline::NEVER))?;
        codec::decode_tagged(received.tag, &received.bytes)
    }

    /// Receives a value if one is there now.
    ///
    /// ```
    /// # procession::init();
    /// let (near, far) = procession::pipe::<u32, u32>()?;
    /// assert_eq!(far.try_recv()?, None);
    /// near.send(1)?;
    /// assert_eq!(far.try_recv()?, Some(1));
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn try_recv(&self) -> Result<Option<B>> {
        self.recv_in_time(Deadline::PASSED)
    }

    /// Receives a value, waiting at most so long for one.
    ///
    /// ```
    /// # procession::init();
    /// let (near, far) = procession::pipe::<u32, u32>()?;
    /// assert_eq!(far.recv_timeout(std::time::Duration::from_millis(5))?, None);
    /// # Ok::<(), procession::Error>(())
    /// ```
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<B>> {
        self.recv_in_time(Deadline::after(timeout))
    }

    fn recv_in_time(&self, deadline: Deadline) -> Result<Option<B>> {
        match in_time(through_signals(|| self.engine.recv(deadline)))? {
            Some(received) => codec::decode_tagged(received.tag, &received.bytes).map(Some),
            None => Ok(None),
        }
    }

    /// The values as they come, until the other end is gone.
    pub fn iter(&self) -> Received<'_, A, B> {
        Received { connection: self }
    }
}

impl<A, B> AsFd for Connection<A, B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.engine.as_fd()
    }
}

impl<A, B> Serialize for Connection<A, B> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::serialize_ticket("a connection", || self.engine.deposit(), serializer)
    }
}

impl<'de, A, B> Deserialize<'de> for Connection<A, B> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let attach = |family, ticket| -> core::Result<_> {
            engine::Connection::from_deposit(family, ticket).map(Connection::over)
        };
        codec::deserialize_handle("a connection", attach, deserializer)
    }
}

impl<A, B> fmt::Debug for Connection<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show("Connection", &self.engine, f)
    }
}

fn show(name: &str, engine: &engine::Connection, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut shown = f.debug_struct(name);
    if engine.is_readable()
        && let Ok(ready) = engine.poll(Deadline::PASSED)
    {
        shown.field("ready", &ready);
    }
    shown.finish_non_exhaustive()
}

/// The values of a connection as they come; from [`Connection::iter`] and [`Receiver::iter`].
#[derive(Debug)]
pub struct Received<'a, A, B> {
    connection: &'a Connection<A, B>,
}

impl<A, B: DeserializeOwned> Iterator for Received<'_, A, B> {
    type Item = Result<B>;

    fn next(&mut self) -> Option<Result<B>> {
        match self.connection.recv() {
            Err(error) if error.is_closed() => None,
            value => Some(value),
        }
    }
}

impl<A, B: DeserializeOwned> FusedIterator for Received<'_, A, B> {}

/// The end of a [`channel`] that sends.
///
/// ```
/// # procession::init();
/// let (sender, receiver) = procession::channel()?;
/// sender.send(1)?;
/// drop(receiver);
/// assert!(sender.send(2).unwrap_err().is_closed());
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct Sender<T> {
    connection: Connection<T, ()>,
}

impl<T> Sender<T> {
    /// Another handle to the same end.
    pub fn try_clone(&self) -> Result<Sender<T>> {
        let connection = self.connection.try_clone()?;
        Ok(Sender { connection })
    }
}

impl<T: Serialize> Sender<T> {
    /// Sends a value, waiting while the channel is full.
    pub fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.connection.send(value)
    }

    /// Sends a value if the channel takes it now.
    pub fn try_send(&self, value: T) -> Result<(), SendError<T>> {
        self.connection.try_send(value)
    }

    /// Sends a value, waiting at most so long while the channel is full.
    pub fn send_timeout(&self, value: T, timeout: Duration) -> Result<(), SendError<T>> {
        self.connection.send_timeout(value, timeout)
    }
}

/// The end of a [`channel`] that receives.
///
/// ```
/// # procession::init();
/// let (sender, receiver) = procession::channel()?;
/// assert_eq!(receiver.try_recv()?, None);
/// sender.send(1)?;
/// assert_eq!(receiver.recv()?, 1);
/// drop(sender);
/// assert!(receiver.recv().unwrap_err().is_closed());
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct Receiver<T> {
    connection: Connection<(), T>,
}

impl<T> Receiver<T> {
    /// Whether there is something to receive now: a value, or the end of file.
    pub fn is_ready(&self) -> Result<bool> {
        self.connection.is_ready()
    }

    /// Another handle to the same end: each value goes to one of them.
    pub fn try_clone(&self) -> Result<Receiver<T>> {
        let connection = self.connection.try_clone()?;
        Ok(Receiver { connection })
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a value, waiting for one. Fails when all senders are gone and all is received.
    pub fn recv(&self) -> Result<T> {
        self.connection.recv()
    }

    /// Receives a value if one is there now.
    pub fn try_recv(&self) -> Result<Option<T>> {
        self.connection.try_recv()
    }

    /// Receives a value, waiting at most so long for one.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Option<T>> {
        self.connection.recv_timeout(timeout)
    }

    /// The values as they come, until all senders are gone.
    pub fn iter(&self) -> Received<'_, (), T> {
        self.connection.iter()
    }
}

impl<T> AsFd for Sender<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl<T> AsFd for Receiver<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show("Sender", &self.connection.engine, f)
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show("Receiver", &self.connection.engine, f)
    }
}

/// Waits until one of several has something to be read: connections, [sentinels](crate::Process::sentinel), sockets,
/// whatever has a descriptor. Gives the places in the list of all that have.
///
/// ```
/// # procession::init();
/// use std::os::fd::AsFd;
///
/// let (idle, _far) = procession::pipe::<u8, u8>()?;
/// let (sender, receiver) = procession::channel()?;
/// sender.send(1)?;
/// assert_eq!(procession::wait(&[idle.as_fd(), receiver.as_fd()])?, [1]);
/// # Ok::<(), procession::Error>(())
/// ```
pub fn wait(descriptors: &[BorrowedFd<'_>]) -> Result<Vec<usize>> {
    Ok(through_signals(|| {
        engine::wait(descriptors, Deadline::NEVER)
    })?)
}

/// [`wait`] for at most so long; none, if nothing came.
///
/// ```
/// # procession::init();
/// use std::os::fd::AsFd;
///
/// let (idle, _far) = procession::pipe::<u8, u8>()?;
/// let ready = procession::wait_timeout(&[idle.as_fd()], std::time::Duration::from_millis(5))?;
/// assert!(ready.is_empty());
/// # Ok::<(), procession::Error>(())
/// ```
pub fn wait_timeout(descriptors: &[BorrowedFd<'_>], timeout: Duration) -> Result<Vec<usize>> {
    let deadline = Deadline::after(timeout);
    Ok(through_signals(|| engine::wait(descriptors, deadline))?)
}
