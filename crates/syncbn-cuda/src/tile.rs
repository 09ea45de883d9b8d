//! How a grid walks a tensor: the host's half of tile.cuh.
//!
//! A lane is a sequence of vectors that one accumulator may take: one channel (rows), or as many neighbouring channels as a
//! vector has elements (columns, channels-last). Channels-last is rows with segments of one vector. A block has
//! [`THREADS`] threads, `members` to a lane; `splits` blocks share a group of lanes.
//!
//! Deliberately not here: anything that runs on the device.

use syncbn_core::Geometry;

use crate::error::CudaError;

/// Threads of a block, as in tile.cuh.
pub(crate) const THREADS: usize = 256;
/// Vectors that a thread has in flight, as in tile.cuh.
const UNROLL: usize = 4;
/// The widest load, in bytes.
const WIDEST: usize = 16;

/// The struct of the same name in tile.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    channels: i64,
    lanes: i64,
    segment: i64,
    vectors: i64,
    step_index: i64,
    step_within: i64,
    wrap: i64,
    members: i32,
    splits: i32,
}

/// Whether a pass sums, or writes a tensor: how many blocks to a multiprocessor are worth having.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Work {
    Sum,
    Write,
}

/// A tile, and what else a launch needs.
pub(crate) struct Plan {
    pub(crate) tile: Tile,
    /// Blocks that walk the tensor; 0 for an empty one that is only written.
    pub(crate) blocks: u32,
    /// Elements of one load.
    pub(crate) vec: usize,
    pub(crate) columns: bool,
}

impl Plan {
    /// The plan for tensors of elements of `size` bytes that begin at `pointers`.
    pub(crate) fn new(
        geometry: &Geometry,
        size: usize,
        pointers: &[u64],
        multiprocessors: usize,
        work: Work,
    ) -> Result<Self, CudaError> {
        let columns = geometry.inner() == 1;
        let period = if columns { geometry.channels() } else { geometry.inner() };
        let vec = vector_width(period, size, pointers);
        let (lanes, segment) = if columns {
            (geometry.channels() / vec, 1)
        } else {
            (geometry.channels(), geometry.inner() / vec)
        };
        let vectors = geometry.outer() * segment;
        let members = members(columns, lanes, vectors);
        let groups = lanes.div_ceil(THREADS / members);
        let target = target_blocks(multiprocessors, columns, work);
        let splits = (target / groups).min(vectors.div_ceil(members * UNROLL)).max(1);
        let blocks = if work == Work::Write && vectors == 0 { 0 } else { groups.saturating_mul(splits) };

        let step = members * splits;
        let too_large = || CudaError::TooLarge { channels: geometry.channels() };
        // Leaves room in a grid for the blocks that own the state.
        let blocks = u32::try_from(blocks).ok().filter(|&b| b < u32::MAX / 4).ok_or_else(too_large)?;
        let tile = Tile {
            channels: geometry.channels() as i64,
            lanes: lanes as i64,
            segment: segment as i64,
            vectors: vectors as i64,
            step_index: (step / segment * lanes * segment + step % segment) as i64,
            step_within: (step % segment) as i64,
            wrap: ((lanes - 1) * segment) as i64,
            members: members as i32,
            splits: splits as i32,
        };
        Ok(Self { tile, blocks, vec, columns })
    }
}

/// The most blocks that a pass is split into for the sake of a full device.
fn target_blocks(multiprocessors: usize, columns: bool, work: Work) -> usize {
    multiprocessors
        * match (work, columns) {
            (Work::Sum, true) => 2,
            (Work::Sum, false) => 4,
            (Work::Write, _) => 8,
        }
}

/// The most partial sums, of `channels` channels over all splits, and tickets that any pass needs.
pub(crate) fn most_partials(multiprocessors: usize, channels: usize) -> (usize, usize) {
    let columns = target_blocks(multiprocessors, true, Work::Sum) * channels.min(THREADS);
    let rows = target_blocks(multiprocessors, false, Work::Sum) * channels.min(THREADS / 32);
    (columns.max(rows), target_blocks(multiprocessors, false, Work::Sum))
}

/// Rows have at least a warp to a lane; columns have at most a warp of lanes.
fn members(columns: bool, lanes: usize, vectors: usize) -> usize {
    if columns {
        return THREADS / lanes.next_power_of_two().min(32);
    }
    vectors.div_ceil(UNROLL).next_power_of_two().clamp(32, THREADS)
}

/// The most elements that one load may take: no vector straddles two channels' runs, every one is aligned.
fn vector_width(period: usize, size: usize, pointers: &[u64]) -> usize {
    let mut vec = WIDEST / size;
    let fits = |vec: usize| {
        period.is_multiple_of(vec) && pointers.iter().all(|p| p.is_multiple_of((vec * size) as u64))
    };
    while vec > 1 && !fits(vec) {
        vec /= 2;
    }
    vec
}

#[cfg(test)]
#[expect(clippy::cast_sign_loss, reason = "every field of a plan was a usize")]
mod tests {
    use super::*;

    /// Every vector of the tensor, as the threads of the device would visit them.
    fn visits(plan: &Plan) -> Vec<u32> {
        let tile = &plan.tile;
        let members = tile.members as usize;
        let slots = THREADS / members;
        let (lanes, segment, vectors) = (tile.lanes as usize, tile.segment as usize, tile.vectors as usize);
        let mut seen = vec![0; lanes * vectors];
        for block in 0..plan.blocks as usize {
            let (group, split) = (block / tile.splits as usize, block % tile.splits as usize);
            for thread in 0..THREADS {
                let (member, slot) = if plan.columns {
                    (thread / slots, thread % slots)
                } else {
                    (thread % members, thread / members)
                };
                let lane = group * slots + slot;
                let mut at = split * members + member;
                if lane >= lanes || at >= vectors {
                    continue;
                }
                let mut within = (at % segment) as i64;
                let mut index = ((at / segment * lanes + lane) * segment) as i64 + within;
                while at < vectors {
                    seen[index as usize] += 1;
                    at += members * tile.splits as usize;
                    index += tile.step_index;
                    within += tile.step_within;
                    if within >= tile.segment {
                        within -= tile.segment;
                        index += tile.wrap;
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn every_vector_is_visited_once() {
        for shape in
            [&[2, 3, 7][..], &[1, 1, 5], &[64, 5, 7, 7], &[3, 67, 13, 13], &[2, 600, 3], &[9, 2, 4096]]
        {
            for first in [true, false] {
                let geometry =
                    if first { Geometry::channels_first(shape) } else { Geometry::channels_last(shape) };
                for work in [Work::Sum, Work::Write] {
                    let plan = Plan::new(&geometry.clone().unwrap(), 4, &[256], 132, work).unwrap();
                    assert!(visits(&plan).iter().all(|&n| n == 1), "{shape:?} {first} {work:?}");
                }
            }
        }
    }

    #[test]
    fn partial_sums_of_every_plan_fit_the_scratch() {
        for channels in [1, 3, 8, 19, 64, 100, 256, 1000, 4096, 100_000] {
            for shape in [[64, channels, 196], [1, channels, 1], [50_000, channels, 1]] {
                let geometry = Geometry::channels_first(&shape).unwrap();
                for size in [2, 4, 8] {
                    let plan = Plan::new(&geometry, size, &[256], 132, Work::Sum).unwrap();
                    let (partials, tickets) = most_partials(132, channels);
                    let splits = plan.tile.splits as usize;
                    assert!(splits == 1 || splits * channels <= partials, "{shape:?}");
                    assert!(splits == 1 || plan.blocks as usize / splits <= tickets, "{shape:?}");
                }
            }
        }
    }

    #[test]
    fn a_pointer_off_alignment_narrows_the_loads() {
        assert_eq!(vector_width(64, 2, &[256]), 8);
        assert_eq!(vector_width(64, 2, &[256, 258]), 1);
        assert_eq!(vector_width(49, 4, &[256]), 1);
        assert_eq!(vector_width(6, 4, &[8]), 2);
    }
}
