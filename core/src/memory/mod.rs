//! Memory that a family of processes shares, and what becomes of it when one of them dies.
//!
//! Start with [`Family`]: who shares. `layout` draws what lies where; `offset` turns offsets into references; `runs`,
//! `slabs` and `block` allocate; `object` is what lives as long as somebody uses it; `parcel` is a message in one's
//! hands; `slots` seats processes and threads; `latch` and `park` are the lock word and the sleep under all others;
//! `recover` repairs what a dead thread left, `reclaim` frees what a dead process owned; `fsck` reads everything and
//! believes nothing.
//!
//! This room knows where things lie and who owns them. It does not know what they are for.

pub(crate) mod block;
pub(crate) mod epoch;
pub(crate) mod family;
pub(crate) mod fsck;
pub(crate) mod intent;
pub(crate) mod latch;
pub(crate) mod layout;
pub(crate) mod lock;
pub(crate) mod object;
pub(crate) mod offset;
pub(crate) mod parcel;
pub(crate) mod park;
pub(crate) mod reclaim;
pub(crate) mod recover;
pub(crate) mod runs;
pub(crate) mod slabs;
pub(crate) mod slots;
#[cfg(test)]
mod tests;

pub use block::Usage;
pub use family::{Builder, Family};
pub use fsck::Findings;
pub use object::Handle;
pub use parcel::Parcel;
