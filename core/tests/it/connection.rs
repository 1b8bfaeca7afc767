//! Pipes between real processes.

use crate::support_process::*;
use procession_core::connection::{
    self, Connection, Outgoing, deposit, one_way, pair, wait, withdraw,
};
use procession_core::process::{Method, Start, start};
use procession_core::{Deadline, Error, Handle, Queue, Tag};
use proptest::prelude::*;
use rustix::net::{SendFlags, send as send_raw};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Bytes that tell where they stand.
fn numbered(length: usize, seed: u64) -> Vec<u8> {
    let words =
        (0..length.div_ceil(8) as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed);
    let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
    bytes.truncate(length);
    bytes
}

#[test]
fn messages_of_any_size_arrive_whole() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    for length in [0, 1, 15, 16, 4095, 4096, 4097, 65_536, 1 << 20] {
        let bytes = numbered(length, 1);
        let (front, back) = bytes.split_at(length / 3);
        near.send(Tag::JSON, &[front, &[], back], watchdog())
            .unwrap();
        let message = far.recv(watchdog()).unwrap();
        assert_eq!(message.tag, Tag::JSON);
        assert!(*message.bytes == *bytes, "{length} bytes");
        assert_eq!(message.bytes.is_in_arena(), length > 4096);
    }
    drop((near, far));
    assert_empty(family);
}

#[test]
fn a_gibibyte_arrives_without_a_copy() {
    let family = procession_core::family()
        .memory_max(3 << 30)
        .create()
        .unwrap();
    let (near, far) = pair(family).unwrap();
    let part = numbered(1 << 20, 2);
    let parts: Vec<&[u8]> = std::iter::repeat_n(&*part, 1024).collect();
    near.send(Tag::RAW, &parts, watchdog()).unwrap();
    let message = far.recv(watchdog()).unwrap();
    assert_eq!(message.bytes.len(), 1 << 30);
    assert!(
        message
            .bytes
            .chunks_exact(1 << 20)
            .all(|chunk| chunk == part)
    );
    drop((message, near, far));
    assert_sound(family);
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
}

#[test]
fn a_one_way_pipe_refuses_the_other_way() {
    let family = family();
    let (receiver, sender) = one_way(family).unwrap();
    sender.send(Tag::RAW, &[b"x"], watchdog()).unwrap();
    assert_eq!(&*receiver.recv(watchdog()).unwrap().bytes, b"x");
    assert!(receiver.send(Tag::RAW, &[b"x"], watchdog()).is_err());
    assert!(sender.recv(watchdog()).is_err());
    assert!((receiver.is_readable(), receiver.is_writable()) == (true, false));
}

#[test]
fn a_full_pipe_times_out_and_keeps_nothing() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    let large = vec![7; 100_000];
    let mut sent = 0;
    let error = loop {
        match near.send(Tag::RAW, &[&large], Deadline::PASSED) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(error.is_timeout(), "{error}");
    assert_eq!(family.fsck().unwrap().blocks_shared, sent);
    assert_sound(family);
    for _ in 0..sent {
        assert_eq!(far.recv(watchdog()).unwrap().bytes.len(), large.len());
    }
    assert!(far.recv(Deadline::PASSED).unwrap_err().is_timeout());
    assert!(!far.poll(Deadline::PASSED).unwrap());
    near.send(Tag::RAW, &[&large], watchdog()).unwrap();
    // The last message goes with its pipe.
    drop((near, far));
    assert_empty(family);
}

#[test]
fn the_end_comes_after_the_last_message() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    near.send(Tag::RAW, &[b"last"], watchdog()).unwrap();
    near.close();
    assert!(far.poll(watchdog()).unwrap());
    assert_eq!(&*far.recv(watchdog()).unwrap().bytes, b"last");
    assert!(matches!(far.recv(watchdog()), Err(Error::EndOfFile { .. })));
    assert!(matches!(
        far.send(Tag::RAW, &[b"x"], watchdog()),
        Err(Error::EndOfFile { .. })
    ));
    assert!(matches!(
        far.send(Tag::RAW, &[&[0; 9999]], watchdog()),
        Err(Error::EndOfFile { .. })
    ));
    drop(far);
    assert_sound(family);
}

#[test]
fn an_arena_without_room_is_the_senders_error() {
    let family = procession_core::family()
        .memory_max(8 << 20)
        .create()
        .unwrap();
    let (near, far) = pair(family).unwrap();
    let error = near
        .send(Tag::RAW, &[&vec![0; 9 << 20]], watchdog())
        .unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    near.send(Tag::RAW, &[b"small"], watchdog()).unwrap();
    assert_eq!(&*far.recv(watchdog()).unwrap().bytes, b"small");
    assert_sound(family);
}

#[test]
fn many_messages_cross_both_ways() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    let child = fork(family, &Start::new(Method::Fork), || {
        while let Ok(message) = far.recv(watchdog()) {
            if far
                .send(message.tag, &[&message.bytes], watchdog())
                .is_err()
            {
                return 1;
            }
            if message.bytes.is_empty() {
                return 0;
            }
        }
        2
    })
    .unwrap();
    for round in 0..2000u64 {
        let bytes = numbered(1 + (round as usize * 97) % 9000, round);
        near.send(Tag::RAW, &[&bytes], watchdog()).unwrap();
        assert!(
            *near.recv(watchdog()).unwrap().bytes == *bytes,
            "round {round}"
        );
    }
    near.send(Tag::RAW, &[], watchdog()).unwrap();
    assert!(child.join(watchdog()).unwrap().is_success());
    drop(near);
    assert_sound(family);
}

#[test]
fn a_killed_sender_leaves_a_whole_prefix() {
    for round in 0..20 {
        let family = family();
        let (near, far) = one_way(family).unwrap();
        let child = fork(family, &Start::new(Method::Fork), || {
            for number in 0u64.. {
                let bytes = numbered(50_000, number);
                if far.send(Tag::RAW, &[&bytes], watchdog()).is_err() {
                    break;
                }
            }
            1
        })
        .unwrap();
        drop(far);
        for number in 0..=round {
            let message = near.recv(watchdog()).unwrap();
            assert!(*message.bytes == *numbered(50_000, number));
        }
        child.kill().unwrap();
        let mut number = round + 1;
        let error = loop {
            match near.recv(watchdog()) {
                Ok(message) => assert!(*message.bytes == *numbered(50_000, number)),
                Err(error) => break error,
            }
            number += 1;
        };
        assert!(matches!(error, Error::EndOfFile { .. }), "{error}");
        child.join(watchdog()).unwrap();
        assert_sound(family);
        drop(near);
        assert_empty(family);
    }
}

#[test]
fn a_killed_receiver_ends_the_sender_and_leaves_nothing() {
    for round in 0..20u64 {
        let family = family();
        let (near, far) = one_way(family).unwrap();
        let (told, tell) = one_way(family).unwrap();
        let child = fork(family, &Start::new(Method::Fork), || {
            let mut count = 0u64;
            while let Ok(message) = near.recv(watchdog()) {
                count += 1;
                let _ = message.bytes.len();
                if count == round && tell.send(Tag::RAW, &[], watchdog()).is_err() {
                    break;
                }
            }
            1
        })
        .unwrap();
        drop((near, tell));
        let mut killed = round == 0;
        let error = loop {
            match far.send(Tag::RAW, &[&[1; 30_000]], watchdog()) {
                Ok(()) => {}
                Err(error) => break error,
            }
            if killed || told.poll(Deadline::PASSED).unwrap() {
                killed = true;
                child.kill().unwrap();
            }
        };
        assert!(matches!(error, Error::EndOfFile { .. }), "{error}");
        child.join(watchdog()).unwrap();
        drop((far, told));
        assert_empty(family);
    }
}

#[test]
fn descriptors_travel_with_messages() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    for parts in [&[b"short".as_slice()][..], &[&[1; 9000]]] {
        near.send_message(
            &Outgoing {
                tag: Tag::RAW,
                parts,
                handles: &[],
                fds: &[writer.as_fd()],
            },
            watchdog(),
        )
        .unwrap();
        let received = far.recv(watchdog()).unwrap();
        let [fd]: [OwnedFd; 1] = received.fds.try_into().unwrap();
        File::from(fd).write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }
    let many = vec![writer.as_fd(); connection::FDS_MAX];
    let message = Outgoing {
        tag: Tag::RAW,
        parts: &[],
        handles: &[],
        fds: &many,
    };
    near.send_message(&message, watchdog()).unwrap();
    assert_eq!(far.recv(watchdog()).unwrap().fds.len(), many.len());
    let more = vec![writer.as_fd(); connection::FDS_MAX + 1];
    let error = near
        .send_message(
            &Outgoing {
                fds: &more,
                ..message
            },
            watchdog(),
        )
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "a list of descriptors is too large: 65 is more than 64"
    );
}

#[test]
fn handles_live_as_long_as_the_message() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    let queue = Queue::create(family, &Default::default()).unwrap();
    queue.put(Tag::RAW, &[b"inside"], watchdog()).unwrap();
    let handles = [queue.handle()];
    let message = Outgoing {
        tag: Tag::RAW,
        parts: &[b"take"],
        handles: &handles,
        fds: &[],
    };
    near.send_message(&message, watchdog()).unwrap();
    drop(queue);
    assert_sound(family);
    let received = far.recv(watchdog()).unwrap();
    assert_eq!(&*received.bytes, b"take");
    let queue = Queue::attach(family, received.bytes.handles()[0]).unwrap();
    drop(received);
    assert_eq!(queue.get(watchdog()).unwrap().bytes(), b"inside");
    near.send_message(&message, watchdog()).unwrap();
    drop((queue, near, far));
    assert_eq!(
        family.fsck().unwrap().objects,
        0,
        "the message went, and with it the queue"
    );
    assert_sound(family);
}

#[test]
fn a_pipe_end_travels_through_a_queue() {
    divert(|started| {
        let queue = Queue::attach(started.family, started.payload.handles()[0]).unwrap();
        drop(started.payload);
        let message = queue.get(watchdog()).unwrap();
        let end = Connection::from_deposit(started.family, message.handles()[0]).unwrap();
        drop(message);
        end.send(Tag::RAW, &[b"from the child"], watchdog())
            .unwrap();
        0
    });
    let family = family();
    let queue = Queue::create(family, &Default::default()).unwrap();
    for method in [Method::Spawn, Method::Zygote] {
        let child = start(
            family,
            &Start {
                handles: &[queue.handle()],
                ..rerun(method, "connection::a_pipe_end_travels_through_a_queue")
            },
        )
        .unwrap();
        let (near, far) = one_way(family).unwrap();
        let ticket = far.deposit().unwrap();
        queue
            .put_message(
                procession_core::Outgoing {
                    tag: Tag::RAW,
                    parts: &[b"an end"],
                    handles: &[ticket.handle()],
                },
                watchdog(),
            )
            .unwrap();
        drop((ticket, far));
        assert_eq!(&*near.recv(watchdog()).unwrap().bytes, b"from the child");
        assert!(
            matches!(near.recv(watchdog()), Err(Error::EndOfFile { .. })),
            "{method:?}"
        );
        assert!(child.join(watchdog()).unwrap().is_success());
    }
    procession_core::process::finish(watchdog()).unwrap();
    assert_sound(family);
}

#[test]
fn a_descriptor_leaves_the_locker_with_its_ticket() {
    let family = family();
    let mut pipes = Vec::new();
    for _ in 0..5 {
        let (reader, writer) = std::io::pipe().unwrap();
        let ticket = deposit(family, writer.as_fd()).unwrap();
        pipes.push((reader, ticket));
    }
    for index in [2, 3, 0, 1, 0] {
        let handle = pipes[index].1.handle();
        File::from(withdraw(family, handle).unwrap())
            .write_all(b"once")
            .unwrap();
        let (mut reader, ticket) = pipes.remove(index);
        drop(ticket);
        let mut read = String::new();
        reader
            .read_to_string(&mut read)
            .expect("the end: no copy is open");
        assert_eq!(read, "once");
        assert!(matches!(
            withdraw(family, handle),
            Err(Error::BadHandle { .. })
        ));
        for (_, other) in &pipes {
            withdraw(family, other.handle()).expect("the others are there");
        }
    }
    assert_sound(family);
}

#[test]
fn a_full_locker_is_an_error_and_dead_tickets_make_room() {
    let family = procession_core::family().create().unwrap();
    let file = File::open("/dev/null").unwrap();
    let mut tickets = Vec::new();
    let error = loop {
        match deposit(family, file.as_fd()) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    assert!(tickets.len() > 100, "{}", tickets.len());
    withdraw(family, tickets.last().unwrap().handle()).unwrap();
    tickets.truncate(10);
    for _ in 0..50 {
        tickets.push(deposit(family, file.as_fd()).unwrap());
    }
    for ticket in &tickets {
        withdraw(family, ticket.handle()).unwrap();
    }
    assert_sound(family);
}

#[test]
fn a_ticket_of_a_killed_process_goes() {
    let family = family();
    let (near, far) = one_way(family).unwrap();
    let (told, tell) = one_way(family).unwrap();
    let child = fork(family, &Start::new(Method::Fork), || {
        let ticket = far.deposit().unwrap();
        let handle = ticket.handle().to_bits().to_ne_bytes();
        tell.send(Tag::RAW, &[&handle], watchdog()).unwrap();
        let _ = near.recv(watchdog());
        1
    })
    .unwrap();
    drop((far, tell));
    let message = told.recv(watchdog()).unwrap();
    let handle = Handle::from_bits(u64::from_ne_bytes((*message.bytes).try_into().unwrap()));
    drop(Connection::from_deposit(family, handle).unwrap());
    child.kill().unwrap();
    child.join(watchdog()).unwrap();
    assert!(Connection::from_deposit(family, handle).is_err());
    assert!(matches!(
        near.recv(watchdog()),
        Err(Error::EndOfFile { .. })
    ));
    assert_sound(family);
}

#[test]
fn wait_tells_which_of_many_kinds_are_ready() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let child = fork(family, &Start::new(Method::Fork), || {
        let _ = far.recv(watchdog());
        0
    })
    .unwrap();
    let sentinel = child.sentinel().unwrap();
    let all = [near.as_fd(), reader.as_fd(), sentinel];
    assert!(wait(&all, Deadline::PASSED).unwrap().is_empty());
    writer.write_all(b"x").unwrap();
    assert_eq!(wait(&all, watchdog()).unwrap(), [1]);
    near.send(Tag::RAW, &[b"go"], watchdog()).unwrap();
    eventually("the child ends", || {
        wait(&all, watchdog()).unwrap() == [1, 2]
    });
    assert!(wait(&[], Deadline::PASSED).unwrap().is_empty());
    child.join(watchdog()).unwrap();
    assert_sound(family);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn garbage_in_a_pipe_is_refused(
        noise in prop::collection::vec(any::<u8>(), 1..200),
        length in any::<u64>(),
        block in any::<u64>(),
        version in any::<u32>(),
        near_truth in any::<bool>(),
    ) {
        let family = procession_core::family().memory_max(4 << 20).processes_max(4).threads_max(64).create().unwrap();
        let (near, far) = pair(family).unwrap();
        near.send(Tag::RAW, &[&[5; 5000]], watchdog()).unwrap();
        let mut packet = b"pcn\x01\0\x01\0\0".to_vec();
        packet.extend(length.to_ne_bytes());
        packet.extend(block.wrapping_mul(if near_truth { 64 } else { 1 }).to_ne_bytes());
        packet.extend(version.to_ne_bytes());
        packet.extend([0; 4]);
        for packet in [&noise, &packet] {
            send_raw(near.as_fd(), packet, SendFlags::empty()).unwrap();
        }
        prop_assert_eq!(far.recv(watchdog()).unwrap().bytes.len(), 5000);
        for _ in 0..2 {
            let refused = matches!(far.recv(watchdog()), Err(Error::Malformed { .. } | Error::BadHandle { .. }));
            prop_assert!(refused);
        }
        drop((near, far));
        prop_assert!(family.fsck().unwrap().faults.is_empty());
    }
}

#[test]
fn a_packet_sent_twice_is_received_once() {
    let family = family();
    let (near, far) = pair(family).unwrap();
    near.send(Tag::RAW, &[&[5; 5000]], watchdog()).unwrap();
    let mut packet = [0; 4112];
    let (_, length) =
        rustix::net::recv(far.as_fd(), &mut packet[..], rustix::net::RecvFlags::PEEK).unwrap();
    send_raw(near.as_fd(), &packet[..length], SendFlags::empty()).unwrap();
    let message = far.recv(watchdog()).unwrap();
    assert!(matches!(far.recv(watchdog()), Err(Error::Malformed { .. })));
    assert_eq!(*message.bytes, [5; 5000]);
    drop(message);
    assert_sound(family);
}
