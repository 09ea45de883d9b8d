//! Plans, walked through as the device walks them.

use super::team::{best_splits, nearly};
use super::*;
use crate::{grad_input, grad_sums, moments, normalize};

const KERNELS: [&Kernel; 4] = [&moments::KERNEL, &normalize::KERNEL, &grad_sums::KERNEL, &grad_input::KERNEL];

/// How often the threads of the device visit every element, and that they visit it for its channel.
fn visits(geometry: &Geometry, plan: &Plan) -> Vec<u32> {
    let tile = &plan.tile;
    let (members, slots, pack) = (tile.members as usize, tile.slots as usize, tile.pack as usize);
    let (lanes, segment) = (tile.lanes as usize, tile.segment as usize);
    let mut seen = vec![0; geometry.len()];
    let mut visit = |element: usize, channel: usize| {
        assert_eq!(element / geometry.inner() % geometry.channels(), channel);
        seen[element] += 1;
    };
    for block in 0..plan.blocks as usize {
        let (group, split) = (block / tile.splits as usize, block % tile.splits as usize);
        for thread in 0..plan.threads as usize {
            let (member, slot) = if plan.columns {
                (thread / slots, thread % slots)
            } else {
                (thread % members, thread / members)
            };
            let lane = group * slots + slot;
            let at = split * members + member;
            if lane >= lanes || member >= members {
                continue;
            }
            let mut within = at % segment;
            let mut index = ((at / segment * lanes + lane) * segment + within) as i64;
            for _ in 0..tile.whole as usize + usize::from(at < tile.rest as usize) {
                for w in 0..plan.vec {
                    let column = slot * plan.vec + w;
                    let local = match tile.inner {
                        _ if !plan.columns => slot,
                        1 => column % pack,
                        inner => column / inner as usize,
                    };
                    visit(index as usize * plan.vec + w, group * pack + local);
                }
                within += tile.step_within as usize;
                index += tile.step_index;
                if within >= segment {
                    within -= segment;
                    index += tile.wrap;
                }
            }
        }
    }
    for e in 0..tile.tail as usize {
        visit(tile.runs as usize * slots * plan.vec + e, e % pack);
    }
    seen
}

#[test]
fn every_element_is_visited_once_and_for_its_channel() {
    for shape in [
        &[2, 3, 7][..],
        &[1, 1, 5],
        &[64, 5, 7, 7],
        &[64, 16, 7, 7],
        &[2, 24, 3],
        &[3, 67, 13, 13],
        &[2, 600, 3],
        &[9, 2, 4096],
        &[3, 64, 14, 14],
        &[5, 8, 128],
        &[400, 19],
        &[7, 256, 9],
    ] {
        for first in [true, false] {
            let geometry =
                if first { Geometry::channels_first(shape) } else { Geometry::channels_last(shape) };
            let geometry = geometry.unwrap();
            for (kernel, size) in KERNELS.into_iter().flat_map(|kernel| [2, 4, 8].map(|size| (kernel, size)))
            {
                let plan = Plan::new(&geometry, size, &[256], 132, kernel).unwrap();
                let name = kernel.name;
                assert!(visits(&geometry, &plan).iter().all(|&n| n == 1), "{shape:?} {first} {name} {size}");
            }
        }
    }
}

#[test]
fn a_block_has_room_for_its_channels_and_its_threads_for_its_sums() {
    for channels in [1, 3, 8, 19, 64, 100, 256, 1000, 1001, 4096, 100_000] {
        for shape in [[64, channels, 196], [1, channels, 1], [50_000, channels, 1], [9, channels, 49]] {
            let geometry = Geometry::channels_first(&shape).unwrap();
            for (kernel, size) in KERNELS.into_iter().flat_map(|kernel| [2, 4, 8].map(|size| (kernel, size)))
            {
                let plan = Plan::new(&geometry, size, &[256], 132, kernel).unwrap();
                let tile = &plan.tile;
                let what = format!("{shape:?} {} {tile:?} of {} threads", kernel.name, plan.threads);
                assert!(
                    tile.pack as usize <= most_pack(plan.columns)
                        && tile.pack * tile.shares <= plan.threads as i32,
                    "{what}"
                );
                assert!(plan.threads.is_multiple_of(32) && kernel.tuning(true, size).unroll <= 64, "{what}");
                assert!(tile.slots * tile.members <= plan.threads as i32, "{what}");
                assert!(plan.threads as usize <= kernel.tuning(plan.columns, size).threads, "{what}");
                assert!(tile.members >= 1 && (plan.columns || tile.members % 32 == 0), "{what}");
                let (partials, tickets) = most_partials(132, channels);
                let splits = tile.splits as usize;
                assert!(splits == 1 || splits * channels <= partials, "{what}");
                assert!(splits == 1 || plan.blocks as usize / splits <= tickets, "{what}");
            }
        }
    }
}

#[test]
fn no_block_waits_for_another_to_sum_a_small_tensor() {
    for shape in [[3, 13, 13, 67], [2, 7, 7, 512], [1, 1, 512, 128], [1, 1, 32, 2048], [1, 1, 500, 3]] {
        let geometry = Geometry::channels_last(&shape).unwrap();
        for (kernel, size) in
            [&moments::KERNEL, &grad_sums::KERNEL].into_iter().flat_map(|k| [2, 4, 8].map(|size| (k, size)))
        {
            let plan = Plan::new(&geometry, size, &[256], 132, kernel).unwrap();
            let what = format!("{shape:?} {} {:?}", kernel.name, plan.tile);
            assert_eq!((plan.tile.splits, plan.vec), (1, 1), "{what}");
            // All of a thread's loads are in flight at once, or nearly.
            assert!(plan.tile.whole as usize <= kernel.tuning(true, size).unroll.max(4), "{what}");
        }
    }
    let large = Geometry::channels_last(&[1, 1, 512, 1024]).unwrap();
    assert!(Plan::new(&large, 4, &[256], 132, &moments::KERNEL).unwrap().vec > 1);
}

#[test]
fn a_pointer_off_alignment_narrows_the_loads() {
    let geometry = Geometry::channels_first(&[2, 64, 64]).unwrap();
    let vec =
        |size, pointers: &[u64]| Plan::new(&geometry, size, pointers, 132, &moments::KERNEL).unwrap().vec;
    assert_eq!(vec(2, &[256]), 8);
    assert_eq!(vec(2, &[256, 258]), 1);
    assert_eq!(vec(4, &[8]), 2);
    assert_eq!(vec(8, &[256]), 2);
}

#[test]
fn what_is_read_ahead_is_there_and_has_room_in_every_block_of_a_multiprocessor() {
    let (room, taken) = (228 * 1024, 12_000);
    let mut most = 0;
    for shape in
        [[1, 67, 1], [2, 64, 131_072], [8, 256, 3136], [64, 2048, 49], [131_072, 64, 1], [3, 67, 169]]
    {
        let geometry = Geometry::channels_first(&shape).unwrap();
        for (kernel, size) in KERNELS.into_iter().flat_map(|kernel| [2, 4, 8].map(|size| (kernel, size))) {
            let plan = Plan::new(&geometry, size, &[256], 132, kernel).unwrap();
            let tuning = kernel.tuning(plan.columns, size);
            let Ahead { turns, bytes } = plan.ahead(kernel, size, room, taken);
            let (turns, bytes) = (turns as usize, bytes as usize);
            let vector = plan.threads as usize * plan.vec * size;
            assert_eq!(bytes, turns * tuning.unroll * vector * kernel.reads, "{shape:?} {}", kernel.name);
            let blocks = tuning.threads * tuning.blocks / plan.threads as usize;
            assert!(
                turns == 0 || blocks * (bytes + taken + RESERVED) <= room,
                "{shape:?} {} {blocks}",
                kernel.name
            );
            // A turn that stays in registers is left to every thread that has one.
            let vectors = plan.tile.whole as usize + usize::from(plan.tile.rest > 0);
            assert!(turns == 0 || turns * tuning.unroll < vectors, "{shape:?} {}", kernel.name);
            most = most.max(turns);
        }
    }
    assert!(most >= 2);
    let plan =
        Plan::new(&Geometry::channels_first(&[2, 64, 131_072]).unwrap(), 4, &[256], 132, &normalize::KERNEL);
    assert_eq!(plan.unwrap().ahead(&normalize::KERNEL, 4, 0, taken).turns, 0);
}

#[test]
fn the_splits_are_the_fewest_that_fill_a_device_nearly_as_well_as_the_best() {
    for groups in [1, 2, 3, 4, 7, 16, 19, 32, 64, 100, 129, 131, 133, 256, 300, 2048, 5000] {
        for (room, most) in
            [(132, 1), (132, 7), (132, 132), (264, 500), (528, 5000), (1056, 40), (1056, 9000)]
        {
            let score = |splits: usize| {
                let blocks = groups * splits;
                let rounds = blocks.div_ceil(room);
                blocks as f64 / (rounds * room) as f64 - 0.05 * (rounds - 1) as f64
            };
            let all = 1..=most.min((4 * room / groups).max(1));
            let best = all.clone().map(score).fold(f64::MIN, f64::max);
            let fewest = all.clone().find(|&splits| score(splits) >= nearly(best)).unwrap();
            assert_eq!(best_splits(groups, room, most), (fewest, score(fewest)), "{groups} {room} {most}");
        }
    }
}

#[test]
fn a_block_of_one_channel_has_no_thread_too_many() {
    for channels in [1_400, 3_400, 22_000] {
        let geometry = Geometry::channels_first(&[16, channels, 16, 16]).unwrap();
        for (multiprocessors, kernel) in
            [8, 20, 132].into_iter().flat_map(|n| KERNELS.map(|kernel| (n, kernel)))
        {
            let plan = Plan::new(&geometry, 4, &[256], multiprocessors, kernel).unwrap();
            let used = plan.tile.slots * plan.tile.members;
            assert!(
                plan.columns || used as u32 == plan.threads,
                "{channels} {multiprocessors} {}",
                kernel.name
            );
        }
    }
}
