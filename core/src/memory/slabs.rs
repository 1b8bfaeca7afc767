//! Small blocks: slabs of one size each, cut from runs of four units.
//!
//! ```text
//! slab   header 64 bytes: home, class, use, counts
//!        one owner word for each block
//!        the blocks
//! ```
//!
//! A slab has a *home*, the one process that allocates from it; so allocation needs no lock between processes. Anybody
//! frees, by one store to the block's owner word. The free lists are private memory of the home and only hints: a block
//! is taken by compare-and-swap on its owner word. When the home dies, its slabs are orphans, and adopted.

use super::block::{Block, Owner, State};
use super::family::{Family, Me};
use super::layout::{CLASSES, LINE, PAGE, UNIT, shared};
use super::offset::damaged;
use super::runs;
use crate::error::Result;
use crate::fault;
use crate::sys::memory;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Units of a slab.
const SLAB_UNITS: u64 = 4;
const SLAB: u64 = SLAB_UNITS * UNIT;

/// The longest block that comes from a slab, in bytes.
pub(crate) const LENGTH_MAX: u64 = LINE << (CLASSES - 1);

shared! {
    /// How a slab begins. The counts are hints.
    struct SlabHeader: 64 {
        /// The home's process slot + 1; 0 for an orphan.
        home: AtomicU32,
        class: AtomicU32,
        /// [`Use`] as a number.
        used_for: AtomicU32,
        count: AtomicU32,
        /// Blocks in use.
        live: AtomicU32,
        /// See the constants below.
        idle: AtomicU32,
        reserved: [AtomicU64; 5],
    }
}

/// Some block is in use.
const BUSY: u32 = 0;
/// None is, the pages are kept and count as warm.
const IDLE: u32 = 1;
/// None is, and the pages have gone back to the system.
const EMPTY: u32 = 2;

/// What a slab's blocks are for. Objects have slabs of their own, so that one can walk them without walking all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Blocks = 0,
    Objects = 1,
}

/// The free blocks that this process believes to have.
#[derive(Debug)]
pub(crate) struct Heap {
    bins: [[Bin; CLASSES]; 2],
}

#[derive(Debug, Default)]
struct Bin {
    /// Offsets of blocks that were free when last seen.
    free: Vec<u64>,
    /// First units of the slabs whose home this process is.
    slabs: Vec<u64>,
    /// Blocks in those slabs.
    capacity: u32,
    /// The count of blocks freed by others at the last look.
    seen: u32,
}

impl Heap {
    pub(crate) fn new() -> Heap {
        Heap {
            bins: Default::default(),
        }
    }
}

/// Takes a block of at least `length` bytes, PRIVATE.
pub(crate) fn allocate(
    family: &'static Family,
    me: Me,
    length: u64,
    used_for: Use,
) -> Result<Block> {
    let class = class_of(length);
    let mut heap = family.local_state()?.heap.lock();
    let bin = &mut heap.bins[used_for as usize][class];
    loop {
        while let Some(offset) = bin.free.pop() {
            if take(family, me, offset)? {
                return Ok(Block {
                    offset,
                    capacity: LINE << class,
                });
            }
        }
        let freed = family.process(me.process).freed[class].load(Ordering::Relaxed);
        // Looking through all slabs pays when a good part of their blocks came back since the last look.
        if freed.wrapping_sub(bin.seen) > bin.capacity / 8 {
            collect(family, me, bin, freed);
            if !bin.free.is_empty() {
                continue;
            }
        }
        match adopt(family, me, class, used_for)
            .map_or_else(|| create(family, me, class, used_for), Ok)
        {
            Ok(unit) => admit(family, bin, unit),
            Err(error) => {
                collect(family, me, bin, freed);
                if bin.free.is_empty() {
                    return Err(error);
                }
            }
        }
    }
}

/// The smallest class whose blocks hold `length` bytes.
fn class_of(length: u64) -> usize {
    let lines = length.div_ceil(LINE).max(1).next_power_of_two();
    lines.trailing_zeros() as usize
}

/// Makes a free block ours. It may be gone: someone who empties the slab holds all of its blocks for a moment.
fn take(family: &'static Family, me: Me, offset: u64) -> Result<bool> {
    let (slab, first, word) = slab_of(family, offset)?;
    let seen = word.load(Ordering::Acquire);
    let owner = Owner::unpack(seen);
    if owner.state != State::Free {
        return Ok(false);
    }
    let version = owner.version.wrapping_add(1) & 0xfff;
    let taken = Owner {
        state: State::Private,
        flags: 0,
        process: me.process,
        version,
        units: 0,
    };
    if word
        .compare_exchange(seen, taken.pack(), Ordering::AcqRel, Ordering::Relaxed)
        .is_err()
    {
        return Ok(false);
    }
    slab.live.fetch_add(1, Ordering::Relaxed);
    if slab.idle.load(Ordering::Relaxed) != BUSY && slab.idle.swap(BUSY, Ordering::Relaxed) == IDLE
    {
        runs::cool(family, SLAB_UNITS);
    }
    let _ = first;
    Ok(true)
}

/// Gives back a block of a slab. The caller owns it PRIVATE.
pub(crate) fn free(family: &'static Family, me: Me, offset: u64) {
    let Ok((slab, first, word)) = slab_of(family, offset) else {
        return;
    };
    let home = slab.home.load(Ordering::Relaxed);
    let class = (slab.class.load(Ordering::Relaxed) as usize).min(CLASSES - 1);
    let ours = home == me.process + 1;
    if !ours && home != 0 && (home as usize) <= family.processes().len() {
        family.process(home - 1).freed[class].fetch_add(1, Ordering::Relaxed);
    }
    if slab.live.fetch_sub(1, Ordering::Relaxed) == 1 {
        rest(family, me, slab, first);
    }
    let used_for = if slab.used_for.load(Ordering::Relaxed) == 0 {
        Use::Blocks
    } else {
        Use::Objects
    };
    let owner = Owner::unpack(word.load(Ordering::Acquire));
    // From this store on the slab may vanish: it is the last touch.
    word.store(
        Owner {
            state: State::Free,
            flags: 0,
            process: 0,
            ..owner
        }
        .pack(),
        Ordering::Release,
    );
    if ours && let Ok(local) = family.local_state() {
        local.heap.lock().bins[used_for as usize][class]
            .free
            .push(offset);
    }
}

/// The last block of a slab is about to be free: lets the slab rest warm, or gives its pages back.
fn rest(family: &'static Family, me: Me, slab: &SlabHeader, first: u64) {
    let stays = runs::warm(family, SLAB_UNITS);
    slab.idle.store(IDLE, Ordering::Relaxed);
    if stays {
        return;
    }
    // Whoever holds all blocks of a slab may do with it as he likes. The caller holds one still.
    let Ok(words) = words_of(family, first) else {
        return;
    };
    let held = hold_all(words, me);
    if held.whole {
        let class = slab.class.load(Ordering::Relaxed) as usize;
        let start = data_start(class, words.len() as u64);
        let start = start.next_multiple_of(PAGE);
        // DEATH: all blocks are the dead process's; reclaim frees each.
        fault::point("slabs.held");
        memory::give_back(
            family.region().fd(),
            family.unit_offset(first) + start,
            SLAB - start,
        );
        slab.idle.store(EMPTY, Ordering::Relaxed);
        runs::cool(family, SLAB_UNITS);
    }
    release_all(words, &held.taken);
}

struct Held {
    /// Indices of the blocks that were free and are held now.
    taken: Vec<usize>,
    /// Whether no block is in anyone else's hands.
    whole: bool,
}

/// Takes every free block, stopping at the first that someone else uses. One block may be the caller's already.
fn hold_all(words: &[AtomicU64], me: Me) -> Held {
    let (mut taken, mut own) = (Vec::with_capacity(words.len()), 0);
    for (index, word) in words.iter().enumerate() {
        let seen = word.load(Ordering::Acquire);
        let owner = Owner::unpack(seen);
        if owner.state == State::Private && owner.process == me.process && own == 0 {
            own += 1;
            continue;
        }
        let held = Owner {
            state: State::Private,
            flags: 0,
            process: me.process,
            ..owner
        };
        if owner.state != State::Free
            || word
                .compare_exchange(seen, held.pack(), Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return Held {
                taken,
                whole: false,
            };
        }
        taken.push(index);
    }
    Held { taken, whole: true }
}

fn release_all(words: &[AtomicU64], taken: &[usize]) {
    for &index in taken {
        let owner = Owner::unpack(words[index].load(Ordering::Acquire));
        let free = Owner {
            state: State::Free,
            flags: 0,
            process: 0,
            ..owner
        };
        words[index].store(free.pack(), Ordering::Release);
    }
}

/// Makes a slab: a run becomes one by the store of its word, after everything in it is in place.
fn create(family: &'static Family, me: Me, class: usize, used_for: Use) -> Result<u64> {
    let first = runs::allocate(family, me, SLAB_UNITS)?;
    let count = count_of(class);
    let start = family.unit_offset(first);
    family.region().zero(start, data_start(class, count))?;
    let slab = family.region().view::<SlabHeader>(start)?;
    slab.home.store(me.process + 1, Ordering::Release);
    slab.class.store(class as u32, Ordering::Release);
    slab.used_for.store(used_for as u32, Ordering::Release);
    slab.count.store(count as u32, Ordering::Release);
    slab.idle.store(EMPTY, Ordering::Release);
    for unit in 1..SLAB_UNITS {
        let inside = Owner {
            state: State::Inside,
            flags: 0,
            process: 0,
            version: 0,
            units: unit as u32,
        };
        runs::write(family, first + unit, inside);
    }
    // DEATH: a run of the dead process, freed by reclaim.
    fault::point("slabs.built");
    runs::write(
        family,
        first,
        Owner {
            state: State::Slab,
            ..runs::read(family, first)
        },
    );
    Ok(first)
}

/// Becomes the home of a slab whose home died.
fn adopt(family: &'static Family, me: Me, class: usize, used_for: Use) -> Option<u64> {
    let orphans = &family.header().orphans[class];
    if orphans.load(Ordering::Relaxed) == 0 {
        return None;
    }
    for first in all(family) {
        let Ok(slab) = header_of(family, first) else {
            continue;
        };
        let fits = slab.class.load(Ordering::Relaxed) == class as u32
            && slab.used_for.load(Ordering::Relaxed) == used_for as u32
            && slab.home.load(Ordering::Relaxed) == 0;
        if fits
            && slab
                .home
                .compare_exchange(0, me.process + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            let _ = orphans.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                count.checked_sub(1)
            });
            return Some(first);
        }
    }
    orphans.store(0, Ordering::Relaxed);
    None
}

/// Lists a slab of ours and its free blocks.
fn admit(family: &'static Family, bin: &mut Bin, first: u64) {
    let Ok(words) = words_of(family, first) else {
        return;
    };
    bin.slabs.push(first);
    bin.capacity += words.len() as u32;
    list_free(family, bin, first, words);
}

fn list_free(family: &'static Family, bin: &mut Bin, first: u64, words: &[AtomicU64]) {
    let class_start = data_start(class_from_count(words.len()), words.len() as u64);
    let size = LINE << class_from_count(words.len());
    let blocks = family.unit_offset(first) + class_start;
    // Backwards, so that blocks are taken from the front.
    for (index, word) in words.iter().enumerate().rev() {
        if Owner::unpack(word.load(Ordering::Acquire)).state == State::Free {
            bin.free.push(blocks + index as u64 * size);
        }
    }
}

/// Looks through this process's slabs for blocks that others freed. Of the slabs that nobody uses it keeps one and
/// gives the others back as runs.
fn collect(family: &'static Family, me: Me, bin: &mut Bin, freed: u32) {
    bin.seen = freed;
    bin.free.clear();
    bin.capacity = 0;
    let mut kept = false;
    for first in std::mem::take(&mut bin.slabs) {
        let (Ok(slab), Ok(words)) = (header_of(family, first), words_of(family, first)) else {
            continue;
        };
        if slab.live.load(Ordering::Relaxed) == 0 {
            if kept && retire(family, me, slab, first, words) {
                continue;
            }
            kept = true;
        }
        admit(family, bin, first);
    }
}

/// Turns a slab without a block in use back into a free run.
fn retire(
    family: &'static Family,
    me: Me,
    slab: &SlabHeader,
    first: u64,
    words: &[AtomicU64],
) -> bool {
    let held = hold_all(words, me);
    if !held.whole || held.taken.len() != words.len() {
        release_all(words, &held.taken);
        return false;
    }
    if slab.idle.swap(BUSY, Ordering::Relaxed) == IDLE {
        runs::cool(family, SLAB_UNITS);
    }
    // DEATH: all blocks are the dead process's, and so is the slab; reclaim frees the one and orphans the other.
    fault::point("slabs.retiring");
    let owner = runs::read(family, first);
    runs::write(
        family,
        first,
        Owner {
            state: State::Private,
            process: me.process,
            flags: 0,
            ..owner
        },
    );
    runs::free(family, first);
    true
}

/// Gives back what this process keeps free without need.
pub(crate) fn trim(family: &'static Family, me: Me) {
    let Ok(local) = family.local_state() else {
        return;
    };
    // The heap may be in the hands of this very thread, which is here because it needs a run for a slab.
    let Some(mut heap) = local.heap.try_lock() else {
        return;
    };
    for (class, freed) in family.process(me.process).freed.iter().enumerate() {
        let freed = freed.load(Ordering::Relaxed);
        for used_for in [Use::Blocks, Use::Objects] {
            collect(family, me, &mut heap.bins[used_for as usize][class], freed);
        }
    }
}

/// First units of all slabs.
pub(crate) fn all(family: &Family) -> impl Iterator<Item = u64> {
    runs::walk(family)
        .filter(|(_, owner)| owner.state == State::Slab)
        .map(|(first, _)| first)
}

/// The blocks of a slab that are in use: offset and owner word.
pub(crate) fn blocks(
    family: &'static Family,
    first: u64,
) -> Result<impl Iterator<Item = (u64, &'static AtomicU64)>> {
    let words = words_of(family, first)?;
    let class = class_from_count(words.len());
    let start = family.unit_offset(first) + data_start(class, words.len() as u64);
    let used = words
        .iter()
        .enumerate()
        .filter(|(_, w)| Owner::unpack(w.load(Ordering::Acquire)).state != State::Free);
    Ok(used.map(move |(index, word)| (start + index as u64 * (LINE << class), word)))
}

/// Whether no block of a slab is in use and its pages are kept.
pub(crate) fn is_idle(family: &Family, first: u64) -> bool {
    header_of(family, first).is_ok_and(|slab| slab.idle.load(Ordering::Relaxed) == IDLE)
}

pub(crate) fn holds_objects(family: &Family, first: u64) -> bool {
    header_of(family, first)
        .is_ok_and(|slab| slab.used_for.load(Ordering::Relaxed) == Use::Objects as u32)
}

/// Leaves the slab without a home if `process` was it.
pub(crate) fn orphan(family: &Family, first: u64, process: u32) {
    let Ok(slab) = header_of(family, first) else {
        return;
    };
    if slab
        .home
        .compare_exchange(process + 1, 0, Ordering::AcqRel, Ordering::Relaxed)
        .is_ok()
    {
        let class = (slab.class.load(Ordering::Relaxed) as usize).min(CLASSES - 1);
        family.header().orphans[class].fetch_add(1, Ordering::Relaxed);
    }
}

/// Corrects a slab's count of blocks in use, after deaths; gives an orphan without any back.
pub(crate) fn settle(family: &'static Family, me: Me, first: u64) {
    let (Ok(slab), Ok(words)) = (header_of(family, first), words_of(family, first)) else {
        return;
    };
    let live = words
        .iter()
        .filter(|w| Owner::unpack(w.load(Ordering::Acquire)).state != State::Free)
        .count();
    slab.live.store(live as u32, Ordering::Relaxed);
    if live == 0
        && slab
            .home
            .compare_exchange(0, me.process + 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    {
        let class = (slab.class.load(Ordering::Relaxed) as usize).min(CLASSES - 1);
        let orphans = &family.header().orphans[class];
        let _ = orphans.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            count.checked_sub(1)
        });
        if !retire(family, me, slab, first, words) {
            slab.home.store(0, Ordering::Release);
            orphans.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The owner word of the small block at `offset`, whose unit's word is `owner`.
pub(crate) fn owner_word(
    family: &Family,
    offset: u64,
    unit: u64,
    owner: Owner,
) -> Result<&'static AtomicU64> {
    let first = first_unit(family, offset, unit, owner)?;
    let words = words_of(family, first)?;
    let class = class_from_count(words.len());
    let start = family.unit_offset(first) + data_start(class, words.len() as u64);
    let index = offset
        .checked_sub(start)
        .ok_or_else(|| damaged(offset, "it lies in the header of a slab"))?;
    if index % (LINE << class) != 0 {
        return Err(damaged(offset, "no block starts here"));
    }
    words
        .get((index / (LINE << class)) as usize)
        .ok_or_else(|| damaged(offset, "it lies after a slab's last block"))
}

/// How long the blocks are of the slab that `unit` is part of.
pub(crate) fn class_size(family: &Family, unit: u64) -> Result<u64> {
    let first = first_unit(
        family,
        family.unit_offset(unit),
        unit,
        runs::read(family, unit),
    )?;
    Ok(LINE << class_from_count(words_of(family, first)?.len()))
}

fn slab_of(family: &Family, offset: u64) -> Result<(&'static SlabHeader, u64, &'static AtomicU64)> {
    let unit = family.unit_of(offset);
    let first = first_unit(family, offset, unit, runs::read(family, unit))?;
    let word = owner_word(family, offset, unit, runs::read(family, unit))?;
    Ok((header_of(family, first)?, first, word))
}

fn first_unit(family: &Family, offset: u64, unit: u64, owner: Owner) -> Result<u64> {
    let back = if owner.state == State::Inside {
        u64::from(owner.units)
    } else {
        0
    };
    let first = unit.checked_sub(back).filter(|_| back < SLAB_UNITS);
    match first {
        Some(first) if runs::read(family, first).state == State::Slab => Ok(first),
        _ => Err(damaged(offset, "no block starts here")),
    }
}

fn header_of(family: &Family, first: u64) -> Result<&'static SlabHeader> {
    family.region().view(family.unit_offset(first))
}

fn words_of(family: &Family, first: u64) -> Result<&'static [AtomicU64]> {
    let start = family.unit_offset(first);
    let class = header_of(family, first)?.class.load(Ordering::Acquire) as usize;
    if class >= CLASSES {
        return Err(damaged(start, "a slab has no such class"));
    }
    family.region().views(start + LINE, count_of(class))
}

/// How many blocks of a class fit into a slab beside its header and their words.
const fn count_of(class: usize) -> u64 {
    let size = LINE << class;
    let mut count = (SLAB - LINE) / (size + 8);
    while data_start(class, count) + count * size > SLAB {
        count -= 1;
    }
    count
}

/// Where the first block lies in a slab; blocks of a page and more begin on a page.
const fn data_start(class: usize, count: u64) -> u64 {
    let size = LINE << class;
    let align = if size < PAGE { LINE } else { PAGE };
    (LINE + 8 * count).next_multiple_of(align)
}

/// The classes differ in how many blocks a slab has.
fn class_from_count(count: usize) -> usize {
    (0..CLASSES)
        .find(|&class| count_of(class) == count as u64)
        .expect("`words_of` counts by class")
}
