//! One error for the engine: a variant for each thing a caller can do something about.

use std::io;

/// What the engine's operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of the engine did not happen.
///
/// The message says what failed, on what, why. [`Error::hint`] adds what the reader can do, where there is something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The deadline passed first.
    #[error("timed out waiting for {what}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
    },

    /// A signal handler ran in this thread while it waited. Calling again with the same deadline continues the wait.
    #[error("interrupted by a signal while waiting for {what}")]
    Interrupted {
        /// What was waited for.
        what: &'static str,
    },

    /// The queue was closed: nothing more can be put, and when it is empty nothing more can be got.
    #[error("{what} is closed")]
    Closed {
        /// The object, by kind.
        what: &'static str,
    },

    /// The other side of a connection is gone and everything it sent has been read.
    #[error("end of file: the other side of the {what} is closed")]
    EndOfFile {
        /// The object, by kind.
        what: &'static str,
    },

    /// The barrier is broken: a participant died, timed out, or aborted it.
    #[error("the barrier is broken")]
    Broken,

    /// A limit of the family was reached in this call; nobody else is affected.
    #[error("{what} exhausted: the limit is {limit}")]
    Exhausted {
        /// The resource.
        what: &'static str,
        /// Its limit, in the resource's unit (bytes for memory).
        limit: u64,
    },

    /// A message, a name or a list is longer than its place allows.
    #[error("{what} is too large: {length} is more than {limit}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// The length asked for.
        length: u64,
        /// The largest possible.
        limit: u64,
    },

    /// The handle names nothing that lives: another family's, an object destroyed since, or garbage.
    #[error("failed to attach {what} by handle {handle:#018x}: {why}")]
    BadHandle {
        /// The kind that was expected.
        what: &'static str,
        /// The handle as it was given.
        handle: u64,
        /// What is wrong with it.
        why: &'static str,
    },

    /// The caller does not hold what it releases, or releases more than there is.
    #[error("failed to release {what}: {why}")]
    NotHeld {
        /// The object, by kind.
        what: &'static str,
        /// What is wrong.
        why: &'static str,
    },

    /// The arena does not hold what its own rules promise; the operation was refused before it read further.
    #[error("the arena is damaged at offset {offset:#x}: {why}")]
    Damaged {
        /// Where.
        offset: u64,
        /// What was found.
        why: &'static str,
    },

    /// The descriptor is no arena of this version of procession.
    #[error("failed to attach the family's arena: {why}")]
    ForeignArena {
        /// What is wrong with it.
        why: &'static str,
    },

    /// An object is used in a way its state does not allow.
    #[error("failed to {action}: {why}")]
    Misuse {
        /// What was tried.
        action: &'static str,
        /// Why it cannot be.
        why: &'static str,
    },

    /// Bytes from another process do not have the form they must have.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },

    /// The child ended before it took up its work.
    #[error("failed to start a process by {method}: {why}")]
    StartFailed {
        /// The start method.
        method: &'static str,
        /// What happened to the child.
        why: String,
    },

    /// The operating system refused.
    #[error("failed to {action}")]
    Os {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Wraps the system's answer to `action`.
    pub(crate) fn os(action: &'static str, source: impl Into<io::Error>) -> Error {
        Error::Os {
            action,
            source: source.into(),
        }
    }

    /// What the reader can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Error::Exhausted {
                what: "the arena's memory",
                ..
            } => Some("raise PROCESSION_MEMORY_MAX, bound the queue, or read what was put"),
            Error::Exhausted {
                what: "process slots",
                ..
            } => Some("raise PROCESSION_PROCESSES_MAX"),
            Error::Exhausted {
                what: "thread slots",
                ..
            } => Some("raise PROCESSION_THREADS_MAX"),
            Error::BadHandle { .. } => Some(
                "a handle lives as long as one process is attached to it or a message carries it",
            ),
            Error::Interrupted { .. } => Some("call again with the same deadline"),
            _ => None,
        }
    }

    /// Whether the deadline passed.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::TimedOut { .. })
    }

    /// Whether a signal arrived.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Error::Interrupted { .. })
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::TimedOut { .. } => io::ErrorKind::TimedOut,
            Error::Interrupted { .. } => io::ErrorKind::Interrupted,
            Error::EndOfFile { .. } => io::ErrorKind::UnexpectedEof,
            Error::Closed { .. } => io::ErrorKind::BrokenPipe,
            Error::Exhausted { .. } => io::ErrorKind::OutOfMemory,
            Error::Os { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
