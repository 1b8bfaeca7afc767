//! Processes started by each method, and how they end.

use crate::support_process::*;
use procession_core::process::{
    self, Child, Ending, FDS_MAX, Method, Start, Started, Stdio, active_children, finish, start,
};
use procession_core::{Deadline, Error, Family, Queue, Tag, connection};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

const METHODS: [Method; 3] = [Method::Fork, Method::Spawn, Method::Zygote];

fn exit_with(payload: &[u8]) -> i32 {
    i32::from(payload[0])
}

#[test]
fn an_exit_code_arrives_by_every_method() {
    divert(|started| exit_with(&started.payload));
    let family = family();
    for method in METHODS {
        for code in [0, 1, 42, 255] {
            let name = "process::an_exit_code_arrives_by_every_method";
            let child = start_by(family, method, name, &[code], exit_with).unwrap();
            let exit = child.join(watchdog()).unwrap();
            assert_eq!(exit.ending, Ending::Code(code.into()), "{method:?}");
            assert_eq!(exit.is_success(), code == 0);
            assert!(exit.began && exit.peak_memory > 0, "{method:?}: {exit:?}");
            assert_eq!(child.poll().unwrap(), Some(exit));
            child.close().unwrap();
        }
    }
    finish(watchdog()).unwrap();
    assert_sound(family);
}

fn sleep_on(_: &[u8]) -> i32 {
    std::thread::sleep(Duration::from_secs(50));
    0
}

#[test]
fn a_signal_is_told_from_a_code_by_every_method() {
    divert(|started| sleep_on(&started.payload));
    let family = family();
    for method in METHODS {
        for signal in [15, 9, 10] {
            let name = "process::a_signal_is_told_from_a_code_by_every_method";
            let child = start_by(family, method, name, &[], sleep_on).unwrap();
            let timeout = child.join(Deadline::PASSED).unwrap_err();
            assert!(timeout.is_timeout(), "{timeout}");
            assert_eq!(child.poll().unwrap(), None);
            assert!(child.clone().close().is_err(), "it runs");
            assert!(
                match signal {
                    15 => child.terminate(),
                    9 => child.kill(),
                    _ => child.signal(signal),
                }
                .unwrap()
            );
            let exit = child.join(watchdog()).unwrap();
            assert_eq!(exit.ending, Ending::Signal(signal), "{method:?}");
            assert_eq!(exit.code(), Some(-signal));
            assert_ne!(exit.out_of_memory, Some(true));
            assert!(!child.kill().unwrap(), "it has ended");
        }
    }
    finish(watchdog()).unwrap();
    assert_sound(family);
}

#[test]
fn a_child_knows_its_name_and_its_parent() {
    fn describe(family: &'static Family, queue: &Queue) -> i32 {
        let current = process::current(family).unwrap();
        let parent = process::parent().unwrap();
        let text = format!(
            "{} {} {} {:?} {:?} {}",
            current.name,
            current.pid == std::process::id(),
            current.daemon,
            current.method.unwrap(),
            current.parent_pid,
            parent.pid(),
        );
        queue.put(Tag::RAW, &[text.as_bytes()], watchdog()).unwrap();
        0
    }
    divert(|started| {
        let queue = Queue::attach(started.family, started.payload.handles()[0]).unwrap();
        describe(started.family, &queue)
    });
    let family = family();
    let queue = Queue::create(family, &Default::default()).unwrap();
    for method in METHODS {
        for daemon in [false, true] {
            // 47 bytes are kept; the 47th is the first half of a character.
            let name = format!("{}äb", "x".repeat(46));
            let kept = "x".repeat(46);
            let common = Start {
                name: &name,
                daemon,
                ..Start::new(method)
            };
            let child = match method {
                Method::Fork => fork(family, &common, || describe(family, &queue)).unwrap(),
                _ => start(
                    family,
                    &Start {
                        handles: &[queue.handle()],
                        name: &name,
                        daemon,
                        ..rerun(method, "process::a_child_knows_its_name_and_its_parent")
                    },
                )
                .unwrap(),
            };
            assert_eq!((child.name(), child.is_daemon()), (&*kept, daemon));
            let me = std::process::id();
            let message = queue.get(watchdog()).unwrap();
            assert_eq!(
                std::str::from_utf8(message.bytes()).unwrap(),
                format!("{kept} true {daemon} {method:?} {:?} {me}", Some(me)),
            );
            assert!(child.join(watchdog()).unwrap().is_success());
        }
    }
    finish(watchdog()).unwrap();
    drop(queue);
    assert_sound(family);
}

fn sum(payload: &[u8]) -> i32 {
    let sum = payload
        .iter()
        .fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte));
    (sum % 200) as i32
}

#[test]
fn payloads_of_any_size_arrive_and_leave_nothing() {
    divert(|started| sum(&started.payload));
    let family = procession_core::family().create().unwrap();
    let large: Vec<u8> = (0..64 << 20).map(|i: u32| (i ^ i >> 8) as u8).collect();
    for method in [Method::Spawn, Method::Zygote] {
        for length in [0, 1, 5000, large.len()] {
            let name = "process::payloads_of_any_size_arrive_and_leave_nothing";
            let payload = &large[large.len() - length..];
            let child = start_by(family, method, name, payload, sum).unwrap();
            assert_eq!(
                child.join(watchdog()).unwrap().ending,
                Ending::Code(sum(payload))
            );
        }
    }
    finish(watchdog()).unwrap();
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
    assert_sound(family);
}

#[test]
fn a_child_that_never_begins_leaves_nothing() {
    let family = family();
    let queue = Queue::create(family, &Default::default()).unwrap();
    let program = Some(PathBuf::from("/bin/sleep"));
    let child = start(
        family,
        &Start {
            program,
            args: vec!["100".into()],
            payload: &[&[1; 100_000]],
            handles: &[queue.handle()],
            ..Start::new(Method::Spawn)
        },
    )
    .unwrap();
    drop(queue);
    assert_eq!(
        family.fsck().unwrap().objects,
        1,
        "the payload keeps the queue"
    );
    child.kill().unwrap();
    let exit = child.join(watchdog()).unwrap();
    assert_eq!((exit.ending, exit.began), (Ending::Signal(9), false));
    let findings = family.fsck().unwrap();
    assert_eq!((findings.objects, findings.blocks_private), (0, 0));
    assert_sound(family);
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_leaves_nothing() {
    let family = procession_core::family().processes_max(3).create().unwrap();
    for _ in 0..10 {
        let error = start(
            family,
            &Start {
                program: Some("/nowhere/nothing".into()),
                payload: &[b"for nobody"],
                ..Start::new(Method::Spawn)
            },
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "failed to spawn a program");
    }
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
    assert_sound(family);
}

#[test]
fn a_family_without_a_free_slot_says_so() {
    let family = procession_core::family().processes_max(3).create().unwrap();
    let (near, far) = connection::pair(family).unwrap();
    let wait = || i32::from(far.recv(watchdog()).is_err());
    let children = [(); 2].map(|()| fork(family, &Start::new(Method::Fork), wait).unwrap());
    let error = fork(family, &Start::new(Method::Fork), || 0).unwrap_err();
    assert_eq!(error.to_string(), "process slots exhausted: the limit is 3");
    for _ in &children {
        near.send(Tag::RAW, &[], watchdog()).unwrap();
    }
    for child in children {
        assert!(child.join(watchdog()).unwrap().is_success());
    }
    assert_eq!(
        fork(family, &Start::new(Method::Fork), || 3)
            .unwrap()
            .join(watchdog())
            .unwrap()
            .code(),
        Some(3)
    );
    assert_sound(family);
}

#[test]
fn a_panic_in_a_forked_child_ends_the_child_alone() {
    let family = family();
    let child = fork(family, &Start::new(Method::Fork), || {
        std::panic::resume_unwind(Box::new(1))
    });
    assert_eq!(child.unwrap().join(watchdog()).unwrap().code(), Some(101));
    assert_sound(family);
}

#[test]
fn directory_streams_environment_and_descriptors_are_the_childs() {
    fn show(mut started: Started) -> i32 {
        let mut input = String::new();
        std::io::stdin().read_to_string(&mut input).unwrap();
        let here = std::env::current_dir().unwrap();
        let seen = |name| std::env::var(name).ok();
        let text = format!(
            "{input} {} {:?} {:?}",
            here.display(),
            seen("PROCESSION_TEST_SET"),
            seen("PROCESSION_TEST_GONE")
        );
        let mut out = File::from(started.fds.remove(0));
        out.write_all(text.as_bytes()).unwrap();
        started.fds.len() as i32
    }
    divert(show);
    if part().is_none() {
        let name = "process::directory_streams_environment_and_descriptors_are_the_childs";
        let mut helper = helper(name, "parent")
            .env("PROCESSION_TEST_GONE", "here")
            .spawn()
            .unwrap();
        assert!(helper.wait().unwrap().success());
        return;
    }
    let family = family();
    for method in [Method::Spawn, Method::Zygote] {
        let (input, mut tell) = std::io::pipe().unwrap();
        let (mut output, out) = std::io::pipe().unwrap();
        tell.write_all(b"typed").unwrap();
        drop(tell);
        let fds = vec![out.as_fd(); FDS_MAX];
        let name = "process::directory_streams_environment_and_descriptors_are_the_childs";
        let child = start(
            family,
            &Start {
                stdio: [Stdio::Fd(input.as_fd()), Stdio::Null, Stdio::Inherit],
                directory: Some("/proc".into()),
                env: vec![
                    ("PROCESSION_TEST_SET".into(), Some("a=b".into())),
                    ("PROCESSION_TEST_GONE".into(), None),
                ],
                fds: &fds,
                ..rerun(method, name)
            },
        )
        .unwrap();
        drop(fds);
        drop(out);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "typed /proc Some(\"a=b\") None", "{method:?}");
        assert_eq!(
            child.join(watchdog()).unwrap().code(),
            Some(FDS_MAX as i32 - 1)
        );
        let many = vec![input.as_fd(); FDS_MAX + 1];
        let error = start(
            family,
            &Start {
                fds: &many,
                ..rerun(method, name)
            },
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "a list of descriptors is too large: 49 is more than 48"
        );
    }
    finish(watchdog()).unwrap();
    assert_sound(family);
}

/// Starts children by each method down to `depth`, says so, and stays.
fn grow_tree(family: &'static Family, depth: u8) -> i32 {
    let mut children = Vec::new();
    if depth > 0 {
        children.push(
            fork(family, &Start::new(Method::Fork), || {
                grow_tree(family, depth - 1)
            })
            .unwrap(),
        );
        for method in [Method::Spawn, Method::Zygote] {
            let child = start(
                family,
                &Start {
                    payload: &[&[depth - 1]],
                    stdio: [Stdio::Inherit; 3],
                    ..rerun(method, "process::a_killed_root_takes_everything_with_it")
                },
            );
            children.push(child.unwrap());
        }
    }
    let line = format!("\nready {}\n", std::process::id());
    rustix::io::write(std::io::stdout(), line.as_bytes()).unwrap();
    sleep_on(&[])
}

#[test]
fn a_killed_root_takes_everything_with_it() {
    divert(|started| grow_tree(started.family, started.payload[0]));
    if part().is_some() {
        alarm();
        std::process::exit(grow_tree(family(), 2));
    }
    for stopped in [0, 5] {
        // Everything below the root inherits its standard output: that ends when the last of them does.
        let mut root = helper("process::a_killed_root_takes_everything_with_it", "root")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = root.stdout.take().unwrap();
        let numbers = ready(&mut output, 13);
        let root_number = root.id() as i32;
        let stops = numbers.iter().filter(|n| **n != root_number).take(stopped);
        for number in stops {
            let pid = Pid::from_raw(*number).unwrap();
            rustix::process::kill_process(pid, Signal::STOP).unwrap();
        }
        root.kill().unwrap();
        root.wait().unwrap();
        read_to_the_end(output);
        for number in numbers {
            eventually("it is gone", || {
                state_of(number as u32).is_none_or(|state| state == 'Z')
            });
        }
    }
}

#[test]
#[expect(unsafe_code, reason = "a fork that the engine knows nothing of")]
fn a_stray_fork_holds_no_lifeline() {
    if part().is_none() {
        let mut root = helper("process::a_stray_fork_holds_no_lifeline", "root")
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = root.stdout.take().unwrap();
        let numbers = ready(&mut output, 2);
        root.kill().unwrap();
        root.wait().unwrap();
        let child = numbers.iter().find(|n| **n > 0).copied().unwrap() as u32;
        eventually("the child is gone while the stray lives", || {
            state_of(child).is_none_or(|state| state == 'Z')
        });
        let stray = -numbers.iter().find(|n| **n < 0).unwrap();
        assert!(state_of(stray as u32).is_some());
        let pid = Pid::from_raw(stray).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        return;
    }
    alarm();
    let family = family();
    let say = |number: i32| {
        let line = format!("\nready {number}\n");
        rustix::io::write(std::io::stdout(), line.as_bytes()).unwrap();
    };
    let _child = fork(family, &Start::new(Method::Fork), || {
        say(std::process::id() as i32);
        sleep_on(&[])
    })
    .unwrap();
    // SAFETY: the stray only writes and sleeps.
    if unsafe { libc::fork() } == 0 {
        alarm();
        say(-(std::process::id() as i32));
    }
    sleep_on(&[]);
}

#[test]
fn a_detached_child_outlives_its_parent() {
    fn outlive() -> i32 {
        let parent = process::parent().unwrap();
        rustix::io::write(std::io::stdout(), b"\nready 1\n").unwrap();
        let ready = connection::wait(&[parent.sentinel().unwrap()], watchdog()).unwrap();
        rustix::io::write(std::io::stdout(), b"\noutlived\n").unwrap();
        ready.len() as i32
    }
    divert(|_| outlive());
    let name = "process::a_detached_child_outlives_its_parent";
    if part().is_some() {
        alarm();
        let family = family();
        let _forked = fork(
            family,
            &Start {
                detached: true,
                ..Start::new(Method::Fork)
            },
            outlive,
        );
        for method in [Method::Spawn, Method::Zygote] {
            let child = Start {
                detached: true,
                stdio: [Stdio::Inherit; 3],
                ..rerun(method, name)
            };
            start(family, &child).unwrap();
        }
        sleep_on(&[]);
    }
    let mut root = helper(name, "root")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = root.stdout.take().unwrap();
    assert_eq!(ready(&mut output, 3).len(), 3);
    root.kill().unwrap();
    root.wait().unwrap();
    let rest = read_to_the_end(output);
    assert_eq!(rest.matches("outlived").count(), 3);
}

#[test]
fn two_hundred_starts_leave_no_zombie_and_no_descriptor() {
    divert(|started| exit_with(&started.payload));
    let name = "process::two_hundred_starts_leave_no_zombie_and_no_descriptor";
    if part().is_none() {
        assert!(
            helper(name, "parent")
                .spawn()
                .unwrap()
                .wait()
                .unwrap()
                .success()
        );
        return;
    }
    alarm();
    let family = family();
    let round = |method| {
        let joined = start_by(family, method, name, &[0], exit_with).unwrap();
        drop(start_by(family, method, name, &[0], exit_with).unwrap());
        joined.join(watchdog()).unwrap();
    };
    METHODS.into_iter().for_each(round);
    eventually("the dropped are collected", || active_children().is_empty());
    let before = open_descriptors();
    for method in METHODS {
        for _ in 0..34 {
            round(method);
        }
    }
    eventually("the dropped are collected", || active_children().is_empty());
    assert_eq!(open_descriptors(), before);
    assert_eq!(children_of_this_process(), 1, "the zygote");
    finish(watchdog()).unwrap();
    assert_eq!(children_of_this_process(), 0);
    assert_sound(family);
}

/// Also zombies.
fn children_of_this_process() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let lists =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    lists.map(|list| list.split_whitespace().count()).sum()
}

fn parent_of(pid: u32) -> u32 {
    parent_if_any(pid).expect("a parent")
}

fn parent_if_any(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = &stat[stat.rfind(')')? + 2..];
    rest.split(' ').nth(1)?.parse().ok()
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid as i32).unwrap();
    // It may have gone meanwhile.
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

#[test]
fn a_killed_zygote_is_replaced_and_its_children_live_on() {
    divert(|started| sleep_on(&started.payload));
    let family = family();
    let one = || {
        let name = "process::a_killed_zygote_is_replaced_and_its_children_live_on";
        start_by(family, Method::Zygote, name, &[1; 10_000], sleep_on).unwrap()
    };
    let (first, second) = (one(), one());
    let zygote = parent_of(first.pid());
    assert_eq!(parent_of(second.pid()), zygote);
    kill(zygote);
    let third = one();
    assert_ne!(parent_of(third.pid()), zygote);
    assert_eq!(first.poll().unwrap(), None, "it lives on");
    for (child, ending) in [
        (first, Ending::Unknown),
        (second, Ending::Unknown),
        (third, Ending::Signal(9)),
    ] {
        assert!(child.kill().unwrap());
        assert_eq!(child.join(watchdog()).unwrap().ending, ending);
    }
    finish(watchdog()).unwrap();
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
    assert_sound(family);
}

#[test]
fn starts_survive_a_zygote_that_is_killed_again_and_again() {
    divert(|started| exit_with(&started.payload));
    let family = family();
    let mut zygote = None;
    for round in 0..40 {
        if let Some(zygote) = zygote.take() {
            kill(zygote);
        }
        let name = "process::starts_survive_a_zygote_that_is_killed_again_and_again";
        let started = std::thread::scope(|scope| {
            let starts = [0; 3]
                .map(|_| scope.spawn(|| start_by(family, Method::Zygote, name, &[7], exit_with)));
            starts.map(|start| start.join().unwrap())
        });
        for child in started {
            // A zygote that is killed while it serves us twice in a row is an error, never a hang.
            let child = match child {
                Ok(child) => child,
                Err(error) => {
                    assert!(matches!(error, Error::StartFailed { .. }), "{error}");
                    continue;
                }
            };
            if round % 2 == 0 {
                // It may have ended, and then it has no parent to read of.
                zygote = parent_if_any(child.pid()).filter(|parent| *parent > 1);
            }
            let ending = child.join(watchdog()).unwrap().ending;
            assert!(
                [Ending::Code(7), Ending::Unknown].contains(&ending),
                "{ending:?}"
            );
        }
    }
    finish(watchdog()).unwrap();
    assert_sound(family);
}

#[test]
fn finish_joins_some_and_ends_the_others() {
    divert(|_| 0);
    let name = "process::finish_joins_some_and_ends_the_others";
    if part().is_none() {
        assert!(
            helper(name, "parent")
                .spawn()
                .unwrap()
                .wait()
                .unwrap()
                .success()
        );
        return;
    }
    alarm();
    let family = family();
    let (near, far) = connection::pair(family).unwrap();
    let start = |daemon, work: &dyn Fn() -> i32| -> Child {
        let start = Start {
            daemon,
            ..Start::new(Method::Fork)
        };
        fork(family, &start, work).unwrap()
    };
    let worker = start(false, &|| {
        near.send(Tag::RAW, &[b"deaf"], watchdog()).unwrap();
        let until = Deadline::after(Duration::from_millis(200));
        assert!(near.recv(until).is_err_and(|error| error.is_timeout()));
        5
    });
    let daemon = start(true, &|| sleep_on(&[]));
    let deaf = start(true, &|| {
        ignore(15);
        near.send(Tag::RAW, &[b"deaf"], watchdog()).unwrap();
        sleep_on(&[])
    });
    for _ in 0..2 {
        far.recv(watchdog()).unwrap();
    }
    assert_eq!(active_children().len(), 3);
    finish(Deadline::after(Duration::from_millis(50))).unwrap();
    assert!(active_children().is_empty());
    assert_eq!(worker.poll().unwrap().unwrap().ending, Ending::Code(5));
    assert_eq!(daemon.poll().unwrap().unwrap().ending, Ending::Signal(15));
    assert_eq!(deaf.poll().unwrap().unwrap().ending, Ending::Signal(9));
    assert_sound(family);
}

#[test]
fn a_forked_child_is_not_its_siblings_parent() {
    let family = family();
    let sibling = fork(family, &Start::new(Method::Fork), || sleep_on(&[])).unwrap();
    let child = fork(family, &Start::new(Method::Fork), || {
        let refused = [
            sibling.poll().is_err(),
            sibling.kill().is_err(),
            sibling.sentinel().is_err(),
            active_children().is_empty(),
        ];
        i32::from(refused != [true; 4])
    })
    .unwrap();
    assert!(child.join(watchdog()).unwrap().is_success());
    sibling.kill().unwrap();
    sibling.join(watchdog()).unwrap();
    assert_sound(family);
}

#[test]
fn objects_held_by_a_dead_child_are_freed_at_once() {
    let family = family();
    let child = fork(family, &Start::new(Method::Fork), || {
        let queue = Queue::create(family, &Default::default()).unwrap();
        queue.put(Tag::RAW, &[&[1; 100_000]], watchdog()).unwrap();
        std::mem::forget(queue);
        0
    })
    .unwrap();
    assert!(child.join(watchdog()).unwrap().is_success());
    assert!(
        family.usage().bytes_in_use < 100_000,
        "{:?}",
        family.usage()
    );
    assert_sound(family);
}

#[test]
fn a_wrong_variable_is_refused() {
    if part().is_some() {
        let refused =
            process::bootstrap().is_err() && std::env::var_os("PROCESSION_CHILD").is_none();
        std::process::exit(if refused { 0 } else { 1 });
    }
    let wrong = [
        "",
        "arena",
        "arena=0",
        "arena=-1,slot=0,generation=0,parent=1,sentinel=2",
        "arena=1000000,slot=1,generation=1,parent=1,sentinel=1000001",
        "arena=0,slot=99999999999,generation=0",
        "arena=0,payload=1:2",
        "arena=0,fd=99999",
        "\u{fffd}=\u{fffd}",
    ];
    for text in wrong {
        let mut helper = helper("process::a_wrong_variable_is_refused", "child")
            .env("PROCESSION_CHILD", text)
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        assert!(helper.wait().unwrap().success(), "{text}");
    }
}

#[test]
fn an_exited_parent_ends_its_children_too() {
    if part().is_some() {
        alarm();
        let family = family();
        let _child = fork(family, &Start::new(Method::Fork), || {
            rustix::io::write(std::io::stdout(), b"\nready 1\n").unwrap();
            sleep_on(&[])
        });
        sleep_on(&[]);
    }
    let mut root = helper("process::an_exited_parent_ends_its_children_too", "root")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = root.stdout.take().unwrap();
    assert_eq!(ready(&mut output, 1), [1]);
    let pid = Pid::from_raw(root.id() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    root.wait().unwrap();
    read_to_the_end(output);
}

#[test]
fn too_few_descriptors_are_an_error_and_nothing_is_left() {
    divert(|started| exit_with(&started.payload));
    let name = "process::too_few_descriptors_are_an_error_and_nothing_is_left";
    if part().is_none() {
        assert!(
            helper(name, "parent")
                .spawn()
                .unwrap()
                .wait()
                .unwrap()
                .success()
        );
        return;
    }
    alarm();
    let family = family();
    for method in METHODS {
        start_by(family, method, name, &[0], exit_with)
            .unwrap()
            .join(watchdog())
            .unwrap();
    }
    let before = (open_descriptors(), children_of_this_process());
    let limit = |current| {
        let limit = Rlimit {
            current: Some(current),
            maximum: Some(1024),
        };
        rustix::process::setrlimit(Resource::Nofile, limit).unwrap();
    };
    for method in METHODS {
        // Every number of free descriptors at which a start can fail, from none on.
        let mut free = 0;
        loop {
            limit(before.0 as u64 + free - 1);
            let started = start_by(family, method, name, &[9], exit_with);
            limit(1024);
            match started {
                Ok(child) => {
                    assert_eq!(child.join(watchdog()).unwrap().ending, Ending::Code(9));
                    break;
                }
                Err(Error::Os { source, .. }) => {
                    assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "{source}");
                }
                Err(error) => panic!("{error}"),
            }
            free += 1;
        }
        assert!(free > 1, "{method:?} needs descriptors");
        eventually("what was begun is gone", || {
            family.fsck().unwrap();
            (open_descriptors(), children_of_this_process()) == before
        });
    }
    finish(watchdog()).unwrap();
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
    assert_sound(family);
}

#[test]
fn the_terminals_signals_go_past_a_zygote_and_reach_its_children() {
    divert(|started| sleep_on(&started.payload));
    let family = family();
    let name = "process::the_terminals_signals_go_past_a_zygote_and_reach_its_children";
    let first = start_by(family, Method::Zygote, name, &[], sleep_on).unwrap();
    let zygote = parent_of(first.pid());
    // A zygote in the test harness has a second thread, which does not hold signals back: only its own is asked.
    let status = fs::read_to_string(format!(
        "/proc/{zygote}/task/{}/status",
        busy_thread(zygote)
    ));
    let blocked = |status: &str| {
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:"))
            .unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() >> 1 & 1 == 1
    };
    assert!(blocked(&status.unwrap()));
    assert!(first.signal(2).unwrap());
    assert_eq!(first.join(watchdog()).unwrap().ending, Ending::Signal(2));
    finish(watchdog()).unwrap();
    assert_sound(family);
}

/// The thread of the test harness that runs the test.
fn busy_thread(pid: u32) -> String {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let names = threads.map(|thread| thread.unwrap().file_name().into_string().unwrap());
    names
        .max_by_key(|name| name.parse::<u32>().unwrap())
        .unwrap()
}

#[test]
fn a_signal_interrupts_a_join_and_a_receive() {
    let family = family();
    let (near, _far) = connection::pair(family).unwrap();
    let child = fork(family, &Start::new(Method::Fork), || {
        let sleeper = fork(family, &Start::new(Method::Fork), || sleep_on(&[])).unwrap();
        be_interrupted();
        let until = watchdog();
        let interrupted = [
            sleeper
                .join(until)
                .is_err_and(|error| error.is_interrupted()),
            near.recv(until).is_err_and(|error| error.is_interrupted()),
        ];
        i32::from(interrupted != [true; 2])
    })
    .unwrap();
    assert!(child.join(watchdog()).unwrap().is_success());
    assert_sound(family);
}
