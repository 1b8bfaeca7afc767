//! The side that makes the calls: a worker's life.

use crate::codec::{self, Named};
use crate::error::Result;
use crate::task::{self, Call, Ran, Task};
use crate::waiting::through_signals;
use crate::{panics, program};
use procession_core::Deadline;
use procession_core::pool::{Job, Place, Worker};
use serde::{Deserialize, Serialize};

/// Where a worker works, as it is told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Post {
    pool: Named,
    index: u32,
}

impl Post {
    pub(super) fn new(place: Place) -> Post {
        Post {
            pool: Named(place.pool),
            index: place.index,
        }
    }
}

/// What a worker exits with that could not begin.
const FAILED_TO_START: i32 = 70;

/// What every worker of a pool does. That it is generic makes the initializer part of the function, by which it travels.
pub(super) fn work<F: Task<A, Output = ()>, A>(post: Post, arguments: A) {
    let place = Place {
        pool: post.pool.0,
        index: post.index,
    };
    let family = program::family().expect("a child has a family");
    let worker = Worker::attach(family, place).expect("the pool lives as long as its process does");
    if let Err(panic) = panics::catch(|| task::conjure::<F>().call(arguments)) {
        // Should even this not go out, the exit code tells.
        let _ = worker.failed_to_start(&format!("its initializer {panic}"));
        std::process::exit(FAILED_TO_START);
    }
    worker.ready();
    while let Some(job) =
        through_signals(|| worker.next(Deadline::NEVER)).expect("the pool's queue")
    {
        run(&worker, &job);
    }
}

fn run(worker: &Worker, job: &Job) {
    let mut answer = |ran: &Ran| {
        let finish = |ran: &Ran| ran.report.send(|answer| worker.finish(job, answer));
        if let Err(error) = finish(ran) {
            // Too large for the memory there is, or it names an object that is gone: the reason is short. If even that
            // does not go out, the worker ends with the job in its hands, and the pool says so.
            finish(&task::refuse(&error)).expect("a short answer");
        }
    };
    match read(job) {
        Ok((call, arguments)) => match call.entry() {
            Some(entry) => entry(Box::new(arguments), &mut answer),
            None => answer(&task::refuse_because(
                "the function does not lie in this program".into(),
            )),
        },
        Err(error) => answer(&task::refuse(&error)),
    }
}

fn read(job: &Job) -> Result<(Call, &[u8])> {
    codec::decode_first(job.bytes())
}
