//! How a tensor is cut into pieces of work. The cuts of sums depend on the geometry alone, never on the number of threads: that,
//! and a fixed order of merging, is why any number of threads gives the same bits.

use std::ops::Range;

use syncbn_core::Geometry;

use crate::error::CpuError;
use crate::pool;
use crate::vector::STRIP;

/// The elements of one piece of work: enough that handing it to a thread costs little, and few enough that a tensor which is worth
/// several threads has several pieces.
const PIECE: usize = 1 << 16;

/// The most lanes that rows have sums for: few enough that the sums stay in the first cache.
pub(crate) const LANES: usize = 1024;

/// The neighbours that a tile of planes has in memory: long enough for prefetching to help.
const RUN: usize = 1 << 14;

/// Planes of this many elements or more are worked on along the plane. In shorter ones, the lanes that the last vector leaves unused
/// cost more than vectors across channels, which have to load coefficients for each vector.
const PLANE: usize = 32;

/// The sizes of a dense tensor, or of some of its channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dims {
    pub(crate) outer: usize,
    pub(crate) channels: usize,
    pub(crate) inner: usize,
}

impl From<&Geometry> for Dims {
    fn from(geometry: &Geometry) -> Self {
        Self { outer: geometry.outer(), channels: geometry.channels(), inner: geometry.inner() }
    }
}

impl Dims {
    pub(crate) fn len(self) -> usize {
        self.outer * self.channels * self.inner
    }

    /// Whether vectors run along one channel (a plane) or across channels (a row).
    pub(crate) fn by_planes(self) -> bool {
        self.inner >= PLANE
    }

    /// Whether sums run along planes, too. At the end of each plane the lanes of its sum have to be added up, so that many short
    /// planes are cheaper to add across channels.
    pub(crate) fn sums_by_planes(self) -> bool {
        self.by_planes() && (self.inner >= 2 * PLANE || self.outer < 4)
    }
}

/// How many rows of `row` elements are worked on as one: so many that they are whole strips, if that is possible, and have about
/// `enough` elements together.
pub(crate) fn merged_rows(row: usize, enough: usize) -> usize {
    let whole = STRIP >> row.trailing_zeros().min(STRIP.trailing_zeros());
    if row > LANES / whole { 1 } else { whole * (enough / (row * whole)).max(1) }
}

/// A box of elements: the same positions of each of its channels.
pub(crate) struct Tile {
    pub(crate) outer: Range<usize>,
    pub(crate) channels: Range<usize>,
    pub(crate) inner: Range<usize>,
    /// How many rows are added as one: 1 where rows are not contiguous.
    pub(crate) merged_rows: usize,
}

impl Tile {
    /// The elements of each channel.
    pub(crate) fn count(&self) -> f64 {
        (self.outer.len() * self.inner.len()) as f64
    }
}

/// A tensor cut into boxes for a sum per channel: groups of channels, whose elements are cut into `splits` parts.
pub(crate) struct Tiles {
    dims: Dims,
    outer_step: usize,
    channel_step: usize,
    inner_step: usize,
}

impl Tiles {
    pub(crate) fn new(dims: Dims) -> Self {
        let Dims { channels, inner, .. } = dims;
        let inner_step = inner.min(PIECE);
        // Neighbouring channels share a tile, so that its memory comes in long runs.
        let run = if dims.sums_by_planes() { RUN } else { LANES };
        let groups = channels.div_ceil((run / inner_step).clamp(1, channels));
        let channel_step = channels.div_ceil(groups);
        let outer_step = (PIECE / (channel_step * inner_step)).max(1);
        Self { dims, outer_step, channel_step, inner_step }
    }

    /// The parts into which the elements of each channel are cut; 0 if there are none.
    pub(crate) fn splits(&self) -> usize {
        self.dims.outer.div_ceil(self.outer_step) * self.dims.inner.div_ceil(self.inner_step)
    }

    /// The elements of a channel that a part holds.
    pub(crate) fn count(&self, split: usize) -> f64 {
        self.tile(split, 0..1).count()
    }

    /// Whether blocks of `step` channels, each with its part of every tile, have the same sums. Rows that are added as one cannot be
    /// cut, and sums across channels are limited to the lanes of one tile.
    pub(crate) fn can_be_cut(&self, step: usize) -> bool {
        let whole = step == self.dims.channels || self.merged_rows(self.channel_step) == 1;
        self.dims.sums_by_planes() || (step <= self.channel_step && whole)
    }

    /// How many rows of so many channels are added as one.
    fn merged_rows(&self, channels: usize) -> usize {
        if channels == self.dims.channels { merged_rows(channels * self.dims.inner, STRIP) } else { 1 }
    }

    /// The part `split` of these channels.
    pub(crate) fn tile(&self, split: usize, channels: Range<usize>) -> Tile {
        let inner_splits = self.dims.inner.div_ceil(self.inner_step);
        let step = |index: usize, step: usize, end: usize| index * step..(index * step + step).min(end);
        Tile {
            outer: step(split / inner_splits, self.outer_step, self.dims.outer),
            merged_rows: self.merged_rows(channels.len()),
            channels,
            inner: step(split % inner_splits, self.inner_step, self.dims.inner),
        }
    }

    /// Runs `work` for every tile, with the tile's part of `results`, which has a row of `channels` entries per split.
    pub(crate) fn for_each<R: Send>(
        &self,
        results: &mut [R],
        work: impl Fn(&Tile, &mut [R]) + Sync,
    ) -> Result<(), CpuError> {
        let rows = results.chunks_mut(self.dims.channels).enumerate();
        let tiles = rows.flat_map(|(split, row)| {
            let groups = row.chunks_mut(self.channel_step).enumerate();
            groups.map(move |(group, results)| {
                let first = group * self.channel_step;
                (self.tile(split, first..first + results.len()), results)
            })
        });
        pool::for_each(self.dims.len(), tiles, |(tile, results)| {
            work(&tile, results);
            Ok(())
        })
    }
}

/// A tensor cut into blocks of neighbouring channels for a whole pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    /// The channels of a block.
    pub(crate) step: usize,
}

/// The most bytes of a block's inputs, so that a core's own cache holds them.
const CACHE: usize = 512 << 10;

/// The most where the smallest block is larger than that: up to here, a whole pass is no slower than two kernels.
const LIMIT: usize = 1 << 20;

/// The least bytes of a block that are contiguous: each such run may lie on a page of its own.
const SHORTEST: usize = 1 << 10;

impl Blocks {
    /// `None` where two kernels are faster: for short planes, whose blocks would be short runs on very many pages; where the smallest
    /// block does not fit the cache; and where there would be fewer blocks than threads. `inputs` is the number of tensors that are
    /// read, `size` the bytes of an element.
    pub(crate) fn new(dims: Dims, tiles: &Tiles, inputs: usize, size: usize) -> Option<Self> {
        if !dims.by_planes() || dims.len() < pool::SERIAL {
            return None;
        }
        let plane = dims.inner * size;
        let channel = dims.outer * plane * inputs;
        let least = SHORTEST.div_ceil(plane);
        let fitting = (if least * channel <= CACHE { CACHE } else { LIMIT }) / channel;
        let most = if dims.sums_by_planes() { fitting } else { fitting.min(tiles.channel_step) };
        let wanted = dims.channels.div_ceil(most.max(1)).max(4 * pool::threads());
        let step = dims.channels.div_ceil(wanted).max(least);
        let enough = dims.channels.div_ceil(step) >= pool::threads();
        (step <= most && enough && tiles.can_be_cut(step)).then_some(Self { step })
    }
}

/// Runs `work` for every piece of a tensor's memory, with the offset at which the piece begins. The memory is cut between planes or
/// rows, which are `period` elements long. A plane longer than a piece is itself cut, if it is `divisible`.
pub(crate) fn for_each_piece<T: Send>(
    period: usize,
    divisible: bool,
    memory: &mut [T],
    work: impl Fn(usize, &mut [T]) + Sync,
) -> Result<(), CpuError> {
    let piece = if period > PIECE && divisible { PIECE } else { (PIECE / period).max(1) * period };
    let elements = memory.len();
    let pieces = memory.chunks_mut(piece).enumerate();
    pool::for_each(elements, pieces, |(index, chunk)| {
        work(index * piece, chunk);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn geometry(outer: usize, channels: usize, inner: usize) -> Geometry {
        Geometry::channels_first(&[outer, channels, inner]).unwrap()
    }

    #[test]
    fn tiles_hold_every_element_once_and_write_each_channel_s_own_result() {
        for (outer, channels, inner) in [
            (0, 3, 4),
            (2, 1, 1),
            (5, 3, 4),
            (7, 2100, 1),
            (3, 1100, 2),
            (300, 129, 1),
            (3000, 3, 8),
            (2, 3, 255),
            (40_000, 3, 1),
            (2, 1, PIECE + 1),
            (1, 2, 2 * PIECE + 5),
        ] {
            let geometry = geometry(outer, channels, inner);
            // One channel, or one position, has its axes merged.
            let inner = geometry.inner();
            let dims = Dims::from(&geometry);
            let tiles = Tiles::new(dims);
            let seen = Mutex::new(vec![0; geometry.len()]);
            let mut results = vec![usize::MAX; tiles.splits() * channels];
            let summed = tiles.for_each(&mut results, |tile, results| {
                assert_eq!(tile.channels.len(), results.len());
                let run = tile.channels.len() * tile.inner.len();
                assert!(tile.outer.len() * run <= PIECE, "{geometry:?}");
                let most = if dims.sums_by_planes() { RUN } else { LANES };
                assert!(run <= most || tile.channels.len() == 1, "{geometry:?}");
                for (channel, result) in tile.channels.clone().zip(results) {
                    *result = channel;
                    for outer in tile.outer.clone() {
                        let plane = (outer * channels + channel) * inner;
                        let seen = &mut seen.lock().unwrap()[plane..plane + inner];
                        seen[tile.inner.clone()].iter_mut().for_each(|seen| *seen += 1);
                    }
                }
            });
            assert_eq!(summed, Ok(()));
            assert!(seen.into_inner().unwrap().iter().all(|&seen| seen == 1), "{geometry:?}");
            assert!(results.iter().enumerate().all(|(i, &result)| result == i % channels), "{geometry:?}");
            let count: f64 = (0..tiles.splits()).map(|split| tiles.count(split)).sum();
            assert_eq!(count, geometry.per_channel() as f64, "{geometry:?}");
        }
    }

    #[test]
    fn pieces_are_whole_planes_or_rows_but_for_long_planes() {
        for (period, divisible) in [1, 7, 1000, PIECE / 2 + 1, PIECE, PIECE + 1, 2 * PIECE]
            .into_iter()
            .flat_map(|period| [(period, true), (period, false)])
        {
            let mut memory = vec![0; 4 * PIECE + 5];
            let len = memory.len();
            let mapped = for_each_piece(period, divisible, &mut memory, |start, piece| {
                if period <= PIECE || !divisible {
                    assert_eq!(start % period, 0);
                }
                assert!(piece.len() <= if divisible { PIECE } else { PIECE.max(period) }, "{period}");
                assert!(piece.len() > PIECE / 2 || start + piece.len() == len, "{period}");
                piece.iter_mut().zip(start..).for_each(|(element, at)| *element += at);
            });
            assert_eq!(mapped, Ok(()));
            assert!(memory.into_iter().eq(0..len), "{period}");
        }
    }

    #[test]
    fn short_rows_are_merged_to_whole_strips_and_wide_ones_are_not() {
        for row in 1..2 * LANES {
            for enough in [STRIP, 256] {
                let len = row * merged_rows(row, enough);
                assert!(len <= LANES.max(row), "{row}");
                assert!(len.is_multiple_of(STRIP) || row * STRIP > LANES, "{row}");
                assert!(len > enough / 2 || row * STRIP > LANES, "{row}");
            }
        }
    }

    #[test]
    fn blocks_fit_a_cache_and_leave_no_thread_without_one() {
        for (shape, inputs) in [[8, 64, 12544], [8, 256, 3136], [32, 512, 196], [64, 300, 49], [1, 4096, 40]]
            .into_iter()
            .flat_map(|shape| [(shape, 1), (shape, 2)])
        {
            let dims = Dims::from(&geometry(shape[0], shape[1], shape[2]));
            let tiles = Tiles::new(dims);
            let blocks = Blocks::new(dims, &tiles, inputs, 4).unwrap();
            let channel = dims.outer * dims.inner * 4 * inputs;
            assert!(
                blocks.step * channel <= if blocks.step == 1 { LIMIT } else { CACHE },
                "{dims:?} {blocks:?}"
            );
            assert!(dims.channels.div_ceil(blocks.step) >= pool::threads(), "{dims:?} {blocks:?}");
            assert!(blocks.step * dims.inner * 4 >= SHORTEST, "{dims:?} {blocks:?}");
        }
        for [outer, channels, inner] in
            [[8, 64, 100_000], [100_000, 64, 1], [1, 1, 100_000], [2, 64, 64], [4096, 256, 1]]
        {
            let dims = Dims::from(&geometry(outer, channels, inner));
            assert!(Blocks::new(dims, &Tiles::new(dims), 1, 4).is_none(), "{dims:?}");
        }
    }
}
