//! The allocator and objects, near and in one process.

use super::family::Family;
use super::object::{self, Handle};
use crate::error::Error;

fn family() -> &'static Family {
    crate::family()
        .name("test")
        .memory_max(64 << 20)
        .processes_max(8)
        .threads_max(16)
        .create()
        .expect("an arena")
}

#[track_caller]
fn assert_sound(family: &'static Family) {
    let findings = family.fsck().expect("a check");
    assert_eq!(findings.faults, Vec::<String>::new());
}

#[test]
fn every_size_comes_back_and_is_free_again() {
    let family = family();
    let me = family.me().unwrap();
    let mut blocks = Vec::new();
    for length in [
        1,
        63,
        64,
        65,
        1000,
        4096,
        8192,
        8193,
        16384,
        100_000,
        5 << 20,
    ] {
        let block = family.allocate(me, length).unwrap();
        assert!(block.capacity >= length);
        family
            .region()
            .copy_in(block.offset, &vec![length as u8; length as usize])
            .unwrap();
        blocks.push((block, length));
    }
    for (block, length) in &blocks {
        let bytes = family.region().bytes(block.offset, *length).unwrap();
        assert!(
            bytes.iter().all(|byte| *byte == *length as u8),
            "nobody else wrote into {length}"
        );
    }
    assert_eq!(family.fsck().unwrap().blocks_private, blocks.len());
    for (block, _) in blocks {
        family.free(me, block.offset);
    }
    assert_sound(family);
    assert_eq!(family.fsck().unwrap().blocks_private, 0);
}

#[test]
fn a_full_arena_is_an_error_and_freeing_makes_room() {
    let family = family();
    let me = family.me().unwrap();
    let mut blocks = Vec::new();
    let error = loop {
        match family.allocate(me, 1 << 20) {
            Ok(block) => blocks.push(block),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    assert!(
        blocks.len() >= 60,
        "64 MiB hold {} blocks of 1 MiB",
        blocks.len()
    );
    for block in blocks {
        family.free(me, block.offset);
    }
    let large = family.allocate(me, 48 << 20).unwrap();
    family.free(me, large.offset);
    assert_sound(family);
}

#[test]
fn small_blocks_of_many_sizes_do_not_overlap() {
    let family = family();
    let me = family.me().unwrap();
    let mut blocks: Vec<(u64, u64, u8)> = Vec::new();
    let mut random = 12345u64;
    for round in 0..20_000u64 {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        if random >> 60 < 9 || blocks.is_empty() {
            let length = 1 + (random >> 20) % 9000;
            let block = family.allocate(me, length).unwrap();
            family
                .region()
                .copy_in(block.offset, &vec![round as u8; length as usize])
                .unwrap();
            blocks.push((block.offset, length, round as u8));
        } else {
            let (offset, length, mark) = blocks.swap_remove((random >> 16) as usize % blocks.len());
            assert!(
                family
                    .region()
                    .bytes(offset, length)
                    .unwrap()
                    .iter()
                    .all(|byte| *byte == mark)
            );
            family.free(me, offset);
        }
        if blocks.len() > 2000 {
            for (offset, ..) in blocks.drain(..1500) {
                family.free(me, offset);
            }
        }
    }
    assert_sound(family);
    for (offset, ..) in blocks {
        family.free(me, offset);
    }
    assert_sound(family);
}

#[test]
fn freed_memory_goes_back_to_the_system() {
    let family = crate::family()
        .memory_max(1 << 30)
        .keep_warm(1 << 20)
        .create()
        .unwrap();
    let me = family.me().unwrap();
    for length in [1 << 20, 700] {
        let blocks: Vec<_> = (0..(200 << 20) / length)
            .map(|_| family.allocate(me, length).unwrap())
            .collect();
        assert!(
            resident(family) > 190 << 20,
            "{} bytes resident",
            resident(family)
        );
        for block in blocks {
            family.free(me, block.offset);
        }
        assert!(
            resident(family) < 24 << 20,
            "{} bytes resident after freeing {length}s",
            resident(family)
        );
        assert_sound(family);
    }
}

#[test]
fn counting_the_warm_units_anew_counts_idle_slabs_too() {
    let family = family();
    let me = family.me().unwrap();
    let block = family.allocate(me, 8192).unwrap();
    family.free(me, block.offset);
    // As after a death.
    super::runs::count_warm(family);
    let block = family.allocate(me, 8192).unwrap();
    let warm = family
        .header()
        .warm
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(warm as i64, 0, "the slab is in use");
    family.free(me, block.offset);
    let run = family.allocate(me, 20_000).unwrap();
    family.free(me, run.offset);
    assert_eq!(family.usage().bytes_warm, 2 << 14, "and a free run is kept");
}

fn resident(family: &Family) -> u64 {
    rustix::fs::fstat(family.arena()).unwrap().st_blocks as u64 * 512
}

#[test]
fn an_object_lives_until_the_last_hold() {
    let family = family();
    let first = object::create(family, object::MEMORY, 40, |_, _| Ok(())).unwrap();
    let handle = first.handle();
    let second = object::attach(family, object::MEMORY, handle).unwrap();
    drop(first);
    assert_eq!(family.fsck().unwrap().objects, 1);
    drop(second);
    assert_eq!(family.fsck().unwrap().objects, 0);
    let error = object::attach(family, object::MEMORY, handle)
        .map(|_| ())
        .unwrap_err();
    assert!(
        error.to_string().contains("gone") || error.to_string().contains("nothing"),
        "{error}"
    );
}

#[test]
fn any_number_is_a_handle_that_is_refused() {
    let family = family();
    let object = object::create(family, object::MEMORY, 40, |_, _| Ok(())).unwrap();
    let bits = object.handle().to_bits();
    let mut random = 99u64;
    for _ in 0..50_000 {
        random = random
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        for wrong in [random, bits ^ (1 << (random >> 58)), random >> 30] {
            if wrong != bits {
                assert!(object::attach(family, object::MEMORY, Handle::from_bits(wrong)).is_err());
            }
        }
    }
    assert_sound(family);
}

#[test]
fn a_block_keeps_alive_the_objects_it_lists() {
    let family = family();
    let me = family.me().unwrap();
    let object = object::create(family, object::MEMORY, 8, |_, _| Ok(())).unwrap();
    let handle = object.handle();
    let block = family
        .allocate(me, object::references_length(2) + 100)
        .unwrap();
    object::add_references(family, me, block.offset, &[handle, handle]).unwrap();
    drop(object);
    assert_sound(family);
    let again = object::attach(family, object::MEMORY, handle).expect("the block keeps it");
    drop(again);
    family.free(me, block.offset);
    assert_eq!(family.fsck().unwrap().objects, 0);
    assert_sound(family);
}

#[test]
fn idle_slabs_stay_counted_as_warm_when_a_reclaimer_counts_anew() {
    let family = family();
    let me = family.me().unwrap();
    let block = family.allocate(me, 100).unwrap();
    family.free(me, block.offset);
    super::runs::count_warm(family);
    for _ in 0..3 {
        let block = family.allocate(me, 100).unwrap();
        let warm = family
            .header()
            .warm
            .load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(warm, 0, "the slab is in use");
        family.free(me, block.offset);
    }
}
