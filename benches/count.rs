//! How many instructions and system calls one operation takes, counted one by one.
//!
//! A child does the operation between two breakpoints while this process has it go step by step, so that neither the
//! machine's speed nor its load matters, and nothing needs to be installed. What the kernel does inside a system call
//! is not seen: that it was called is.
#![allow(unsafe_code, reason = "traces a child")]
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]
#![allow(missing_docs, reason = "a program")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod counting {
    use procession_core::{Deadline, Options, Outgoing, Queue, Tag};
    use std::hint::black_box;

    /// How often each operation is counted. A queue's segment takes as many messages: the mean has its share of making
    /// one.
    const TIMES: usize = 127;

    /// What came out for one operation.
    struct Count {
        /// The median, the mean and the largest number of instructions.
        instructions: (u64, f64, u64),
        /// System calls, over all times.
        calls: u64,
    }

    /// Stops this process for its tracer.
    #[inline(always)]
    fn mark() {
        // SAFETY: a breakpoint changes nothing but where the process waits.
        unsafe { std::arch::asm!("int3") };
    }

    /// Counts what `operation` does, `TIMES` times, in a child that `prepare` makes ready.
    fn count<T, O: FnMut() -> T>(prepare: impl FnOnce() -> O) -> Count {
        // SAFETY: this process has one thread; the child ends by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let mut operation = prepare();
            // Once unseen, so that what is made on first use is there.
            (0..2 * TIMES).for_each(|_| drop(black_box(operation())));
            // SAFETY: plain system calls.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
            }
            for _ in 0..TIMES {
                mark();
                let got = black_box(operation());
                mark();
                drop(got);
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let (mut instructions, mut calls) = (Vec::new(), 0);
        let mut goes_on = wait(child);
        for _ in 0..TIMES {
            assert!(goes_on, "a first mark");
            let mut steps = 0;
            let mut at = instruction_pointer(child);
            while code(at)[0] != BREAKPOINT {
                calls += u64::from(code(at) == SYSTEM_CALL);
                assert!(resume(child, libc::PTRACE_SINGLESTEP), "a second mark");
                let next = instruction_pointer(child);
                // One that repeats itself (`rep movsb`) is one, however many bytes it moves.
                steps += u64::from(next != at);
                at = next;
            }
            assert!(resume(child, libc::PTRACE_CONT), "a second mark");
            instructions.push(steps);
            goes_on = resume(child, libc::PTRACE_CONT);
        }
        assert!(!goes_on, "the end");
        instructions.sort_unstable();
        let mean = instructions.iter().sum::<u64>() as f64 / TIMES as f64;
        Count {
            instructions: (instructions[TIMES / 2], mean, instructions[TIMES - 1]),
            calls,
        }
    }

    /// Lets the child go on until it stops; false when it ended.
    fn resume(child: i32, how: libc::c_uint) -> bool {
        // SAFETY: the child is ours, and stopped.
        unsafe { libc::ptrace(how, child, 0, 0) };
        wait(child)
    }

    fn wait(child: i32) -> bool {
        let mut status = 0;
        // SAFETY: the child is ours; the pointer is valid.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        let stopped = libc::WIFSTOPPED(status);
        let expected = if stopped {
            libc::WSTOPSIG(status) == libc::SIGTRAP
        } else {
            status == 0
        };
        assert!(expected, "the child met {status:#x}");
        stopped
    }

    const BREAKPOINT: u8 = 0xcc;
    const SYSTEM_CALL: [u8; 2] = [0x0f, 0x05];

    /// Where the child goes on.
    fn instruction_pointer(child: i32) -> u64 {
        let place = std::mem::offset_of!(libc::user_regs_struct, rip);
        // SAFETY: a word of a stopped child's registers.
        unsafe { libc::ptrace(libc::PTRACE_PEEKUSER, child, place, 0) as u64 }
    }

    /// The first bytes of an instruction of the child.
    fn code(address: u64) -> [u8; 2] {
        // SAFETY: the child is a copy of this process, and has loaded no code since: what it runs lies here too.
        unsafe { (address as *const [u8; 2]).read() }
    }

    fn queue(max_items: Option<u64>) -> Queue {
        let family = procession_core::family().create().expect("an arena");
        let options = Options {
            max_items,
            ..Options::default()
        };
        Queue::create(family, &options).expect("a queue")
    }

    fn put(queue: &Queue, bytes: &[u8]) {
        let put = queue.put(Tag::RAW, &[black_box(bytes)], Deadline::NEVER);
        put.expect("an open queue");
    }

    fn filled(length: usize) -> Queue {
        let queue = queue(None);
        // More than are ever got: the queue must not get empty.
        (0..4 * TIMES).for_each(|_| put(&queue, &vec![1; length]));
        queue
    }

    fn lines() -> Vec<(&'static str, Count)> {
        let mut lines = vec![("nothing (the marks themselves)", count(|| || ()))];
        for (put_name, get_name, length) in [
            ("put, 16 B", "get, 16 B", 16),
            ("put, 1 KiB", "get and drop, 1 KiB", 1024),
        ] {
            lines.push((
                put_name,
                count(|| {
                    let (queue, bytes) = (queue(None), vec![1; length]);
                    move || put(&queue, &bytes)
                }),
            ));
            lines.push((
                get_name,
                count(|| {
                    let queue = filled(length);
                    move || {
                        let message = queue.get(Deadline::NEVER).expect("a message");
                        u64::from(black_box(message.bytes())[0])
                    }
                }),
            ));
        }
        lines.push((
            "put, 16 B, bounded queue",
            count(|| {
                let queue = queue(Some(1 << 20));
                move || put(&queue, &[1; 16])
            }),
        ));
        lines.push((
            "put_many of 64, 16 B each",
            count(|| {
                let queue = queue(None);
                move || {
                    let parts: [&[u8]; 1] = [black_box(&[1; 16])];
                    let batch = [Outgoing::bytes(Tag::RAW, &parts); 64];
                    queue.put_many(&batch, Deadline::NEVER).expect("put")
                }
            }),
        ));
        lines.push((
            "crossbeam send, 16 B",
            count(|| {
                let (sender, receiver) = crossbeam_channel::unbounded::<[u8; 16]>();
                move || {
                    black_box(&receiver);
                    sender.send(black_box([1; 16])).expect("a receiver")
                }
            }),
        ));
        lines.push((
            "crossbeam receive, 16 B",
            count(|| {
                let (sender, receiver) = crossbeam_channel::unbounded::<[u8; 16]>();
                (0..4 * TIMES).for_each(|_| sender.send([1; 16]).expect("a receiver"));
                move || {
                    black_box(&sender);
                    receiver.recv().expect("a message")
                }
            }),
        ));
        lines.push((
            "ipc-channel send and receive, 16 B",
            count(|| {
                let (sender, receiver) = ipc_channel::ipc::bytes_channel().expect("a channel");
                move || {
                    sender.send(black_box(&[1; 16])).expect("a receiver");
                    receiver.recv().expect("a message")
                }
            }),
        ));
        lines
    }

    pub(crate) fn main() {
        println!("\n### Instructions and system calls of one operation, nobody asleep\n");
        println!("| | instructions, median | mean | most | system calls |");
        println!("|---|---|---|---|---|");
        for (
            name,
            Count {
                instructions: (median, mean, most),
                calls,
            },
        ) in lines()
        {
            let calls = calls as f64 / TIMES as f64;
            println!("| {name} | {median} | {mean:.0} | {most} | {calls:.3} |");
        }
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    counting::main();
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("instructions are counted on Linux x86_64 alone");
}
