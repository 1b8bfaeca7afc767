//! Starting processes, and what becomes of them.
//!
//! A child is started by one of three methods ([`Method`]): [`fork`] runs a closure in a copy of this process,
//! [`start`] runs a program anew, or has the family's [`Zygote`] do it, which forks itself and so is quicker. In the
//! program, [`bootstrap`] tells whether it was started that way and hands out what the parent gave it.
//!
//! However a process ends, its parent sees it ([`Child`]), what it owned in the arena is freed, and its own children
//! that were not detached end with it, by a lifeline that the kernel holds. `embryo` is what a parent prepares before
//! there is a child; `household` is what a process keeps of its children; `kept` keeps descriptors out of forks.
//!
//! This room starts no thread and installs no signal handler. It knows nothing of what children do.

mod bootstrap;
mod child;
mod embryo;
mod fork;
mod household;
mod kept;
mod spawn;
mod start;
mod zygote;

pub use bootstrap::{Current, Parent, Role, Started, bootstrap, current, parent};
pub use child::{Child, Ending, Exit};
pub use fork::fork;
pub use household::{active_children, finish};
pub use start::{FDS_MAX, Method, Start, Stdio, start};
pub use zygote::{Zygote, set_zygote};
