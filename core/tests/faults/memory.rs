//! The operations of memory: seats, blocks, runs, slabs, growth, reclaim.

use crate::operations::{family, family_keeping};
use crate::page::Page;
use crate::process;
use crate::scene::{Operation, Scene};
use procession_core::{Family, testing};

fn take(family: &'static Family, length: u64) -> u64 {
    testing::allocate(family, length).expect("memory")
}

fn free(family: &'static Family, offset: u64) {
    testing::free(family, offset).expect("a seat");
}

/// The victim takes blocks of the given lengths, gives them back, and then takes one of `length`.
fn takes(family: &'static Family, before: &'static [u64], length: u64) -> Scene {
    Scene::new(family).victim(move || {
        testing::enter(family).expect("a seat");
        for length in before {
            let offset = take(family, *length);
            free(family, offset);
        }
        move || {
            take(family, length);
        }
    })
}

/// The victim has a block of `length`, `others` beside it, and gives it back.
fn frees(family: &'static Family, others: &'static [u64], length: u64) -> Scene {
    Scene::new(family).victim(move || {
        others.iter().for_each(|length| {
            take(family, *length);
        });
        let offset = take(family, length);
        move || free(family, offset)
    })
}

/// The victim gives back a block of a slab whose home is the process of the scene.
fn frees_remote(family: &'static Family, length: u64, last: bool) -> Scene {
    let offset = take(family, length);
    if !last {
        take(family, length);
    }
    Scene::new(family).victim(move || {
        let slot = testing::process_slot(family).expect("a slot");
        testing::hand_over(family, offset, slot).expect("a block");
        move || free(family, offset)
    })
}

/// A process that died with blocks, runs and slabs.
fn dies_with_blocks(family: &'static Family, lengths: &[u64]) {
    let mut holder = process::fork(Page::new(), process::PATIENCE, || {
        lengths.iter().for_each(|length| {
            take(family, *length);
        });
        0
    });
    assert_eq!(holder.wait(), process::Stop::Exited(0), "it took them");
}

pub fn operations() -> Vec<Operation> {
    let mut all: Vec<Operation> = Vec::new();
    let mut add = |name, scene| all.push(Operation { name, scene });

    add("seat: a forked process and its thread", || {
        let family = family();
        Scene::new(family).victim(move || move || testing::enter(family).expect("a seat"))
    });
    add("seat: a process that opens the arena", || {
        let family = family();
        Scene::new(family).victim(move || {
            let family = testing::open(crate::arena::same(family)).expect("an arena");
            move || testing::enter(family).expect("a seat")
        })
    });
    add("seat: a thread sits down again", || {
        let family = family();
        Scene::new(family).victim(move || {
            testing::enter(family).expect("a seat");
            testing::leave(family);
            move || testing::enter(family).expect("a seat")
        })
    });
    add("seat: a thread leaves", || {
        let family = family();
        Scene::new(family).victim(move || {
            testing::enter(family).expect("a seat");
            move || testing::leave(family)
        })
    });

    add("memory: first block, the arena grows", || {
        takes(family(), &[], 64)
    });
    add("memory: growth by a long run", || {
        takes(family(), &[64], 1_450_000)
    });
    add("memory: block of 64", || takes(family(), &[64], 64));
    add("memory: block of 128", || takes(family(), &[128], 128));
    add("memory: block of 256", || takes(family(), &[256], 256));
    add("memory: block of 512", || takes(family(), &[512], 512));
    add("memory: block of 1024", || takes(family(), &[1024], 1024));
    add("memory: block of 2048", || takes(family(), &[2048], 2048));
    add("memory: block of 4096", || takes(family(), &[4096], 4096));
    add("memory: block of 8192", || takes(family(), &[8192], 8192));
    add("memory: a new slab", || takes(family(), &[128], 8192));
    add("memory: run, cold", || takes(family(), &[64], 20_000));
    add("memory: run, warm", || {
        takes(family(), &[64, 70_000], 20_000)
    });
    add("memory: run, joining free ones", || {
        let family = family();
        Scene::new(family).victim(move || {
            let runs = [0; 3].map(|_| take(family, 400_000));
            runs.into_iter().for_each(|offset| free(family, offset));
            move || {
                take(family, 1_100_000);
            }
        })
    });
    add("memory: free a block, others in the slab", || {
        frees(family(), &[64], 64)
    });
    add("memory: free the last block of a slab", || {
        frees(family(), &[], 8192)
    });
    add("memory: free the last block, pages back", || {
        frees(family_keeping(0), &[], 8192)
    });
    add("memory: free another's block", || {
        frees_remote(family(), 64, false)
    });
    add("memory: free another's last block", || {
        frees_remote(family(), 8192, true)
    });
    add("memory: free another's last block, pages back", || {
        frees_remote(family_keeping(0), 8192, true)
    });
    add("memory: free a run, warm", || frees(family(), &[], 20_000));
    add("memory: free a run, pages back", || {
        frees(family_keeping(0), &[], 20_000)
    });
    add("memory: trim, retiring slabs", || {
        let family = family();
        Scene::new(family).victim(move || {
            let blocks: Vec<_> = (0..15).map(|_| take(family, 8192)).collect();
            blocks.into_iter().for_each(|offset| free(family, offset));
            move || testing::trim(family).expect("a seat")
        })
    });
    add("memory: adopting an orphaned slab", || {
        let family = family();
        let mut holder = process::fork(Page::new(), process::PATIENCE, || {
            let offset = take(family, 8192);
            take(family, 8192);
            testing::hand_over(family, offset, 0).expect("a block");
            0
        });
        assert_eq!(holder.wait(), process::Stop::Exited(0), "it took them");
        testing::sweep(family).expect("a seat");
        takes(family, &[], 8192)
    });
    add("reclaim: a process with blocks and runs", || {
        let family = family();
        dies_with_blocks(family, &[64, 64, 8192, 20_000]);
        Scene::new(family).victim(move || {
            testing::enter(family).expect("a seat");
            move || testing::sweep(family).expect("a seat")
        })
    });
    add("reclaim: a process with blocks, pages back", || {
        let family = family_keeping(0);
        dies_with_blocks(family, &[64, 8192, 8192, 20_000]);
        Scene::new(family).victim(move || {
            testing::enter(family).expect("a seat");
            move || testing::sweep(family).expect("a seat")
        })
    });
    all
}
