//! Processes started by each method, and how they end.

use crate::support_process::*;
use procession_core::process::{Ending, Method, Start, Stdio, active_children, finish, start};
use procession_core::{Deadline, Error};
use std::io::{Read, Write};
use std::os::fd::AsFd;
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
            assert_eq!(exit.out_of_memory.is_some_and(|oom| oom), false);
            assert!(!child.kill().unwrap(), "it has ended");
        }
    }
    finish(watchdog()).unwrap();
    assert_sound(family);
}
