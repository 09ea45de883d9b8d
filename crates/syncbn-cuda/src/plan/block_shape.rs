//! Which threads and blocks share a tensor's vectors, so that the device is full and there are few partial sums.

use super::limits::{SMALL, most_partials};
use super::matrix::Matrix;
use crate::kernel::Tuning;

/// The shape of a kernel's blocks, and how many of them there are.
#[derive(Debug)]
pub(super) struct BlockShape {
    pub(super) threads: usize,
    pub(super) lanes_per_block: usize,
    pub(super) threads_per_lane: usize,
    pub(super) channels_per_block: usize,
    /// Of channels, each of one block or more.
    pub(super) groups: usize,
    pub(super) blocks_per_channel: usize,
    /// How well the blocks fill the device.
    score: f64,
}

impl BlockShape {
    /// The threads of a warp that add up one channel of columns.
    pub(super) fn reducers_per_channel(&self) -> usize {
        (1..=5)
            .map(|power| 1 << power)
            .take_while(|reducers| reducers * self.channels_per_block <= self.threads)
            .last()
            .unwrap_or(1)
    }
}

impl Matrix {
    /// The best shape on a device of so many multiprocessors.
    pub(super) fn block_shape(&self, tuning: Tuning, multiprocessors: usize) -> BlockShape {
        let vectors = self.runs * self.segment;
        // Each thread gets a few loads. Fewer loads a thread would not be faster, since the few are in flight at the same time.
        let wanted =
            vectors.div_ceil(if self.columns { tuning.unroll.max(4) } else { tuning.unroll.min(4) }).max(1);
        let most = tuning.threads;
        let small = most.min(SMALL);
        if self.channels_per_block == 1 && wanted <= small / 2 {
            // A block has whole channels, so no block waits for another.
            let threads_per_lane = wanted.next_power_of_two().max(if self.columns { 8 } else { 32 });
            let lanes_per_block = small / threads_per_lane;
            let groups = self.lanes.div_ceil(lanes_per_block);
            return BlockShape {
                threads: threads_per_lane * lanes_per_block,
                lanes_per_block,
                threads_per_lane,
                channels_per_block: lanes_per_block,
                groups,
                blocks_per_channel: 1,
                score: 0.0,
            };
        }
        let groups = self.lanes.div_ceil(self.lanes_per_block);
        let room = multiprocessors * tuning.blocks * most;
        let (partials, tickets) = most_partials(multiprocessors, groups * self.channels_per_block);
        let shape = |threads: usize| {
            let threads_per_lane = (threads / self.lanes_per_block).min(wanted.next_power_of_two());
            let useful = vectors
                .div_ceil(threads_per_lane * tuning.unroll.max(4))
                .clamp(1, partials / (groups * self.channels_per_block).min(partials));
            let (blocks_per_channel, score) =
                best_blocks_per_channel(groups, room / threads, if groups > tickets { 1 } else { useful });
            BlockShape {
                threads,
                lanes_per_block: self.lanes_per_block,
                threads_per_lane,
                channels_per_block: self.channels_per_block,
                groups,
                blocks_per_channel,
                score,
            }
        };
        let least = self.lanes_per_block.max(self.channels_per_block).max(96);
        let enough = wanted.saturating_mul(self.lanes_per_block).max(least);
        // Of the sizes that are more than enough, only the smallest is tried.
        let sizes = [most, most / 2, most / 4, most / 8].into_iter().filter(|&size| size >= least);
        let sizes = sizes.filter(|&size| size < 2 * enough);
        let shapes: Vec<BlockShape> = sizes.map(shape).collect();
        let best = shapes.iter().map(|shape| shape.score).fold(f64::MIN, f64::max);
        // The largest of the good ones: it has the fewest partial sums.
        shapes.into_iter().find(|shape| shape.score >= nearly(best)).unwrap_or_else(|| shape(most))
    }
}

/// How many blocks share the channels of a group, and how well that fills a device with room for `room` blocks at a time. The last
/// wave of blocks may not fill the device, and every wave takes time to begin and to end.
#[expect(clippy::cast_sign_loss, reason = "a number of blocks is at least 1")]
pub(super) fn best_blocks_per_channel(groups: usize, room: usize, most: usize) -> (usize, f64) {
    let most = most.min((4 * room / groups).max(1));
    let waves = |blocks: usize| (groups * blocks).div_ceil(room);
    let full = |waves: usize| (waves * room) as f64;
    let cost = |waves: usize| 0.05 * (waves - 1) as f64;
    let score = |blocks| (groups * blocks) as f64 / full(waves(blocks)) - cost(waves(blocks));
    // In the same number of waves, more blocks are better.
    let fullest = |waves: usize| (waves * room / groups).clamp(1, most);
    let all = waves(1)..=waves(most);
    let best = all.clone().map(|waves| score(fullest(waves))).fold(f64::MIN, f64::max);
    // Of those that are nearly as good, the fewest blocks have the fewest partial sums.
    let enough = nearly(best);
    let fewest = |waves| ((enough + cost(waves)) * full(waves) / groups as f64).ceil().max(1.0) as usize;
    let blocks = all.map(|waves| fewest(waves).min(fullest(waves))).find(|&blocks| score(blocks) >= enough);
    let blocks = blocks.unwrap_or(most);
    (blocks, score(blocks))
}

/// The lowest score that counts as good as the best. It allows for rounding.
pub(super) fn nearly(best: f64) -> f64 {
    best - 0.04 * best.abs() - 1e-9
}
