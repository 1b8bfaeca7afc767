//! What can go wrong with any of it. Rooms that give a value back have an error of their own.

use crate::pool::JobError;
use crate::process::JoinError;
use procession_core as core;
use std::error::Error as StdError;

/// What most operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation did not happen.
///
/// ```
/// # procession::init();
/// use procession::{Error, Queue};
///
/// let queue = Queue::<u32>::unbounded()?;
/// queue.close()?;
/// let error: Error = queue.put(7).unwrap_err().into();
/// assert!(error.is_closed());
/// assert_eq!(error.to_string(), "the queue is closed");
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The engine refused, or the system did.
    #[error(transparent)]
    Engine(#[from] core::Error),

    /// A value could not be made into bytes.
    #[error("failed to encode a `{type_name}`")]
    Encode {
        /// The value's type.
        type_name: &'static str,
        /// What is wrong with it.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// Bytes from another process did not make the value that was expected.
    #[error("failed to decode a `{type_name}`")]
    Decode {
        /// The type that was expected.
        type_name: &'static str,
        /// What is wrong with the bytes.
        source: Box<dyn StdError + Send + Sync>,
    },

    /// There is no result of a process.
    #[error(transparent)]
    Join(Box<JoinError>),

    /// There is no result of a call that a pool was to make.
    #[error(transparent)]
    Job(Box<JobError>),

    /// Whoever held the lock before died holding it, and the caller did not want it so.
    #[error("the mutex's holder died holding it")]
    OwnerDied,

    /// Processes cannot be started: this program would not know a child when it is one.
    #[error("failed to start a process: `procession::init()` was not called")]
    NotInitialized,

    /// The function does not lie in the program itself, so that a child could not find it.
    #[error(
        "failed to send the function `{function}`: it lies in a library that was loaded separately"
    )]
    ForeignFunction {
        /// The function.
        function: &'static str,
    },
}

impl Error {
    /// Whether time ran out.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::Engine(error) if error.is_timeout())
    }

    /// Whether the queue was closed, or the other end of the pipe.
    pub fn is_closed(&self) -> bool {
        let Error::Engine(error) = self else {
            return false;
        };
        matches!(
            error,
            core::Error::Closed { .. } | core::Error::EndOfFile { .. }
        )
    }

    /// Whether the barrier is broken.
    pub fn is_broken(&self) -> bool {
        matches!(self, Error::Engine(core::Error::Broken))
    }

    /// What the reader can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Engine(error) => error.hint(),
            Error::NotInitialized => Some(
                "put `#[procession::main]` on `main`, or call `procession::init()` first thing in it",
            ),
            Error::Encode { .. } | Error::Decode { .. } => Some(
                "values travel as postcard, which does not tell types: no `flatten`, no `untagged`, no `deserialize_any`",
            ),
            Error::Join(error) => match &**error {
                JoinError::Failed(error) => error.hint(),
                _ => None,
            },
            Error::Job(error) => match &**error {
                JobError::Failed(error) => error.hint(),
                _ => None,
            },
            Error::OwnerDied => {
                Some("take the guard out of the `LockError`, or let `LockError::repair` do it")
            }
            Error::ForeignFunction { .. } => None,
        }
    }
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Error {
        match error {
            JoinError::Failed(error) => error,
            other => Error::Join(Box::new(other)),
        }
    }
}

impl From<JobError> for Error {
    fn from(error: JobError) -> Error {
        match error {
            JobError::Failed(error) => error,
            other => Error::Job(Box::new(other)),
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        match error {
            Error::Engine(error) => error.into(),
            Error::Encode { .. } | Error::Decode { .. } => {
                std::io::Error::new(std::io::ErrorKind::InvalidData, error)
            }
            Error::Join(_)
            | Error::Job(_)
            | Error::OwnerDied
            | Error::NotInitialized
            | Error::ForeignFunction { .. } => std::io::Error::other(error),
        }
    }
}
