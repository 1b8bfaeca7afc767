//! Pipes and channels.

use procession::{
    Connection, JoinError, Process, Queue, Receiver, Sender, channel, pipe, wait, wait_timeout,
};
use std::os::fd::AsFd;
use std::time::Duration;

#[procession::test]
fn both_ends_send_and_receive() {
    fn upper(texts: Connection<String, String>) {
        for text in texts.iter() {
            texts.send(text.unwrap().to_uppercase()).unwrap();
        }
    }
    let (near, far) = pipe::<String, String>().unwrap();
    let child = Process::spawn(upper, (far,)).unwrap();
    for text in ["short", &"long ".repeat(100_000)] {
        near.send(text.to_string()).unwrap();
        assert_eq!(near.recv().unwrap(), text.to_uppercase());
    }
    drop(near);
    child.join().unwrap();
}

#[procession::test]
fn the_end_of_a_killed_process_is_the_end_of_file() {
    fn send_and_stay(numbers: Sender<u32>) {
        numbers.send(1).unwrap();
        loop {
            std::thread::park();
        }
    }
    let (sender, receiver) = channel().unwrap();
    let child: Process<()> = Process::spawn(send_and_stay, (sender,)).unwrap();
    assert_eq!(receiver.recv().unwrap(), 1);
    assert_eq!(
        receiver.recv_timeout(Duration::from_millis(10)).unwrap(),
        None
    );
    child.kill().unwrap();
    assert!(receiver.recv().unwrap_err().is_closed());
    assert!(matches!(child.join(), Err(JoinError::Died(_))));
}

#[procession::test]
fn what_was_sent_outlives_its_killed_sender() {
    fn send_and_die(numbers: Sender<Vec<u32>>) {
        (0..10).for_each(|n| numbers.send(vec![n; 10_000]).unwrap());
        std::process::abort()
    }
    let (sender, receiver) = channel().unwrap();
    let child: Process<()> = Process::spawn(send_and_die, (sender,)).unwrap();
    assert!(child.join().is_err());
    for n in 0..10 {
        assert_eq!(receiver.recv().unwrap(), vec![n; 10_000]);
    }
    assert!(receiver.recv().unwrap_err().is_closed());
}

#[procession::test]
fn ends_travel_through_queues_and_pipes() {
    fn serve(requests: Queue<(u64, Sender<u64>)>) {
        for request in &requests {
            let (number, reply) = request.unwrap();
            reply.send(number * 2).unwrap();
        }
    }
    let requests = Queue::unbounded().unwrap();
    let child = Process::spawn(serve, (requests.clone(),)).unwrap();
    for number in 0..300 {
        let (sender, receiver) = channel().unwrap();
        requests.put((number, sender)).unwrap();
        assert_eq!(receiver.recv().unwrap(), number * 2);
        assert!(receiver.recv().unwrap_err().is_closed());
    }
    requests.close().unwrap();
    child.join().unwrap();

    let (near, far) = pipe::<Receiver<u8>, ()>().unwrap();
    let (sender, receiver) = channel().unwrap();
    near.send(receiver).unwrap();
    sender.send(9).unwrap();
    assert_eq!(far.recv().unwrap().recv().unwrap(), 9);
}

#[procession::test]
fn a_refused_value_comes_back() {
    let (near, far) = pipe::<String, ()>().unwrap();
    drop(far);
    let refused = near.send("alone".into()).unwrap_err();
    assert!(refused.is_closed());
    assert_eq!(refused.into_inner(), "alone");
}

#[procession::test]
fn one_waits_for_connections_and_processes_together() {
    let (sender, receiver) = channel::<u8>().unwrap();
    let child = Process::spawn(
        |sender: Sender<u8>| drop(sender),
        (sender.try_clone().unwrap(),),
    )
    .unwrap();
    let ready = wait(&[receiver.as_fd(), child.sentinel().unwrap()]).unwrap();
    assert_eq!(ready, [1]);
    child.join().unwrap();
    assert!(
        wait_timeout(&[receiver.as_fd()], Duration::from_millis(5))
            .unwrap()
            .is_empty()
    );
    sender.send(1).unwrap();
    assert_eq!(wait(&[receiver.as_fd()]).unwrap(), [0]);
}
