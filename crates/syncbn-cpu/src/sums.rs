//! Two sums per channel, in `f64`: what `moments` and `grad_sums` have in common.
//!
//! Deliberately not here: which terms are added, and how the sums of tiles are put together.

use std::array;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::number::{BLOCK, Number};
use crate::partition::{Bands, Cut, Runs, share};

/// The vectors of sums along a plane that do not wait for each other.
const CHAINS: usize = 4;

/// The rows that are added at a time.
const ROWS: usize = 4;

/// The most columns of a band: `ROWS` rows of two inputs fit the first-level cache.
pub(crate) const COLUMNS: usize = 512;

/// The most lanes that a vector of `f64` has.
const LANES: usize = 8;

/// The room for a row: a power of two would put all rows' elements in the same few places of the cache.
const ROOM: usize = COLUMNS + LANES;

/// What is added: two terms per element of `N` tensors.
pub(crate) trait Terms<const N: usize>: Sync {
    /// What the terms of a tile's elements of a channel may be shifted by; `first` is the first tensor's first of them.
    fn shift(&self, channel: usize, first: f64) -> f64;
    /// Values whose terms are 0.
    fn padding(&self, shift: f64) -> [f64; N];
    /// Adds the terms of one element in each lane.
    fn add<S: Simd>(&self, simd: S, sums: [S::f64s; 2], values: [S::f64s; N], shift: S::f64s)
    -> [S::f64s; 2];
    /// What is kept of the sums over a tile.
    fn result(&self, sums: [f64; 2], shift: f64, count: f64) -> [f64; 2];
}

/// Fills `results`: a row of the cut's columns for every split.
pub(crate) fn reduce<T: Number, const N: usize>(
    cut: &Cut,
    inputs: [&[T]; N],
    results: &mut [[f64; 2]],
    terms: &impl Terms<N>,
) {
    match cut {
        Cut::Runs(runs) => {
            let per_piece = runs.per_piece();
            let pieces = results.len().div_ceil(per_piece);
            share(pieces, results.chunks_mut(per_piece).enumerate(), |(piece, results)| {
                let first = piece * per_piece;
                Arch::new().dispatch(SumRuns { runs, first, inputs, results, terms });
            });
        }
        Cut::Bands(bands) => {
            let pieces = results.len().div_ceil(bands.columns) * bands.columns.div_ceil(bands.width);
            let splits = results.chunks_mut(bands.columns).enumerate();
            let groups = |(split, row): (usize, _)| {
                <[_]>::chunks_mut(row, bands.width).enumerate().map(move |group| (split, group))
            };
            share(pieces, splits.flat_map(groups), |(split, (group, results))| {
                let column = group * bands.width;
                Arch::new().dispatch(SumBand { bands, split, column, inputs, results, terms });
            });
        }
    }
}

/// Runs of one channel each.
struct SumRuns<'a, T, X, const N: usize> {
    runs: &'a Runs,
    first: usize,
    inputs: [&'a [T]; N],
    results: &'a mut [[f64; 2]],
    terms: &'a X,
}

impl<T: Number, X: Terms<N>, const N: usize> WithSimd for SumRuns<'_, T, X, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { runs, first, inputs, results, terms } = self;
        let mut buffers = [[0.0; BLOCK]; N];
        for (index, result) in (first..).zip(results) {
            let (split, channel) = (index / runs.channels, index % runs.channels);
            *result = sum_run(simd, runs.run(split, channel), channel, inputs, &mut buffers, terms);
        }
    }
}

#[inline(always)]
fn sum_run<S: Simd, T: Number, const N: usize>(
    simd: S,
    run: Range<usize>,
    channel: usize,
    inputs: [&[T]; N],
    buffers: &mut [[f64; BLOCK]; N],
    terms: &impl Terms<N>,
) -> [f64; 2] {
    let shift = terms.shift(channel, inputs[0][run.start].to_f64());
    let padding = terms.padding(shift);
    let shifts = simd.splat_f64s(shift);
    let mut chains = [[simd.splat_f64s(0.0); 2]; CHAINS];
    let mut start = run.start;
    while start < run.end {
        let len = BLOCK.min(run.end - start);
        let mut vectors: [&[S::f64s]; N] = [&[]; N];
        for (n, buffer) in buffers.iter_mut().enumerate() {
            vectors[n] = widened::<S, T>(&inputs[n][start..start + len], padding[n], buffer);
        }
        let count = vectors[0].len();
        let mut i = 0;
        while i < count {
            for chain in &mut chains {
                if i < count {
                    *chain = terms.add(simd, *chain, at(vectors, i), shifts);
                }
                i += 1;
            }
        }
        start += len;
    }
    let mut sums = [0.0; 2];
    for k in 0..2 {
        let low = simd.add_f64s(chains[0][k], chains[1][k]);
        let high = simd.add_f64s(chains[2][k], chains[3][k]);
        sums[k] = simd.reduce_sum_f64s(simd.add_f64s(low, high));
    }
    terms.result(sums, shift, run.len() as f64)
}

/// Some columns of a band of rows.
struct SumBand<'a, T, X, const N: usize> {
    bands: &'a Bands,
    split: usize,
    column: usize,
    inputs: [&'a [T]; N],
    results: &'a mut [[f64; 2]],
    terms: &'a X,
}

impl<T: Number, X: Terms<N>, const N: usize> WithSimd for SumBand<'_, T, X, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { bands, split, column, inputs, results, terms } = self;
        let (stride, rows) = (bands.columns, bands.band(split));
        let (mut shift, mut first, mut second) = ([0.0; ROOM], [0.0; ROOM], [0.0; ROOM]);
        let (columns, padded) = (results.len(), results.len().next_multiple_of(LANES));
        for (i, shift) in shift[..columns].iter_mut().enumerate() {
            let first = inputs[0][rows.start * stride + column + i];
            *shift = terms.shift(bands.channel(column + i), first.to_f64());
        }
        let mut buffers = [[[0.0; ROOM]; N]; ROWS];
        let mut row = rows.start;
        while row < rows.end {
            // Memory is read in order; the rows are then side by side in the cache.
            let some = if row + ROWS <= rows.end { ROWS } else { 1 };
            for (row, buffers) in (row..).zip(&mut buffers[..some]) {
                let start = row * stride + column;
                for (input, buffer) in inputs.iter().zip(buffers) {
                    T::widen(&input[start..start + columns], &mut buffer[..columns]);
                }
            }
            let (shift, first, second) = (&shift[..padded], &mut first[..padded], &mut second[..padded]);
            if some == ROWS {
                add_rows(simd, &buffers, shift, first, second, terms);
            } else {
                add_rows(simd, array::from_ref(&buffers[0]), shift, first, second, terms);
            }
            row += some;
        }
        let count = rows.len() as f64;
        for (i, result) in results.iter_mut().enumerate() {
            *result = terms.result([first[i], second[i]], shift[i], count);
        }
    }
}

/// Every lane has sums and a shift of its own, which the rows share one look at.
#[inline(always)]
fn add_rows<S: Simd, const N: usize, const R: usize>(
    simd: S,
    rows: &[[[f64; ROOM]; N]; R],
    shift: &[f64],
    first: &mut [f64],
    second: &mut [f64],
    terms: &impl Terms<N>,
) {
    let mut vectors: [[&[S::f64s]; N]; R] = [[&[]; N]; R];
    for (vectors, row) in vectors.iter_mut().zip(rows) {
        for (vectors, lanes) in vectors.iter_mut().zip(row) {
            *vectors = S::as_simd_f64s(&lanes[..shift.len()]).0;
        }
    }
    let (shift, first, second) =
        (S::as_simd_f64s(shift).0, S::as_mut_simd_f64s(first).0, S::as_mut_simd_f64s(second).0);
    for (i, ((&shift, first), second)) in shift.iter().zip(first).zip(second).enumerate() {
        let mut sums = [*first, *second];
        for &vectors in &vectors {
            sums = terms.add(simd, sums, at(vectors, i), shift);
        }
        [*first, *second] = sums;
    }
}

/// A block as vectors of `f64`, the last filled up with the padding.
#[inline(always)]
fn widened<'s, S: Simd, T: Number>(
    source: &[T],
    padding: f64,
    buffer: &'s mut [f64; BLOCK],
) -> &'s [S::f64s] {
    let padded = source.len().next_multiple_of(LANES);
    T::widen(source, &mut buffer[..source.len()]);
    buffer[source.len()..padded].fill(padding);
    S::as_simd_f64s(&buffer[..padded]).0
}

/// Vector `i` of every input.
#[inline(always)]
fn at<V: Copy, const N: usize>(vectors: [&[V]; N], i: usize) -> [V; N] {
    let mut values = [vectors[0][i]; N];
    for n in 1..N {
        values[n] = vectors[n][i];
    }
    values
}
