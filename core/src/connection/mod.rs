//! Pipes between two processes, and waiting for descriptors.
//!
//! Start with [`pair`]: a pipe is a socket pair, so that readiness and end of file are the kernel's; small messages go
//! through the socket, of large ones only the name, while the bytes stay in the arena. [`wait()`] waits for pipes,
//! sentinels and any other descriptors. `locker` is how a descriptor travels in a message of plain bytes.
//!
//! Whoever is killed, a message arrives whole or not at all. This room does not know what messages mean, and it makes no
//! connections to other families.

pub(crate) mod locker;
pub(crate) mod pipe;
mod wait;

pub use locker::{Ticket, deposit, withdraw};
pub use pipe::{Connection, FDS_MAX, Outgoing, Received, one_way, pair};
pub use wait::wait;
