//! Launch plans, followed as the device follows them.

use super::block_shape::{best_blocks_per_channel, nearly};
use super::*;
use crate::{backward, forward, grad_input, grad_sums, moments, normalize};

const KERNELS: [&Kernel; 6] = [
    &moments::KERNEL,
    &normalize::KERNEL,
    &grad_sums::KERNEL,
    &grad_input::KERNEL,
    &forward::KERNEL,
    &backward::KERNEL,
];

/// How often the threads of the device read each element. Fails where they read it for another channel.
fn visits(geometry: &Geometry, plan: &LaunchPlan) -> Vec<u32> {
    let walk = &plan.walk;
    let (threads_per_lane, lanes_per_block) = (walk.threads_per_lane as usize, walk.lanes_per_block as usize);
    let channels_per_block = walk.channels_per_block as usize;
    let blocks_per_channel = walk.blocks_per_channel as usize;
    let (lanes, segment) = (walk.lanes as usize, walk.segment as usize);
    let mut seen = vec![0; geometry.len()];
    let mut visit = |element: usize, channel: usize| {
        assert_eq!(element / geometry.inner() % geometry.channels(), channel);
        seen[element] += 1;
    };
    for block in 0..plan.blocks as usize {
        let (group, block_of_channel) = (block / blocks_per_channel, block % blocks_per_channel);
        for thread in 0..plan.threads as usize {
            let (thread_of_lane, lane_of_block) = if plan.columns {
                (thread / lanes_per_block, thread % lanes_per_block)
            } else {
                (thread % threads_per_lane, thread / threads_per_lane)
            };
            let lane = group * lanes_per_block + lane_of_block;
            let at = block_of_channel * threads_per_lane + thread_of_lane;
            if lane >= lanes || thread_of_lane >= threads_per_lane {
                continue;
            }
            let mut within = at % segment;
            let mut index = ((at / segment * lanes + lane) * segment + within) as i64;
            for _ in
                0..walk.vectors_per_thread as usize + usize::from(at < walk.threads_with_one_more as usize)
            {
                for w in 0..plan.vec {
                    let column = lane_of_block * plan.vec + w;
                    let local = match walk.inner {
                        _ if !plan.columns => lane_of_block,
                        1 => column % channels_per_block,
                        inner => column / inner as usize,
                    };
                    visit(index as usize * plan.vec + w, group * channels_per_block + local);
                }
                within += walk.step_within as usize;
                index += walk.step_index;
                if within >= segment {
                    within -= segment;
                    index += walk.run_gap;
                }
            }
        }
    }
    for e in 0..walk.tail as usize {
        visit(walk.runs as usize * lanes_per_block * plan.vec + e, e % channels_per_block);
    }
    seen
}

#[test]
fn every_element_is_read_once_and_for_its_channel() {
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
                let plan = LaunchPlan::new(&geometry, size, &[256], 132, kernel).unwrap();
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
                let plan = LaunchPlan::new(&geometry, size, &[256], 132, kernel).unwrap();
                let walk = &plan.walk;
                let what = format!("{shape:?} {} {walk:?} of {} threads", kernel.name, plan.threads);
                assert!(
                    walk.channels_per_block as usize <= most_channels_per_block(plan.columns)
                        && walk.channels_per_block * walk.reducers_per_channel <= plan.threads as i32,
                    "{what}"
                );
                assert!(plan.threads.is_multiple_of(32) && kernel.tuning(true, size).unroll <= 64, "{what}");
                assert!(walk.lanes_per_block * walk.threads_per_lane <= plan.threads as i32, "{what}");
                assert!(plan.threads as usize <= kernel.tuning(plan.columns, size).threads, "{what}");
                assert!(
                    walk.threads_per_lane >= 1 && (plan.columns || walk.threads_per_lane % 32 == 0),
                    "{what}"
                );
                let (partials, tickets) = most_partials(132, channels);
                let blocks_per_channel = walk.blocks_per_channel as usize;
                assert!(blocks_per_channel == 1 || blocks_per_channel * channels <= partials, "{what}");
                assert!(
                    blocks_per_channel == 1 || plan.blocks as usize / blocks_per_channel <= tickets,
                    "{what}"
                );
            }
        }
    }
}

/// What a multiprocessor of an H100 has, and what the largest kernel takes of it.
const SHARED_MEMORY: usize = 228 << 10;
const TAKEN: usize = 40 << 10;

#[test]
fn a_forward_pass_of_a_small_tensor_fits_into_one_launch() {
    let first = [&[2, 512, 7, 7][..], &[128, 1024], &[3, 67, 13, 13]].map(Geometry::channels_first);
    let last = [[2, 7, 7, 512], [3, 13, 13, 67]].map(|shape| Geometry::channels_last(&shape));
    for geometry in first.into_iter().chain(last).map(Result::unwrap) {
        for size in [2, 4] {
            let kernel = &forward::KERNEL;
            let plan = LaunchPlan::new(&geometry, size, &[256], 132, kernel).unwrap();
            let kept = plan.keep(kernel, size, 132, SHARED_MEMORY, TAKEN);
            let what = format!("{geometry:?} {size} {:?}", plan.walk);
            assert!(plan.walk.blocks_per_channel == 1 && kept.is_some(), "{what}");
        }
    }
}

#[test]
fn what_a_thread_keeps_is_all_that_it_reads() {
    for shape in [[4, 16, 30], [2, 512, 49], [3, 67, 169], [100, 8, 1]] {
        let geometry = Geometry::channels_first(&shape).unwrap();
        for (kernel, size) in
            [&forward::KERNEL, &backward::KERNEL].into_iter().flat_map(|k| [2, 4, 8].map(|size| (k, size)))
        {
            let plan = LaunchPlan::new(&geometry, size, &[256], 132, kernel).unwrap();
            let kept = plan.keep(kernel, size, 132, SHARED_MEMORY, TAKEN).unwrap();
            let vectors = plan.walk.vectors_per_thread + i32::from(plan.walk.threads_with_one_more > 0);
            let tuning = kernel.tuning(plan.columns, size);
            assert!(kept.rounds * tuning.unroll as i32 >= vectors, "{shape:?} {size} {:?}", plan.walk);
            let words = kernel.reads * plan.threads as usize * kept.rounds as usize * tuning.unroll;
            assert_eq!(kept.bytes as usize, words * plan.vec * size);
            assert!(plan.keep(kernel, size, 132, TAKEN, TAKEN).is_none());
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
            let plan = LaunchPlan::new(&geometry, size, &[256], 132, kernel).unwrap();
            let what = format!("{shape:?} {} {:?}", kernel.name, plan.walk);
            assert_eq!((plan.walk.blocks_per_channel, plan.vec), (1, 1), "{what}");
            // A thread's loads are all in flight at once, or nearly all.
            assert!(
                plan.walk.vectors_per_thread as usize <= kernel.tuning(true, size).unroll.max(4),
                "{what}"
            );
        }
    }
    let large = Geometry::channels_last(&[1, 1, 512, 1024]).unwrap();
    assert!(LaunchPlan::new(&large, 4, &[256], 132, &moments::KERNEL).unwrap().vec > 1);
}

#[test]
fn a_pointer_off_alignment_narrows_the_loads() {
    let geometry = Geometry::channels_first(&[2, 64, 64]).unwrap();
    let vec = |size, pointers: &[u64]| {
        LaunchPlan::new(&geometry, size, pointers, 132, &moments::KERNEL).unwrap().vec
    };
    assert_eq!(vec(2, &[256]), 8);
    assert_eq!(vec(2, &[256, 258]), 1);
    assert_eq!(vec(4, &[8]), 2);
    assert_eq!(vec(8, &[256]), 2);
}

#[test]
fn prefetched_vectors_exist_and_fit_into_the_shared_memory_of_all_blocks_of_a_multiprocessor() {
    let (room, taken) = (228 * 1024, 12_000);
    let mut most = 0;
    for shape in
        [[1, 67, 1], [2, 64, 131_072], [8, 256, 3136], [64, 2048, 49], [131_072, 64, 1], [3, 67, 169]]
    {
        let geometry = Geometry::channels_first(&shape).unwrap();
        for (kernel, size) in KERNELS.into_iter().flat_map(|kernel| [2, 4, 8].map(|size| (kernel, size))) {
            let plan = LaunchPlan::new(&geometry, size, &[256], 132, kernel).unwrap();
            let tuning = kernel.tuning(plan.columns, size);
            let Prefetch { rounds, bytes } = plan.prefetch(kernel, size, room, taken);
            let (rounds, bytes) = (rounds as usize, bytes as usize);
            let vector = plan.threads as usize * plan.vec * size;
            assert_eq!(bytes, rounds * tuning.unroll * vector * kernel.reads, "{shape:?} {}", kernel.name);
            let blocks = tuning.threads * tuning.blocks / plan.threads as usize;
            assert!(
                rounds == 0 || blocks * (bytes + taken + RESERVED) <= room,
                "{shape:?} {} {blocks}",
                kernel.name
            );
            // Every thread has its last round left for its registers.
            let vectors =
                plan.walk.vectors_per_thread as usize + usize::from(plan.walk.threads_with_one_more > 0);
            assert!(rounds == 0 || rounds * tuning.unroll < vectors, "{shape:?} {}", kernel.name);
            most = most.max(rounds);
        }
    }
    assert!(most >= 2);
    let plan = LaunchPlan::new(
        &Geometry::channels_first(&[2, 64, 131_072]).unwrap(),
        4,
        &[256],
        132,
        &normalize::KERNEL,
    );
    assert_eq!(plan.unwrap().prefetch(&normalize::KERNEL, 4, 0, taken).rounds, 0);
}

#[test]
fn a_channel_has_the_fewest_blocks_that_fill_a_device_nearly_as_well_as_the_best() {
    for groups in [1, 2, 3, 4, 7, 16, 19, 32, 64, 100, 129, 131, 133, 256, 300, 2048, 5000] {
        for (room, most) in
            [(132, 1), (132, 7), (132, 132), (264, 500), (528, 5000), (1056, 40), (1056, 9000)]
        {
            let score = |blocks: usize| {
                let blocks = groups * blocks;
                let waves = blocks.div_ceil(room);
                blocks as f64 / (waves * room) as f64 - 0.05 * (waves - 1) as f64
            };
            let all = 1..=most.min((4 * room / groups).max(1));
            let best = all.clone().map(score).fold(f64::MIN, f64::max);
            let fewest = all.clone().find(|&blocks| score(blocks) >= nearly(best)).unwrap();
            assert_eq!(
                best_blocks_per_channel(groups, room, most),
                (fewest, score(fewest)),
                "{groups} {room} {most}"
            );
        }
    }
}

#[test]
fn no_thread_of_a_block_of_rows_is_without_a_lane() {
    for channels in [1_400, 3_400, 22_000] {
        let geometry = Geometry::channels_first(&[16, channels, 16, 16]).unwrap();
        for (multiprocessors, kernel) in
            [8, 20, 132].into_iter().flat_map(|n| KERNELS.map(|kernel| (n, kernel)))
        {
            let plan = LaunchPlan::new(&geometry, 4, &[256], multiprocessors, kernel).unwrap();
            let used = plan.walk.lanes_per_block * plan.walk.threads_per_lane;
            assert!(
                plan.columns || used as u32 == plan.threads,
                "{channels} {multiprocessors} {}",
                kernel.name
            );
        }
    }
}
