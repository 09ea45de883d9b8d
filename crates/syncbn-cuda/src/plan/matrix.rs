//! What vectors a tensor consists of: the widest that are aligned and belong to whole columns or runs.
//!
//! Deliberately not here: threads, which are put to them in `team`.

use syncbn_core::Geometry;

use super::limits::{MOST_PACK, SMALL};

/// The widest load, in bytes.
const WIDEST: usize = 16;
/// The bytes of the lanes of a block of columns: a line of the cache.
const LINE: usize = 128;
/// The most lanes of a block whose channels would not end together in fewer.
const MOST_SLOTS: usize = 128;
/// Fewer rows than this are not worth reading as matrices that end between them.
const LEAST_RUNS: usize = 32;
/// The most rows and channels of a tensor that [`Kernel::few`](crate::kernel::Kernel::few) is for: a few loads to each of half a block's
/// threads, and no more blocks than find room at once.
const FEW_ROWS: usize = 2 * SMALL;
const FEW_CHANNELS: usize = 2048;

/// What vectors a tensor consists of, before threads are put to them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub(super) vec: usize,
    pub(super) columns: bool,
    pub(super) lanes: usize,
    pub(super) segment: usize,
    pub(super) runs: usize,
    pub(super) inner: usize,
    /// Lanes and channels that a block cannot do with fewer of; rows: of one warp's block.
    pub(super) slots: usize,
    pub(super) pack: usize,
    pub(super) tail: usize,
}

impl Matrix {
    /// The matrix of the widest vectors that are aligned and belong to whole columns or runs.
    pub(super) fn of(geometry: &Geometry, size: usize, pointers: &[u64], few: usize) -> Self {
        let (outer, channels, inner) = (geometry.outer(), geometry.channels(), geometry.inner());
        if inner == 1 && outer <= FEW_ROWS && channels <= FEW_CHANNELS && geometry.len() <= few {
            return Self { slots: 1, pack: 1, ..Self::plain_columns(outer, channels, 1, size) };
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
        Self { vec, columns: false, lanes: channels, segment, runs, inner, slots: 1, pack: 1, tail: 0 }
    }

    fn plain_columns(rows: usize, channels: usize, vec: usize, size: usize) -> Self {
        let lanes = channels / vec;
        let slots = lanes.min(LINE / (vec * size));
        let pack = slots * vec;
        Self { vec, columns: true, lanes, segment: 1, runs: rows, inner: 1, slots, pack, tail: 0 }
    }

    fn channels_last(rows: usize, channels: usize, vec: usize, size: usize) -> Option<Self> {
        let common = gcd(channels, vec);
        if common == vec {
            return Some(Self::plain_columns(rows, channels, vec, size));
        }
        // So many rows fill whole vectors, and are read as one.
        let together = vec / common;
        let lanes = channels / common;
        let runs = rows / together;
        let tail = rows % together * channels;
        let matrix = Self {
            lanes,
            runs,
            tail,
            slots: lanes,
            pack: channels,
            ..Self::plain_columns(0, vec, vec, size)
        };
        (lanes <= MOST_SLOTS && channels <= MOST_PACK && runs >= LEAST_RUNS).then_some(matrix)
    }

    fn short_planes(samples: usize, channels: usize, inner: usize, vec: usize, size: usize) -> Option<Self> {
        // So many channels fill whole vectors.
        let together = vec / gcd(inner, vec);
        let slots = together * inner / vec;
        if !(channels * inner).is_multiple_of(vec) || slots > MOST_SLOTS {
            return None;
        }
        let times = (4 * LINE / (slots * vec * size)).max(1);
        let (slots, pack) = (slots * times, together * times);
        let lanes = channels * inner / vec;
        Some(Self { lanes, runs: samples, inner, slots, pack, ..Self::plain_columns(0, vec, vec, size) })
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
