//! How a tensor is divided into vectors: the widest that are aligned and lie within one column or run.

use syncbn_core::Geometry;

use super::limits::{MOST_CHANNELS_PER_BLOCK, SMALL};

/// The widest load, in bytes.
const WIDEST: usize = 16;
/// The bytes of a row that a block of columns reads: a line of the cache.
const LINE: usize = 128;
/// The most lanes of a block, where fewer would end within a channel.
const MOST_LANES_PER_BLOCK: usize = 128;
/// Reading several rows as one is not worth its cost with fewer rows of vectors than this.
const LEAST_RUNS: usize = 32;
/// The most rows and channels of a tensor that [`Kernel::scalar_up_to`](crate::kernel::Kernel::scalar_up_to) is for: half of a block's
/// threads get a few loads each, and all blocks fit on the device at once.
const FEW_ROWS: usize = 2 * SMALL;
const FEW_CHANNELS: usize = 2048;

/// The vectors of a tensor. kernels/walk.cuh explains the terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) vec: usize,
    pub(super) columns: bool,
    pub(super) lanes: usize,
    pub(super) segment: usize,
    pub(super) runs: usize,
    pub(super) inner: usize,
    /// The fewest lanes of a block, and their channels. For rows: of a block of one channel.
    pub(super) lanes_per_block: usize,
    pub(super) channels_per_block: usize,
    pub(super) tail: usize,
}

impl Matrix {
    /// The division into the widest vectors that are aligned and lie within one column or run.
    pub(super) fn of(geometry: &Geometry, size: usize, pointers: &[u64], scalar_up_to: usize) -> Self {
        let (outer, channels, inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        if inner == 1 && outer <= FEW_ROWS && channels <= FEW_CHANNELS && geometry.len() <= scalar_up_to {
            return Self {
                lanes_per_block: 1,
                channels_per_block: 1,
                ..Self::plain_columns(outer, channels, 1, size)
            };
        }
        let aligned = |vec: &usize| pointers.iter().all(|p| p.is_multiple_of((vec * size) as u64));
        let widths = [8, 4, 2].into_iter().filter(|vec| vec * size <= WIDEST).filter(aligned);
        for vec in widths {
            let found = if inner == 1 {
                Self::channels_last(outer, channels, vec, size)
            } else if inner.is_multiple_of(vec) {
                Some(Self::rows(outer, channels, inner, vec))
            } else {
                Self::short_planes(outer, channels, inner, vec, size)
            };
            if let Some(matrix) = found {
                return matrix;
            }
        }
        if inner == 1 {
            Self::plain_columns(outer, channels, 1, size)
        } else {
            Self::rows(outer, channels, inner, 1)
        }
    }

    fn rows(outer: usize, channels: usize, inner: usize, vec: usize) -> Self {
        let segment = (inner / vec).max(1);
        let runs = if inner == 0 { 0 } else { outer };
        Self {
            vec,
            columns: false,
            lanes: channels,
            segment,
            runs,
            inner,
            lanes_per_block: 1,
            channels_per_block: 1,
            tail: 0,
        }
    }

    fn plain_columns(rows: usize, channels: usize, vec: usize, size: usize) -> Self {
        let lanes = channels / vec;
        let lanes_per_block = lanes.min(LINE / (vec * size));
        let channels_per_block = lanes_per_block * vec;
        Self {
            vec,
            columns: true,
            lanes,
            segment: 1,
            runs: rows,
            inner: 1,
            lanes_per_block,
            channels_per_block,
            tail: 0,
        }
    }

    fn channels_last(rows: usize, channels: usize, vec: usize, size: usize) -> Option<Self> {
        let common = gcd(channels, vec);
        if common == vec {
            return Some(Self::plain_columns(rows, channels, vec, size));
        }
        // So many rows are whole vectors, and are read as one row.
        let together = vec / common;
        let lanes = channels / common;
        let runs = rows / together;
        let tail = rows % together * channels;
        let matrix = Self {
            lanes,
            runs,
            tail,
            lanes_per_block: lanes,
            channels_per_block: channels,
            ..Self::plain_columns(0, vec, vec, size)
        };
        (lanes <= MOST_LANES_PER_BLOCK && channels <= MOST_CHANNELS_PER_BLOCK && runs >= LEAST_RUNS)
            .then_some(matrix)
    }

    fn short_planes(samples: usize, channels: usize, inner: usize, vec: usize, size: usize) -> Option<Self> {
        // So many channels are whole vectors.
        let together = vec / gcd(inner, vec);
        let lanes_per_block = together * inner / vec;
        if !(channels * inner).is_multiple_of(vec) || lanes_per_block > MOST_LANES_PER_BLOCK {
            return None;
        }
        let times = (4 * LINE / (lanes_per_block * vec * size)).max(1);
        let (lanes_per_block, channels_per_block) = (lanes_per_block * times, together * times);
        let lanes = channels * inner / vec;
        Some(Self {
            lanes,
            runs: samples,
            inner,
            lanes_per_block,
            channels_per_block,
            ..Self::plain_columns(0, vec, vec, size)
        })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
