//! Reads the whole arena and believes nothing: the oracle of the tests.
//!
//! It wants a quiet family: nobody inside an operation. In a busy one it may report what is only on its way.

use super::block::{self, Owner, State};
use super::family::{Family, Me};
use super::object::{self, Handle};
use super::slots::{ProcState, ProcWord};
use super::{reclaim, runs, slabs};
use crate::error::Result;
use std::collections::HashMap;
use std::sync::atomic::Ordering;

/// What [`Family::fsck`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Findings {
    /// What is wrong, one sentence each. Empty for a sound arena.
    pub faults: Vec<String>,
    /// Objects that live.
    pub objects: usize,
    /// Blocks that belong to objects or travel between processes.
    pub blocks_shared: usize,
    /// Blocks in the hands of one process.
    pub blocks_private: usize,
}

/// The books during one check.
#[derive(Debug, Default)]
pub(crate) struct Fsck {
    /// SHARED and LEASED blocks, with what was found to own each.
    blocks: HashMap<u64, Option<&'static str>>,
    /// How often each handle is referred to.
    referred: HashMap<u64, u32>,
    faults: Vec<String>,
}

impl Fsck {
    /// A kind says that `what` of its object owns the block at `offset`.
    pub(crate) fn owns(&mut self, offset: u64, what: &'static str) {
        match self.blocks.get_mut(&offset) {
            None => self.fault(format!("{what} owns {offset:#x}, which is no shared block")),
            Some(owner @ None) => *owner = Some(what),
            Some(Some(other)) => {
                let other = *other;
                self.fault(format!(
                    "{what} and {other} both own the block at {offset:#x}"
                ));
            }
        }
    }

    /// A kind says that its object keeps another alive.
    pub(crate) fn refers(&mut self, handle: Handle) {
        *self.referred.entry(handle.to_bits()).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }
}

impl Family {
    /// Checks the whole arena: that every block has one owner, every owner lives, every count is right.
    ///
    /// It recovers and reclaims the dead first; what they left is not a fault. The family must be quiet meanwhile.
    pub fn fsck(&'static self) -> Result<Findings> {
        let me = self.me()?;
        self.sweep(me);
        Ok(self.check(me))
    }

    fn check(&'static self, me: Me) -> Findings {
        let mut fsck = Fsck::default();
        let mut findings = Findings::default();
        let total = self.header().units.load(Ordering::Acquire);
        let mut units = 0;
        let mut blocks = Vec::new();
        for (unit, owner) in runs::walk(self) {
            units += u64::from(owner.units);
            match owner.state {
                State::Free | State::Warm => {}
                State::Slab => match slabs::blocks(self, unit) {
                    Ok(used) => {
                        blocks.extend(
                            used.map(|(o, w)| (o, Owner::unpack(w.load(Ordering::Acquire)))),
                        );
                    }
                    Err(error) => fsck.fault(error.to_string()),
                },
                State::Inside => fsck.fault(format!("unit {unit} is inside a slab that is none")),
                _ => blocks.push((self.unit_offset(unit), owner)),
            }
        }
        if units != total {
            fsck.fault(format!("the runs cover {units} units of {total}"));
        }
        for (offset, owner) in &blocks {
            match owner.state {
                State::Shared => {
                    findings.blocks_shared += 1;
                    fsck.blocks.insert(*offset, None);
                }
                State::Object => findings.objects += 1,
                State::Transit => {
                    findings.blocks_shared += 1;
                    if object::kind_of(self, reclaim::named_after(self, *offset)).is_none() {
                        fsck.fault(format!(
                            "the block at {offset:#x} travels in a pipe that is gone"
                        ));
                    }
                }
                State::Private | State::Leased => {
                    findings.blocks_private += 1;
                    if !self.is_alive(owner.process) {
                        fsck.fault(format!(
                            "the block at {offset:#x} is {:?} of process slot {}, which is free",
                            owner.state, owner.process
                        ));
                    }
                }
                _ => fsck.fault(format!(
                    "the block at {offset:#x} is in state {:?}",
                    owner.state
                )),
            }
            if owner.flags & block::REFERENCES != 0
                && let Ok((found, _)) = self.block_at(*offset)
            {
                object::references(self, *offset, found.capacity)
                    .into_iter()
                    .for_each(|h| fsck.refers(h));
            }
        }
        self.check_objects(&mut fsck);
        self.check_threads(me, &mut fsck);
        let lost: Vec<_> = fsck
            .blocks
            .iter()
            .filter(|(_, owner)| owner.is_none())
            .map(|(o, _)| *o)
            .collect();
        for offset in lost {
            fsck.fault(format!(
                "the shared block at {offset:#x} belongs to no object"
            ));
        }
        findings.faults = fsck.faults;
        findings
    }

    fn check_objects(&'static self, fsck: &mut Fsck) {
        let objects: Vec<_> = object::all(self).collect();
        for (offset, header) in &objects {
            match self
                .kinds()
                .get(header.kind.load(Ordering::Relaxed) as usize)
            {
                Some(kind) => (kind.check)(self, offset + object::BODY, fsck),
                None => fsck.fault(format!("the object at {offset:#x} is of no known kind")),
            }
        }
        for (offset, header) in objects {
            let handle = object::handle_of(offset, header);
            let references = header.references.load(Ordering::Acquire);
            let referred = fsck.referred.get(&handle.to_bits()).copied().unwrap_or(0);
            if references != referred {
                fsck.fault(format!(
                    "the object at {offset:#x} counts {references} references and {referred} name it"
                ));
            }
            let owners = object::owners(header);
            if owners.is_empty() && references == 0 {
                fsck.fault(format!("the object at {offset:#x} has no owner"));
            }
            for process in owners {
                if !self.is_alive(process) {
                    fsck.fault(format!(
                        "the object at {offset:#x} is owned by the free process slot {process}"
                    ));
                }
            }
        }
    }

    /// Nobody is inside an operation, except the caller, who is here.
    fn check_threads(&self, me: Me, fsck: &mut Fsck) {
        for (index, slot) in self.threads().iter().enumerate() {
            if index as u32 != me.slot && slot.intent.load(Ordering::Acquire) != 0 {
                fsck.fault(format!("thread slot {index} has an operation in flight"));
            }
        }
        let header = self.header();
        for (latch, name) in [
            (&header.runs, "runs"),
            (&header.lifetime, "lifetime"),
            (&header.reclaim, "reclaim"),
            (&header.locker, "locker"),
        ] {
            let word = latch.word.load(Ordering::Acquire);
            if let super::latch::Holder::Alive(slot) = self.holder_state(word) {
                fsck.fault(format!("the {name} latch is held by thread slot {slot}"));
            }
        }
    }

    fn is_alive(&self, process: u32) -> bool {
        self.processes().get(process as usize).is_some_and(|slot| {
            ProcWord::unpack(slot.state.load(Ordering::Acquire)).state != ProcState::Free
        })
    }
}
