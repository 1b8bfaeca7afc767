//! What lives as long as somebody uses it: locks, queues, pools, cells.
//!
//! ```text
//! object   header 192 bytes: kind, generation, references in messages, one owner bit for each process, a name
//!          body, whose layout is its kind's
//! ```
//!
//! A process that attaches sets its bit; setting it twice is setting it once, so that no death can make a count wrong.
//! A message that carries a handle keeps the object alive too, by a count that is only ever stored whole, under the
//! lifetime latch and with an intent. With no bit and no reference left, the object is taken apart by whoever saw it.

use super::block::{self, State};
use super::family::{Family, Me};
use super::fsck::Fsck;
use super::intent::{Intent, Op};
use super::layout::{LINE, OWNER_WORDS, Shared, shared};
use super::slabs::{self, Use};
use crate::error::{Error, Result};
use crate::fault;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What the engine must know of a kind of object, or of a room that has intents.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Finishes or undoes an operation that a dead thread left open. Stores only; see `recover`.
    pub(crate) resume: fn(&Family, &Intent),
    /// Frees what the body owns. Called once nobody can reach the object; called again if the caller died inside.
    pub(crate) destroy: fn(&'static Family, Me, body: u64),
    /// Returns a message of this object that a dead process had in its hands; false if it must be tried again later.
    pub(crate) lost: fn(&'static Family, Me, block: u64) -> bool,
    /// Marks what the body owns, and says what is wrong with it.
    pub(crate) check: fn(&'static Family, body: u64, &mut Fsck),
    /// Takes back what a dead process had of the object, which may be nothing. Called, under no latch but that of
    /// reclaim, before the process's slot is anybody else's; called again if the caller died inside.
    pub(crate) forget: Option<fn(&'static Family, Me, body: u64, process: u32)>,
}

impl Kind {
    /// A kind whose body owns nothing, opens no intent, and is whatever it is.
    pub(crate) const fn plain(name: &'static str) -> Kind {
        Kind {
            name,
            resume: |_, _| {},
            destroy: |_, _, _| {},
            lost: |_, _, _| true,
            check: |_, _, _| {},
            forget: None,
        }
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The kind of intents that this room opens.
pub(crate) const MEMORY: u32 = 0;

/// This room's line in the table of kinds.
pub(crate) const KIND: Kind = Kind {
    resume,
    ..Kind::plain("memory")
};

shared! {
    /// How every object begins.
    pub(crate) struct ObjectHeader: 192 {
        pub(crate) kind: AtomicU32,
        /// Tells this object from others that lay here before. Never 0.
        pub(crate) generation: AtomicU32,
        /// Messages and objects that keep it alive.
        pub(crate) references: AtomicU32,
        pub(crate) flags: AtomicU32,
        /// Bit `p` is set while process slot `p` is attached.
        pub(crate) owners: [AtomicU64; OWNER_WORDS],
        pub(crate) name: [AtomicU64; 6],
    }
}

/// Where the body lies, from the object's start.
pub(crate) const BODY: u64 = 192;

/// The name of a shared object, to be sent to other processes of the family: 8 bytes, an offset and a generation.
///
/// A handle is a plain number: it does not keep its object alive by itself. A message that lists it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(u64);

impl Handle {
    /// The handle that a number from [`Handle::to_bits`] stands for. Any number is fine: attaching checks it.
    pub fn from_bits(bits: u64) -> Handle {
        Handle(bits)
    }

    /// The handle as a number.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    fn new(offset: u64, generation: u32) -> Handle {
        Handle((u64::from(generation) << 32) | (offset / LINE))
    }

    fn offset(self) -> u64 {
        (self.0 & 0xffff_ffff) * LINE
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// How often this process is attached to each object, by offset, with the object's generation.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    counts: HashMap<u64, (u32, u32)>,
}

impl Attachments {
    /// What a forked child has of its parent's.
    pub(crate) fn inherit(&self) -> Attachments {
        Attachments {
            counts: self.counts.clone(),
        }
    }
}

/// This process's hold on an object. The last one to let go lets the object go.
pub(crate) struct Attached {
    family: &'static Family,
    handle: Handle,
}

impl Attached {
    pub(crate) fn family(&self) -> &'static Family {
        self.family
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle
    }

    pub(crate) fn body(&self) -> u64 {
        self.handle.offset() + BODY
    }

    /// The body as its kind lays it out. It stays for as long as `self` does; whoever keeps the reference keeps `self`.
    pub(crate) fn view<T: Shared>(&self) -> Result<&'static T> {
        self.family.region().view(self.body())
    }
}

impl Clone for Attached {
    fn clone(&self) -> Attached {
        if let Ok(local) = self.family.local_state()
            && let Some((_, count)) = local
                .attachments
                .lock()
                .counts
                .get_mut(&self.handle.offset())
        {
            *count += 1;
        }
        Attached {
            family: self.family,
            handle: self.handle,
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Without a seat (the arena's thread slots are all taken) the bit stays until the process ends.
        if let Ok(me) = self.family.me() {
            detach(self.family, me, self.handle);
        }
    }
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#018x}", self.handle.0)
    }
}

/// Creates an object; `init` fills its body, which is zero, before anybody can see it.
pub(crate) fn create(
    family: &'static Family,
    kind: u32,
    length: u64,
    init: impl FnOnce(Me, u64) -> Result<()>,
) -> Result<Attached> {
    let me = family.me()?;
    let size = BODY + length;
    let offset = family
        .or_sweep(me, || family.allocate_for(me, size, Use::Objects))?
        .offset;
    family.region().zero(offset, size)?;
    let object = header(family, offset)?;
    let generation = next_generation(family);
    object.kind.store(kind, Ordering::Release);
    object.generation.store(generation, Ordering::Release);
    set_bit(object, me.process);
    if let Err(error) = init(me, offset + BODY) {
        family.free(me, offset);
        return Err(error);
    }
    // DEATH: until the next store it is a private block of the dead process; after it, an object without a living owner.
    fault::point("object.filled");
    family.transfer(offset, State::Object, me.process)?;
    family
        .local_state()?
        .attachments
        .lock()
        .counts
        .insert(offset, (generation, 1));
    Ok(Attached {
        family,
        handle: Handle::new(offset, generation),
    })
}

fn next_generation(family: &Family) -> u32 {
    loop {
        let generation = family.header().generation.fetch_add(1, Ordering::Relaxed);
        if generation != 0 {
            return generation;
        }
    }
}

/// Attaches to the object of a handle, if it lives and is of this kind.
pub(crate) fn attach(family: &'static Family, kind: u32, handle: Handle) -> Result<Attached> {
    let what = family
        .kinds()
        .get(kind as usize)
        .map_or("object", |kind| kind.name);
    let me = family.me()?;
    let local = family.local_state()?;
    let refused = |why| Error::BadHandle {
        what,
        handle: handle.0,
        why,
    };
    {
        let mut attachments = local.attachments.lock();
        if let Some((generation, count)) = attachments.counts.get_mut(&handle.offset())
            && *generation == handle.generation()
        {
            let object = header(family, handle.offset())?;
            if object.kind.load(Ordering::Relaxed) != kind {
                return Err(refused("it names an object of another kind"));
            }
            *count += 1;
            return Ok(Attached { family, handle });
        }
    }
    enter_lifetime(family, me);
    let found = look_up(family, handle).map_err(refused).and_then(|object| {
        if object.kind.load(Ordering::Relaxed) != kind {
            return Err(refused("it names an object of another kind"));
        }
        // DEATH: a bit of a dead process, cleared by reclaim.
        set_bit(object, me.process);
        // Counted inside the latch: a thread that lets go of the same object looks at the count there.
        let mut attachments = local.attachments.lock();
        let entry = attachments
            .counts
            .entry(handle.offset())
            .or_insert((handle.generation(), 0));
        if entry.0 != handle.generation() {
            *entry = (handle.generation(), 0);
        }
        entry.1 += 1;
        Ok(())
    });
    family.header().lifetime.release(family, me);
    found.map(|()| Attached { family, handle })
}

/// The object that a handle names, if there is one still.
fn look_up(
    family: &Family,
    handle: Handle,
) -> std::result::Result<&'static ObjectHeader, &'static str> {
    if handle.generation() == 0 {
        return Err("it is no handle");
    }
    let owner = family
        .owner_of(handle.offset())
        .map_err(|_| "nothing of this family lies there")?;
    if owner.state != State::Object {
        return Err("its object is gone");
    }
    let object =
        header(family, handle.offset()).map_err(|_| "nothing of this family lies there")?;
    if object.generation.load(Ordering::Acquire) != handle.generation() {
        return Err("its object is gone");
    }
    Ok(object)
}

/// Lets go of an object once; with the process's last hold its bit goes, with the last bit and reference the object.
fn detach(family: &'static Family, me: Me, handle: Handle) {
    let Ok(local) = family.local_state() else {
        return;
    };
    {
        let mut attachments = local.attachments.lock();
        let Some((generation, count)) = attachments.counts.get_mut(&handle.offset()) else {
            return;
        };
        if *generation != handle.generation() {
            return;
        }
        *count -= 1;
        if *count > 0 {
            return;
        }
        attachments.counts.remove(&handle.offset());
    }
    enter_lifetime(family, me);
    let mut doomed = Vec::new();
    if let Ok(object) = look_up(family, handle) {
        // Another thread may have attached anew since the count went to zero.
        if !local
            .attachments
            .lock()
            .counts
            .contains_key(&handle.offset())
        {
            clear_bit(object, me.process);
            // DEATH: an object without owners; who takes the latch from the dead looks for those.
            fault::point("object.detached");
            condemn_if_unowned(family, me, handle.offset(), object, &mut doomed);
        }
    }
    family.header().lifetime.release(family, me);
    destroy_all(family, me, doomed);
}

/// Enters the lifetime latch. If its holder died inside, there may be objects that nobody owns and nobody takes apart.
fn enter_lifetime(family: &'static Family, me: Me) {
    match family.header().lifetime.enter(family, me) {
        super::latch::Acquired::Clean => {}
        super::latch::Acquired::OwnerDied => {
            let mut doomed = Vec::new();
            condemn_unowned(family, me, &mut doomed);
            if !doomed.is_empty() {
                family.header().lifetime.release(family, me);
                destroy_all(family, me, doomed);
                enter_lifetime(family, me);
            }
        }
    }
}

/// Makes every object that nobody owns a private block of the caller, to be taken apart. Under the lifetime latch.
pub(crate) fn condemn_unowned(family: &'static Family, me: Me, doomed: &mut Vec<u64>) {
    for (offset, object) in all(family) {
        condemn_if_unowned(family, me, offset, object, doomed);
    }
}

fn condemn_if_unowned(
    family: &'static Family,
    me: Me,
    offset: u64,
    object: &ObjectHeader,
    doomed: &mut Vec<u64>,
) {
    let unowned = object.references.load(Ordering::Acquire) == 0
        && object
            .owners
            .iter()
            .all(|word| word.load(Ordering::Acquire) == 0);
    if !unowned {
        return;
    }
    let Ok(word) = family.owner_word(offset) else {
        return;
    };
    let owner = block::Owner::unpack(word.load(Ordering::Acquire));
    // DEATH: from this store on it is a private block marked TEARDOWN; reclaim of its owner takes it apart again.
    let condemned = block::Owner {
        state: State::Private,
        flags: block::TEARDOWN,
        process: me.process,
        ..owner
    };
    word.store(condemned.pack(), Ordering::Release);
    doomed.push(offset);
}

/// Takes condemned objects apart, and those that only they kept alive.
pub(crate) fn destroy_all(family: &'static Family, me: Me, mut doomed: Vec<u64>) {
    while let Some(offset) = doomed.pop() {
        if let Ok(object) = header(family, offset)
            && let Some(kind) = family
                .kinds()
                .get(object.kind.load(Ordering::Relaxed) as usize)
        {
            (kind.destroy)(family, me, offset + BODY);
        }
        family.free_into(me, offset, &mut doomed);
    }
}

/// All objects with their headers. Under the lifetime latch, or as a picture that may be a little old.
pub(crate) fn all(family: &'static Family) -> impl Iterator<Item = (u64, &'static ObjectHeader)> {
    use super::runs;
    let mut found = Vec::new();
    for (unit, owner) in runs::walk(family) {
        match owner.state {
            State::Object => found.push(family.unit_offset(unit)),
            State::Slab if slabs::holds_objects(family, unit) => {
                let Ok(blocks) = slabs::blocks(family, unit) else {
                    continue;
                };
                let objects = blocks.filter(|(_, w)| {
                    block::Owner::unpack(w.load(Ordering::Acquire)).state == State::Object
                });
                found.extend(objects.map(|(offset, _)| offset));
            }
            _ => {}
        }
    }
    found
        .into_iter()
        .filter_map(|offset| Some((offset, header(family, offset).ok()?)))
}

/// Sets the bits of a child that is about to be forked, for everything its parent is attached to.
pub(crate) fn attach_for_child(family: &'static Family, me: Me, child: u32) -> Result<()> {
    let offsets: Vec<_> = family
        .local_state()?
        .attachments
        .lock()
        .counts
        .iter()
        .map(|(o, (g, _))| (*o, *g))
        .collect();
    enter_lifetime(family, me);
    for (offset, generation) in offsets {
        if let Ok(object) = look_up(family, Handle::new(offset, generation)) {
            set_bit(object, child);
        }
    }
    family.header().lifetime.release(family, me);
    Ok(())
}

/// In a child of a fork that nobody announced: takes its own hold on what its parent was attached to.
pub(crate) fn attach_inherited(
    family: &'static Family,
    local: &super::family::Local,
) -> Result<()> {
    let offsets: Vec<_> = local
        .attachments
        .lock()
        .counts
        .iter()
        .map(|(o, (g, _))| (*o, *g))
        .collect();
    if offsets.is_empty() {
        return Ok(());
    }
    let me = family.me()?;
    enter_lifetime(family, me);
    for (offset, generation) in offsets {
        match look_up(family, Handle::new(offset, generation)) {
            Ok(object) => set_bit(object, me.process),
            Err(_) => {
                local.attachments.lock().counts.remove(&offset);
            }
        }
    }
    family.header().lifetime.release(family, me);
    Ok(())
}

/// Clears a dead process's bits and condemns what nobody else owns. Under the lifetime latch; may be done twice.
pub(crate) fn release_owner(family: &'static Family, me: Me, process: u32, doomed: &mut Vec<u64>) {
    for (offset, object) in all(family) {
        clear_bit(object, process);
        condemn_if_unowned(family, me, offset, object, doomed);
    }
}

/// Lets every object that keeps books about processes strike a dead one. Under no latch but that of reclaim.
pub(crate) fn forget_process(family: &'static Family, me: Me, process: u32) {
    // Noted first: while they are looked at, others attach, detach and destroy.
    let kept: Vec<_> = all(family)
        .filter_map(|(offset, object)| {
            let kind = object.kind.load(Ordering::Relaxed);
            let forget = family.kinds().get(kind as usize)?.forget?;
            Some((kind, handle_of(offset, object), forget))
        })
        .collect();
    for (kind, handle, forget) in kept {
        // Held meanwhile, so that the last other holder's going does not free the body under us.
        if let Ok(held) = attach(family, kind, handle) {
            forget(family, me, held.body(), process);
        }
    }
}

/// Runs `work` inside the lifetime latch.
pub(crate) fn with_lifetime<R>(family: &'static Family, me: Me, work: impl FnOnce() -> R) -> R {
    enter_lifetime(family, me);
    let answer = work();
    family.header().lifetime.release(family, me);
    answer
}

// References in blocks. A block with the flag REFERENCES begins with `count`, then as many handles.

/// `[block, place in the block, object, references after, handle]`: a reference is being added or dropped.
const REFER: Op = Op {
    kind: MEMORY,
    code: 1,
};

/// Bytes that a list of so many handles takes at the start of a block.
pub(crate) fn references_length(count: usize) -> u64 {
    if count == 0 {
        0
    } else {
        (8 + 8 * count as u64).next_multiple_of(16)
    }
}

/// Writes the list of handles at the start of a private block: from now on the block keeps their objects alive.
pub(crate) fn add_references(
    family: &'static Family,
    me: Me,
    block: u64,
    handles: &[Handle],
) -> Result<()> {
    if handles.is_empty() {
        return Ok(());
    }
    family
        .region()
        .zero(block, references_length(handles.len()))?;
    family
        .region()
        .view::<AtomicU64>(block)?
        .store(handles.len() as u64, Ordering::Release);
    // DEATH: a flagged block of the dead process; reclaim drops the references that are written.
    family.flag(block, block::REFERENCES)?;
    enter_lifetime(family, me);
    let mut answer = Ok(());
    for (index, handle) in handles.iter().enumerate() {
        match look_up(family, *handle) {
            Ok(object) => {
                let after = object.references.load(Ordering::Relaxed) + 1;
                let place = block + 8 + 8 * index as u64;
                refer(family, me, place, handle.offset(), after, handle.0);
            }
            Err(why) => {
                answer = Err(Error::BadHandle {
                    what: "an object in a message",
                    handle: handle.0,
                    why,
                });
                break;
            }
        }
    }
    family.header().lifetime.release(family, me);
    answer
}

/// Drops every reference of a private block.
pub(crate) fn drop_references(family: &'static Family, me: Me, block: u64, doomed: &mut Vec<u64>) {
    let Ok(capacity) = family.block_at(block).map(|(block, _)| block.capacity) else {
        return;
    };
    let count = read_count(family, block, capacity);
    enter_lifetime(family, me);
    for index in 0..count {
        let place = block + 8 + 8 * index;
        let Ok(word) = family.region().view::<AtomicU64>(place) else {
            break;
        };
        let handle = Handle(word.load(Ordering::Acquire));
        if let Ok(object) = look_up(family, handle) {
            let after = object.references.load(Ordering::Relaxed).saturating_sub(1);
            refer(family, me, place, handle.offset(), after, 0);
            condemn_if_unowned(family, me, handle.offset(), object, doomed);
        }
    }
    family.header().lifetime.release(family, me);
}

/// The handles that a block lists.
pub(crate) fn references(family: &Family, block: u64, capacity: u64) -> Vec<Handle> {
    let places = (0..read_count(family, block, capacity)).map(|index| block + 8 + 8 * index);
    let words = places.filter_map(|place| family.region().view::<AtomicU64>(place).ok());
    words
        .map(|word| Handle(word.load(Ordering::Acquire)))
        .filter(|handle| handle.0 != 0)
        .collect()
}

/// How many handles a block says to list, cut to what can be there.
pub(crate) fn read_count(family: &Family, block: u64, capacity: u64) -> u64 {
    let count = family
        .region()
        .view::<AtomicU64>(block)
        .map_or(0, |word| word.load(Ordering::Acquire));
    count.min(capacity / 8 - 1)
}

/// Stores one reference and its object's count, both or neither.
fn refer(family: &Family, me: Me, place: u64, object: u64, after: u32, handle: u64) {
    let args = [place, object, u64::from(after), handle];
    family.intend(me, REFER, &args);
    apply(family, &args);
    family.fulfil(me);
}

fn apply(family: &Family, args: &[u64]) {
    let &[place, object, after, handle, ..] = args else {
        return;
    };
    // DEATH: between these two stores the intent says both values; recovery stores them again.
    if let Ok(object) = header(family, object) {
        object.references.store(after as u32, Ordering::Release);
    }
    fault::point("object.referred");
    if let Ok(word) = family.region().view::<AtomicU64>(place) {
        word.store(handle, Ordering::Release);
    }
}

fn resume(family: &Family, intent: &Intent) {
    if intent.op == REFER {
        apply(family, &intent.args);
    }
}

/// Holds an object alive from the body of another, without a message: the count goes up. Under no latch.
pub(crate) fn keep(family: &'static Family, me: Me, place: u64, handle: Handle) -> Result<()> {
    with_lifetime(family, me, || match look_up(family, handle) {
        Ok(object) => {
            let after = object.references.load(Ordering::Relaxed) + 1;
            refer(family, me, place, handle.offset(), after, handle.0);
            Ok(())
        }
        Err(why) => Err(Error::BadHandle {
            what: "an object",
            handle: handle.0,
            why,
        }),
    })
}

/// Lets go of what [`keep`] held at `place`.
pub(crate) fn let_go(family: &'static Family, me: Me, place: u64) {
    let mut doomed = Vec::new();
    with_lifetime(family, me, || {
        let Ok(word) = family.region().view::<AtomicU64>(place) else {
            return;
        };
        let handle = Handle(word.load(Ordering::Acquire));
        if let Ok(object) = look_up(family, handle) {
            let after = object.references.load(Ordering::Relaxed).saturating_sub(1);
            refer(family, me, place, handle.offset(), after, 0);
            condemn_if_unowned(family, me, handle.offset(), object, &mut doomed);
        }
    });
    destroy_all(family, me, doomed);
}

pub(crate) fn header(family: &Family, offset: u64) -> Result<&'static ObjectHeader> {
    family.region().view(offset)
}

fn set_bit(object: &ObjectHeader, process: u32) {
    object.owners[process as usize / 64].fetch_or(1 << (process % 64), Ordering::AcqRel);
}

fn clear_bit(object: &ObjectHeader, process: u32) {
    object.owners[process as usize / 64].fetch_and(!(1 << (process % 64)), Ordering::AcqRel);
}

/// The kind of the object that a handle names, if it lives.
pub(crate) fn kind_of(family: &Family, handle: Handle) -> Option<&'static Kind> {
    let object = look_up(family, handle).ok()?;
    family
        .kinds()
        .get(object.kind.load(Ordering::Relaxed) as usize)
}

/// The handle of the object at `offset`.
pub(crate) fn handle_of(offset: u64, object: &ObjectHeader) -> Handle {
    Handle::new(offset, object.generation.load(Ordering::Acquire))
}

/// The process slots whose bits are set.
pub(crate) fn owners(object: &ObjectHeader) -> Vec<u32> {
    let bits = |word: &AtomicU64| word.load(Ordering::Acquire);
    (0..OWNER_WORDS as u32 * 64)
        .filter(|p| bits(&object.owners[*p as usize / 64]) >> (p % 64) & 1 == 1)
        .collect()
}
