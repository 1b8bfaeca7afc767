//! Looking at an arena from outside, and copying it.
#![allow(unsafe_code, reason = "makes memory files")]

use procession_core::{Family, testing};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// What was seen of an arena last, and every state that was ever seen.
pub struct Looker {
    family: &'static Family,
    file_length: u64,
    ranges: Vec<(u64, u64)>,
    seen: Vec<u8>,
    known: HashSet<(u64, u64)>,
}

impl Looker {
    /// Looks for the first time: the state before the operation counts as a state.
    pub fn new(family: &'static Family) -> Looker {
        let mut looker = Looker {
            family,
            file_length: 0,
            ranges: Vec::new(),
            seen: Vec::new(),
            known: HashSet::new(),
        };
        looker.remember();
        looker
    }

    /// Whether the arena is in a state that it was not in before.
    pub fn is_new(&mut self) -> bool {
        !self.is_as_before() && self.remember()
    }

    fn is_as_before(&self) -> bool {
        if length(self.family) != self.file_length {
            return false;
        }
        let mut at = 0;
        self.ranges.iter().all(|&(offset, length)| {
            let before = &self.seen[at..at + length as usize];
            at += length as usize;
            testing::bytes(self.family, offset, length).is_ok_and(|now| now == before)
        })
    }

    fn remember(&mut self) -> bool {
        self.file_length = length(self.family);
        self.ranges = testing::used(self.family);
        self.seen.clear();
        for &(offset, length) in &self.ranges {
            let bytes = testing::bytes(self.family, offset, length).expect("inside the arena");
            self.seen.extend_from_slice(bytes);
        }
        let hash = |seed: u64| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed ^ self.file_length);
            hasher.write(&self.seen);
            hasher.finish()
        };
        self.known.insert((hash(1), hash(2)))
    }
}

fn length(family: &Family) -> u64 {
    // SAFETY: zero is a valid stat, and the descriptor is open.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::stat>();
        libc::fstat(family.arena().as_raw_fd(), &raw mut stat);
        stat.st_size as u64
    }
}

/// A copy of the arena as it is now, sealed like it.
pub fn copy(family: &Family) -> OwnedFd {
    // SAFETY: plain system calls on a new descriptor, which is owned at once.
    unsafe {
        let number = libc::memfd_create(
            c"procession:copy".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        );
        assert!(number >= 0, "no memory for a copy");
        let fd = OwnedFd::from_raw_fd(number);
        assert_eq!(libc::ftruncate(number, length(family) as i64), 0);
        let committed = testing::committed(family);
        let bytes = testing::bytes(family, 0, committed).expect("inside the arena");
        let mut at = 0;
        while at < bytes.len() {
            let written = libc::pwrite(
                number,
                bytes[at..].as_ptr().cast(),
                bytes.len() - at,
                at as i64,
            );
            assert!(written > 0, "a copy was cut short");
            at += written as usize;
        }
        assert_eq!(
            libc::fcntl(number, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK),
            0
        );
        fd
    }
}

/// Another descriptor of the same arena.
pub fn same(family: &Family) -> OwnedFd {
    family
        .arena()
        .as_fd()
        .try_clone_to_owned()
        .expect("a descriptor")
}
