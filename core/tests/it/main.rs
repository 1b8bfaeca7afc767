//! Real processes: what one room promises, with children that live, wait and are killed.

mod support;
mod sync;
