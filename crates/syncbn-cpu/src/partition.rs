//! How a tensor is cut into pieces of work. The cuts depend on the geometry alone, never on the number of threads: that,
//! and a fixed order of merging, is why any number of threads gives the same bits.
//!
//! Deliberately not here: what is done with a piece.

use std::ops::Range;

use rayon::prelude::*;
use syncbn_core::Geometry;

use crate::number::BLOCK;

/// The elements of one piece of work: enough to be worth a thread's attention, and few enough that a tensor worth
/// several threads has several.
const PIECE: usize = 1 << 16;

/// Tensors with fewer elements are not worth waking a second thread.
const SERIAL: usize = 1 << 15;

/// From this many neighbours on, a channel's own neighbours fill vectors. Below, vectors run across channels.
const PLANE: usize = 32;

/// Whether vectors run along one channel (a plane) or across channels (a row).
pub(crate) fn by_planes(geometry: &Geometry) -> bool {
    geometry.inner() >= PLANE
}

/// A box of elements: of each of the channels the same ones.
pub(crate) struct Tile {
    pub(crate) outer: Range<usize>,
    pub(crate) channels: Range<usize>,
    pub(crate) inner: Range<usize>,
}

/// A tensor cut into boxes for a sum per channel: groups of channels, whose elements are cut into `splits` parts.
pub(crate) struct Tiles {
    outer: usize,
    channels: usize,
    inner: usize,
    outer_step: usize,
    channel_step: usize,
    inner_step: usize,
}

impl Tiles {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let (outer, channels, inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        let inner_step = inner.min(PIECE);
        // Neighbouring channels share a tile up to a block: then its memory comes in runs of a page or so.
        let groups = channels.div_ceil((BLOCK / inner_step).clamp(1, channels));
        let channel_step = channels.div_ceil(groups);
        let outer_step = (PIECE / (channel_step * inner_step)).max(1);
        Self { outer, channels, inner, outer_step, channel_step, inner_step }
    }

    /// The parts into which the elements of each channel are cut; 0 if there are none.
    pub(crate) fn splits(&self) -> usize {
        self.outer.div_ceil(self.outer_step) * self.inner.div_ceil(self.inner_step)
    }

    /// The elements of a channel that a part holds.
    pub(crate) fn count(&self, split: usize) -> f64 {
        let tile = self.tile(split, 0);
        (tile.outer.len() * tile.inner.len()) as f64
    }

    fn tile(&self, split: usize, group: usize) -> Tile {
        let inner_splits = self.inner.div_ceil(self.inner_step);
        let step = |index: usize, step: usize, end: usize| index * step..(index * step + step).min(end);
        Tile {
            outer: step(split / inner_splits, self.outer_step, self.outer),
            channels: step(group, self.channel_step, self.channels),
            inner: step(split % inner_splits, self.inner_step, self.inner),
        }
    }

    /// Runs `work` for every tile. `results` has one row of `channels` results per split, and a tile is lent its own.
    pub(crate) fn for_each<R: Send>(&self, results: &mut [R], work: impl Fn(&Tile, &mut [R]) + Sync) {
        let row = |(split, row): (usize, &mut [R])| {
            for (group, results) in row.chunks_mut(self.channel_step).enumerate() {
                work(&self.tile(split, group), results);
            }
        };
        if self.outer * self.channels * self.inner < SERIAL {
            results.chunks_mut(self.channels).enumerate().for_each(row);
            return;
        }
        results.par_chunks_mut(self.channels).enumerate().for_each(|(split, row)| {
            row.par_chunks_mut(self.channel_step).enumerate().for_each(|(group, results)| {
                work(&self.tile(split, group), results);
            });
        });
    }
}

/// Runs `work` for every piece of a tensor's memory, with the offset at which the piece begins. Cuts are between planes or
/// rows, `period` elements long, where these are small enough: that keeps the inner loops whole.
pub(crate) fn for_each_piece<T: Send>(
    period: usize,
    memory: &mut [T],
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let piece = if period <= PIECE { PIECE / period * period } else { PIECE };
    if memory.len() < SERIAL {
        memory.chunks_mut(piece).enumerate().for_each(|(index, chunk)| work(index * piece, chunk));
    } else {
        memory.par_chunks_mut(piece).enumerate().for_each(|(index, chunk)| work(index * piece, chunk));
    }
}
