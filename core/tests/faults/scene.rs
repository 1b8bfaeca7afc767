//! What stands around an operation, and what must be true after a death in it.

use crate::page::{Page, Word};
use procession_core::{Deadline, Family, Handle, Message, Outgoing, Queue, Tag, testing};
use std::error::Error as _;
use std::time::Duration;

/// One operation of the engine, to be killed at each of its stores.
pub struct Operation {
    pub name: &'static str,
    /// Makes a family and all that the operation needs.
    pub scene: fn() -> Scene,
}

/// Something that a scene claims of what the survivor sees.
type Claim = Box<dyn Fn(&Survivor)>;

/// A family, what is in it, what the victim does, and what may be true afterwards.
pub struct Scene {
    pub family: &'static Family,
    /// Queues to look into, by handle.
    pub queues: Vec<Handle>,
    /// What the queues may hold afterwards, one of these: the numbers of the messages of each.
    pub outcomes: Vec<Vec<Vec<u32>>>,
    /// Whether the messages come in the order in which they are told; what was given back comes when it comes.
    pub ordered: bool,
    /// Runs in the victim: gets ready, and returns the operation.
    pub ready: Box<dyn Fn() -> Box<dyn FnOnce()>>,
    /// Further claims about the survivor's view.
    pub also: Option<Claim>,
    /// What must stay alive in the process that made the scene.
    pub kept: Vec<Box<dyn std::any::Any>>,
    /// Processes that died before the operation.
    pub corpses: Vec<u32>,
}

impl Scene {
    pub fn new(family: &'static Family) -> Scene {
        Scene {
            family,
            queues: Vec::new(),
            outcomes: vec![Vec::new()],
            ordered: true,
            ready: Box::new(|| Box::new(|| {})),
            also: None,
            kept: Vec::new(),
            corpses: Vec::new(),
        }
    }

    /// A queue to look into, kept by the process of the scene.
    pub fn queue(mut self, queue: &Queue) -> Scene {
        self.queues.push(queue.handle());
        self.keep(queue.clone())
    }

    pub fn keep(mut self, thing: impl std::any::Any) -> Scene {
        self.kept.push(Box::new(thing));
        self
    }

    /// What the queues may hold: for each possible outcome, for each queue, its messages in order.
    pub fn outcomes(mut self, outcomes: &[&[&[u32]]]) -> Scene {
        let lists = |queues: &&[&[u32]]| queues.iter().map(|list| list.to_vec()).collect();
        self.outcomes = outcomes.iter().map(lists).collect();
        self
    }

    pub fn in_any_order(mut self) -> Scene {
        self.ordered = false;
        self
    }

    /// What the victim does: `ready` is not stepped, what it returns is.
    pub fn victim<A: FnOnce() + 'static>(mut self, ready: impl Fn() -> A + 'static) -> Scene {
        self.ready = Box::new(move || Box::new(ready()));
        self
    }

    #[allow(dead_code, reason = "for scenes with other things than queues")]
    pub fn also(mut self, claim: impl Fn(&Survivor) + 'static) -> Scene {
        self.also = Some(Box::new(claim));
        self
    }
}

/// Who looks at the arena after a death.
pub struct Survivor {
    pub family: &'static Family,
    pub page: Page,
    pub way: Way,
}

/// What a survivor does after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It looks for the dead before it works.
    SweepsFirst,
    /// It works before it looks for the dead, and so meets what they hold: it gets all, and then puts.
    WorksFirst,
    /// It does not touch the queues; they go with the last who held them, as the victim left them.
    Abandons,
    /// The victim is only stopped, and goes on to its end: whatever the survivor does meanwhile must not disturb it.
    LooksOn,
}

/// How long whatever must succeed at once may take.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// The survivor's own message.
const MARKER: u32 = 900_000;

impl Survivor {
    pub fn phase(&self, text: &str) {
        self.page.write(text);
    }

    /// Lives on in the arena and checks everything; returns which of the scene's outcomes it found.
    pub fn check(&self, scene: &Scene) -> usize {
        self.phase("taking a seat");
        testing::enter(self.family).expect("a seat");
        match self.way {
            Way::SweepsFirst | Way::Abandons => {
                self.phase("first check");
                self.sound();
            }
            Way::WorksFirst => {}
            Way::LooksOn => self.look_on(scene),
        }
        let outcome = match self.way {
            Way::SweepsFirst | Way::WorksFirst | Way::LooksOn => self.work(scene),
            Way::Abandons => {
                self.wait_until_killed();
                0
            }
        };
        if let Some(also) = &scene.also {
            self.phase("the scene's own claims");
            also(self);
        }
        self.phase("using memory");
        self.use_memory();
        self.phase("burying all others");
        for pid in testing::pids(self.family) {
            if pid != std::process::id() {
                testing::strike(self.family, pid);
            }
        }
        self.sound();
        testing::trim(self.family).expect("a seat");
        self.phase("counting what is left");
        let left = self.family.fsck().expect("a check");
        assert_eq!(
            (left.objects, left.blocks_shared, left.blocks_private),
            (0, 0, 0),
            "all was dropped: objects, shared blocks, private blocks"
        );
        let pids = testing::pids(self.family);
        assert_eq!(pids, [std::process::id()], "all other slots are free");
        let usage = self.family.usage();
        let slabs = usage.bytes_in_use / (64 << 10);
        assert!(slabs <= 16, "{usage:?}: more than a slab for each class");
        outcome
    }

    /// Uses everything but what is in the queues, beside a victim that is alive.
    fn look_on(&self, scene: &Scene) {
        self.phase("looking on: looking for the dead");
        testing::sweep(self.family).expect("a seat");
        self.phase("looking on: using memory");
        for length in [64, 8192, 20_000] {
            let offset = testing::allocate(self.family, length).expect("memory");
            testing::free(self.family, offset).expect("a seat");
        }
        testing::trim(self.family).expect("a seat");
        self.phase("looking on: attaching");
        for handle in &scene.queues {
            let queue = Queue::attach(self.family, *handle).expect("a living queue");
            let _ = (queue.len(), queue.unfinished());
        }
        self.phase("looking on: looking for the dead again");
        testing::sweep(self.family).expect("a seat");
        self.wait_until_killed();
        self.sound();
    }

    /// Uses the queues, checks what is in them, and empties them.
    fn work(&self, scene: &Scene) -> usize {
        self.phase("attaching");
        let attach = |handle: &Handle| Queue::attach(self.family, *handle).expect("a living queue");
        let queues: Vec<Queue> = scene.queues.iter().map(attach).collect();
        let mut found = vec![Vec::new(); queues.len()];
        for (queue, found) in queues.iter().zip(&mut found) {
            self.phase("getting first");
            found.extend(take(queue));
            while self.way == Way::WorksFirst
                && let Some(number) = take(queue)
            {
                found.push(number);
            }
            if !queue.is_closed() {
                self.phase("putting");
                put(queue, MARKER, 8);
                self.phase("getting again");
                found.push(number(queue, &queue.get(soon()).expect("what was put")));
            }
        }
        self.wait_until_killed();
        self.phase("second check");
        self.sound();
        self.phase("draining");
        for (queue, found) in queues.iter().zip(&mut found) {
            while let Some(number) = take(queue) {
                found.push(number);
            }
            assert_eq!(queue.len(), 0, "a drained queue is empty");
            found.retain(|number| *number != MARKER);
            if is_joinable(queue) {
                assert_eq!(queue.unfinished(), 0, "all that was put is done");
            }
        }
        self.phase("checking the drained queues");
        self.sound();
        self.outcome(scene, &found)
    }

    fn outcome(&self, scene: &Scene, found: &[Vec<u32>]) -> usize {
        let in_any_order = |lists: &[Vec<u32>]| -> Vec<Vec<u32>> {
            let mut lists = lists.to_vec();
            lists.iter_mut().for_each(|list| list.sort_unstable());
            lists
        };
        let fits = |outcome: &Vec<Vec<u32>>| {
            if scene.ordered {
                outcome == found
            } else {
                in_any_order(outcome) == in_any_order(found)
            }
        };
        let outcome = scene.outcomes.iter().position(fits);
        outcome.unwrap_or_else(|| panic!("the queues hold {found:?}, none of {:?}", scene.outcomes))
    }

    fn sound(&self) {
        let findings = self.family.fsck().expect("a check");
        assert_eq!(findings.faults, Vec::<String>::new());
    }

    /// Takes and gives back a block of each kind, and then all memory that there is.
    fn use_memory(&self) {
        let take = |length| testing::allocate(self.family, length);
        let sizes = [1, 100, 250, 500, 1000, 2000, 4000, 8000, 20_000];
        let mut blocks: Vec<u64> = sizes.map(|size| take(size).expect("memory")).into();
        loop {
            match take(70_000) {
                Ok(offset) => blocks.push(offset),
                Err(procession_core::Error::Exhausted { .. }) => break,
                Err(error) => panic!("memory ended with {error}: {:?}", error.source()),
            }
        }
        let usage = self.family.usage();
        assert_eq!(
            usage.bytes_grown, usage.bytes_max,
            "the arena grew as far as it may"
        );
        for offset in blocks {
            testing::free(self.family, offset).expect("a seat");
        }
    }

    /// Says that the work before the kill is done, if there is to be one.
    fn wait_until_killed(&self) {
        self.page.set(Word::Arrived, 1);
        while self.page.get(Word::Killed) == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Whether the queue counts what is done. Its door does not tell, but its description does.
fn is_joinable(queue: &Queue) -> bool {
    format!("{queue:?}").contains("unfinished")
}

/// Takes a message that is there, and is done with it.
fn take(queue: &Queue) -> Option<u32> {
    match queue.get(Deadline::PASSED) {
        Ok(message) => Some(number(queue, &message)),
        Err(error) if error.is_timeout() => None,
        Err(procession_core::Error::Closed { .. }) => None,
        Err(error) => panic!("a get failed: {error}"),
    }
}

/// Puts message `number`, `length` bytes long.
pub fn put(queue: &Queue, number: u32, length: usize) {
    let outgoing = bytes_of(number, length);
    queue
        .put(Tag::RAW, &[&outgoing], soon())
        .expect("a message is put");
}

/// The bytes of message `number`: its number, its length, zeros, and a last byte that is not.
pub fn bytes_of(number: u32, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
    if length > 8 {
        bytes[length - 1] = 0xee;
    }
    bytes
}

/// Puts a message that carries handles.
pub fn put_with_handles(queue: &Queue, number: u32, length: usize, handles: &[Handle]) {
    let bytes = bytes_of(number, length);
    let outgoing = Outgoing {
        tag: Tag::RAW,
        parts: &[&bytes],
        handles,
    };
    queue
        .put_message(outgoing, soon())
        .expect("a message is put");
}

/// The number of a whole message; done, if it is on loan.
fn number(queue: &Queue, message: &Message) -> u32 {
    let bytes = message.bytes();
    let number = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    assert_eq!(bytes, bytes_of(number, bytes.len()), "the message is whole");
    let length = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
    assert_eq!(length as usize, bytes.len(), "the message is whole");
    for handle in message.handles() {
        Queue::attach(queue.family(), *handle).expect("what a message carries lives");
    }
    match queue.done(message) {
        Ok(()) | Err(procession_core::Error::NotHeld { .. }) => {}
        Err(error) => panic!("a message could not be done: {error}"),
    }
    number
}
