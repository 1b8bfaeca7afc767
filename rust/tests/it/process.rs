//! Processes: results, panics, deaths, and what travels to them.

use procession::{Builder, Error, JoinError, Process, Queue, StartMethod, Stdio};
use std::io::{Read, Write};
use std::time::Duration;

fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[procession::test]
fn a_function_runs_in_another_process_and_returns() {
    let child = Process::spawn(std::process::id, ()).unwrap();
    let pid = child.pid();
    assert_ne!(pid, std::process::id());
    assert_eq!(child.join().unwrap(), pid);
    assert_eq!(Process::spawn(add, (2, 3)).unwrap().join().unwrap(), 5);
}

#[procession::test]
fn a_zygote_starts_processes_too() {
    let builder = Builder::new().method(StartMethod::Zygote);
    for n in 0..20 {
        assert_eq!(builder.spawn(add, (n, 1)).unwrap().join().unwrap(), n + 1);
    }
}

#[procession::test]
fn a_closure_captures_nothing_and_takes_up_to_eight_arguments() {
    let join = |a: String,
                b: char,
                c: (u8, i8),
                d: f32,
                e: Option<bool>,
                f: (),
                g: Vec<u16>,
                h: Box<str>| { format!("{a}{b}{c:?}{d}{e:?}{f:?}{g:?}{h}") };
    let child = Process::spawn(
        join,
        (
            "a".into(),
            'b',
            (1, -1),
            0.5,
            Some(true),
            (),
            vec![1, 2],
            "h".into(),
        ),
    );
    assert_eq!(
        child.unwrap().join().unwrap(),
        "ab(1, -1)0.5Some(true)()[1, 2]h"
    );
}

#[procession::test]
fn a_panic_arrives_with_message_and_location() {
    let before = line!();
    let task = |n: u32| -> u32 { panic!("number {n} is not right") };
    let after = line!();
    let child = Process::spawn(task, (7,)).unwrap();
    let Err(JoinError::Panicked(panic)) = child.join() else {
        panic!("not a panic");
    };
    assert_eq!(panic.message, "number 7 is not right");
    let location = panic.location.unwrap();
    let line = location.strip_prefix(concat!(file!(), ":")).unwrap();
    let line: u32 = line.split(':').next().unwrap().parse().unwrap();
    assert!((before..after).contains(&line), "{location}");
}

#[procession::test]
fn a_panic_has_a_backtrace_if_that_is_asked_for_and_is_printed_as_usual() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = Builder::new()
        .env("RUST_BACKTRACE", "1")
        .stderr(writer)
        .spawn(|| -> u8 { panic!("something") }, ())
        .unwrap();
    let Err(JoinError::Panicked(panic)) = child.join() else {
        panic!("not a panic");
    };
    assert!(panic.backtrace.unwrap().contains("a_panic_has_a_backtrace"));
    let mut printed = String::new();
    reader.read_to_string(&mut printed).unwrap();
    assert!(printed.contains("something"), "{printed}");
}

#[procession::test]
fn a_killed_process_says_who_and_by_what() {
    let child: Process<()> = Builder::new()
        .name("victim")
        .spawn(
            || loop {
                std::thread::park()
            },
            (),
        )
        .unwrap();
    let pid = child.pid();
    assert!(child.is_alive());
    assert!(child.kill().unwrap());
    let Err(JoinError::Died(death)) = child.join() else {
        panic!("not a death");
    };
    assert_eq!(
        (death.pid, death.signal(), death.code()),
        (pid, Some(9), None)
    );
    assert_eq!(
        death.to_string(),
        format!("process `victim` (pid {pid}) was killed by signal 9 (SIGKILL)")
    );
}

#[procession::test]
fn a_process_that_exits_by_itself_is_no_result() {
    for code in [0, 3] {
        let child: Process<u8> =
            Process::spawn(|code: i32| std::process::exit(code), (code,)).unwrap();
        let Err(JoinError::Died(death)) = child.join() else {
            panic!("not a death");
        };
        assert_eq!((death.code(), death.signal()), (Some(code), None));
    }
}

#[procession::test]
fn joining_can_give_up_and_try_again() {
    let gate = Queue::<u8>::unbounded().unwrap();
    let mut child = Process::spawn(|gate: Queue<u8>| gate.get().unwrap(), (gate.clone(),)).unwrap();
    assert!(child.try_join().unwrap().is_none());
    assert!(
        child
            .join_timeout(Duration::from_millis(10))
            .unwrap()
            .is_none()
    );
    gate.put(9).unwrap();
    assert_eq!(
        child.join_timeout(Duration::from_secs(60)).unwrap(),
        Some(9)
    );
    assert!(matches!(child.try_join(), Err(JoinError::Failed(_))));
}

#[procession::test]
fn another_build_is_refused() {
    // A copy with one byte more is not what this process is to a build without a number, and one whose number differs is
    // not in any case.
    let own = std::fs::read("/proc/self/exe").unwrap();
    let mut other = own.clone();
    let note = [4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0, b'G', b'N', b'U', 0];
    match own.windows(note.len()).position(|window| window == note) {
        Some(at) => other[at + note.len()] ^= 0xff,
        None => other.push(0),
    }
    let path = std::env::temp_dir().join(format!("procession-other-build-{}", std::process::id()));
    std::fs::write(&path, other).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let child = Builder::new().program(&path).spawn(add, (1, 2)).unwrap();
    let answer = child.join();
    std::fs::remove_file(&path).unwrap();
    let Err(JoinError::Refused { why }) = answer else {
        panic!("{answer:?}");
    };
    assert!(why.contains("another build of the program"), "{why}");
}

#[procession::test]
fn a_program_that_is_no_child_of_ours_is_told_by_its_exit() {
    let child = Builder::new()
        .program("/bin/true")
        .spawn(add, (1, 2))
        .unwrap();
    let Err(JoinError::Died(death)) = child.join() else {
        panic!("not a death");
    };
    assert!(
        death
            .to_string()
            .ends_with("exited with code 0 before it called `procession::init()`")
    );
}

#[procession::test]
fn a_value_that_does_not_travel_is_an_error_of_its_sender() {
    let child: Result<Process<()>, Error> = Process::spawn(
        |_: Flat| (),
        (Flat {
            rest: Rest { a: 1 },
        },),
    );
    let Err(Error::Encode { type_name, .. }) = child else {
        panic!("it was sent");
    };
    assert!(type_name.contains("Flat"));
}

#[procession::test]
fn a_result_that_does_not_travel_is_told() {
    let child = Process::spawn(
        || Flat {
            rest: Rest { a: 1 },
        },
        (),
    )
    .unwrap();
    let Err(JoinError::Refused { why }) = child.join() else {
        panic!("it was sent");
    };
    assert!(why.contains("failed to encode"), "{why}");
}

/// Postcard knows no maps of unknown length.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Flat {
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Rest {
    a: u8,
}

#[procession::test]
fn environment_directory_and_streams_are_as_they_were_set() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let child = Builder::new()
        .env("PROCESSION_TEST_A", "set")
        .env_remove("HOME")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer)
        .spawn(
            || {
                let set = std::env::var("PROCESSION_TEST_A").unwrap();
                writeln!(std::io::stdout(), "{set}").unwrap();
                assert!(std::env::var_os("HOME").is_none());
                assert_eq!(std::io::read_to_string(std::io::stdin()).unwrap(), "");
                std::env::current_dir().unwrap()
            },
            (),
        )
        .unwrap();
    assert_eq!(child.join().unwrap(), std::path::Path::new("/"));
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert!(said.ends_with("set\n"), "{said}");
}

#[procession::test]
fn children_have_children_and_send_objects_up() {
    fn grandchild(queue: Queue<String>) {
        queue.put("from below".into()).unwrap();
    }
    fn child() -> Queue<String> {
        let queue = Queue::unbounded().unwrap();
        Process::spawn(grandchild, (queue.clone(),))
            .unwrap()
            .join()
            .unwrap();
        queue
    }
    // The queue outlives the process that made it, in its result.
    let queue = Process::spawn(child, ()).unwrap().join().unwrap();
    assert_eq!(queue.get().unwrap(), "from below");
}

#[procession::test]
fn a_fork_is_refused_while_there_are_other_threads() {
    let error = Process::fork(|| 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to fork this process: it has more than one thread"
    );
}

#[procession::test]
fn a_single_threaded_process_forks_with_what_it_has() {
    // The function runs in a thread of the harness here, and in the main thread of a zygote's child.
    let builder = Builder::new().method(StartMethod::Zygote);
    let forking = builder.spawn(
        || {
            let text = String::from("captured");
            let threads = std::fs::read_dir("/proc/self/task").unwrap().count();
            (
                threads,
                Process::fork(|| text.len())
                    .map(|child| child.join().unwrap())
                    .ok(),
            )
        },
        (),
    );
    let (threads, forked) = forking.unwrap().join().unwrap();
    assert_eq!(forked, (threads == 1).then_some(8));
}

#[procession::test]
fn a_forked_process_reports_its_panic() {
    #[expect(
        unsafe_code,
        reason = "the harness's other threads hold no lock that the closure uses"
    )]
    // SAFETY: the closure only panics; the harness's main thread waits for this one.
    let child = unsafe {
        Builder::new()
            .stderr(Stdio::null())
            .fork_unchecked(|| -> u8 { panic!("in the copy") })
    };
    let Err(JoinError::Panicked(panic)) = child.unwrap().join() else {
        panic!("not a panic");
    };
    assert_eq!(panic.message, "in the copy");
}

#[procession::test]
fn dropping_a_process_lets_it_go_on() {
    let queue = Queue::unbounded().unwrap();
    drop(Process::spawn(|queue: Queue<u8>| queue.put(1).unwrap(), (queue.clone(),)).unwrap());
    assert_eq!(queue.get_timeout(Duration::from_secs(60)).unwrap(), Some(1));
}

#[procession::test]
fn names_are_the_function_s_unless_set() {
    let child = Process::spawn(add, (1, 2)).unwrap();
    assert_eq!(child.name(), "add");
    assert!(format!("{child:?}").contains("task: \"it::process::add\""));
    let _ = child.join().unwrap();
}

#[procession::task]
fn registered(a: u8, _: Vec<String>) -> Result<u8, String> {
    Ok(a)
}

#[procession::test]
fn a_registered_task_is_listed_and_runs() {
    let found: Vec<_> = procession::tasks()
        .filter(|task| task.name() == "it::process::registered")
        .collect();
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .signature()
            .starts_with("fn(u8, alloc::vec::Vec<alloc::string::String>) -> ")
    );
    assert_ne!(found[0].fingerprint(), 0);
    let child = Process::spawn(registered, (3, vec![])).unwrap();
    assert_eq!(child.join().unwrap(), Ok(3));
}
