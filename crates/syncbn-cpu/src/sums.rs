//! Two sums per channel, in `f64`: what `moments` and `grad_sums` have in common.
//!
//! Deliberately not here: which terms are added, and how the sums of tiles are put together.

use std::array;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::number::{BLOCK, Number, Real};
use crate::partition::{Bands, Cut, Runs, share};

/// The vectors of sums along a plane that do not wait for each other.
const CHAINS: usize = 4;

/// The rows that are added at a time.
const ROWS: usize = 4;

/// The most columns of a band: `ROWS` rows of two inputs fit the first-level cache.
pub(crate) const COLUMNS: usize = 512;

/// The most lanes that a vector of `f64` has.
const LANES: usize = 8;

/// What is added: two terms per element of `N` tensors.
pub(crate) trait Terms<const N: usize>: Sync {
    /// What the terms of a tile's elements of a channel may be shifted by; `first` is the first tensor's first of them.
    fn shift(&self, channel: usize, first: f64) -> f64;
    /// Values whose terms are 0.
    fn padding(&self, shift: f64) -> [f64; N];
    /// The terms of one element.
    fn of(&self, values: [f64; N], shift: f64) -> [f64; 2];
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
    fn with_simd<S: Simd>(self, _: S) {
        let Self { bands, split, column, inputs, results, terms } = self;
        let (stride, rows) = (bands.columns, bands.band(split));
        let (mut shift, mut first, mut second) = ([0.0; COLUMNS], [0.0; COLUMNS], [0.0; COLUMNS]);
        for (i, shift) in shift[..results.len()].iter_mut().enumerate() {
            let first = inputs[0][rows.start * stride + column + i];
            *shift = terms.shift(bands.channel(column + i), first.to_f64());
        }
        let mut buffers = [[[T::Lane::default(); COLUMNS]; N]; ROWS];
        let mut row = rows.start;
        while row < rows.end {
            // Memory is read in order; the rows are then side by side in the cache.
            let some = if row + ROWS <= rows.end { ROWS } else { 1 };
            for (row, buffers) in (row..).zip(&mut buffers[..some]) {
                let start = row * stride + column;
                for (input, buffer) in inputs.iter().zip(buffers) {
                    T::copy_out(&input[start..start + results.len()], buffer);
                }
            }
            let (shift, first, second) =
                (&shift[..results.len()], &mut first[..results.len()], &mut second[..results.len()]);
            if some == ROWS {
                add_rows(&buffers, shift, first, second, terms);
            } else {
                add_rows(array::from_ref(&buffers[0]), shift, first, second, terms);
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
fn add_rows<L: Real, const N: usize, const R: usize>(
    rows: &[[[L; COLUMNS]; N]; R],
    shift: &[f64],
    first: &mut [f64],
    second: &mut [f64],
    terms: &impl Terms<N>,
) {
    let columns = shift.len().min(COLUMNS);
    let (shift, first, second) = (&shift[..columns], &mut first[..columns], &mut second[..columns]);
    for i in 0..columns {
        let mut sums = [first[i], second[i]];
        for row in rows {
            let mut values = [0.0; N];
            for (value, lanes) in values.iter_mut().zip(row) {
                *value = lanes[i].into();
            }
            let more = terms.of(values, shift[i]);
            sums = [sums[0] + more[0], sums[1] + more[1]];
        }
        [first[i], second[i]] = sums;
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
