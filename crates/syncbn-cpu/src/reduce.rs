//! Two sums per channel over the elements of one tile, in `f64`: what `moments` and `grad_sums` have in common.
//!
//! Deliberately not here: how tiles' sums are put together.

use std::array;

use syncbn_core::Geometry;

use crate::number::{BLOCK, Block, Lane, Number, STRIP};
use crate::partition::Tile;

/// The independent strips of sums along a plane: enough to hide how long an addition takes.
const CHAINS: usize = 4;

/// From this many neighbours on, sums run along planes. A sum has to be drawn together at the end of each plane, so that
/// short ones are cheaper to add across channels.
const PLANE: usize = BLOCK / 4;

/// The rows of a single input that are added at a time, sharing one look at the sums. Of two inputs it is one row: the processor
/// fetches ahead of a few sequences of memory, and eight were too many (a third slower from 128 channels on).
const ROWS: usize = 4;

/// Adds, for every element of the tile, the two numbers that `term` makes of the inputs' elements and the channel's
/// `shift`, to the channel's sums. `shifts` and `sums` have one entry per channel of the tile.
#[inline(always)]
pub(crate) fn tile<T: Number, const N: usize>(
    geometry: &Geometry,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    term: impl Fn([f64; N], f64) -> [f64; 2],
) {
    if geometry.inner() >= PLANE {
        planes(geometry, tile, inputs, shifts, sums, term);
    } else {
        rows(geometry, tile, inputs, shifts, sums, term);
    }
}

#[inline(always)]
fn planes<T: Number, const N: usize>(
    geometry: &Geometry,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    term: impl Fn([f64; N], f64) -> [f64; 2],
) {
    let mut buffers = [[T::Lane::default(); BLOCK]; N];
    for outer in tile.outer.clone() {
        for (channel, sums) in tile.channels.clone().zip(&mut *sums) {
            let shift = shifts(channel);
            let plane = (outer * geometry.channels() + channel) * geometry.inner();
            let (mut start, end) = (plane + tile.inner.start, plane + tile.inner.end);
            let mut totals = [0.0; 2];
            while start < end {
                let len = BLOCK.min(end - start);
                let lanes = decode(inputs, start, len, &mut buffers);
                let [first, second] = along(lanes, len, shift, &term);
                totals = [totals[0] + first, totals[1] + second];
                start += len;
            }
            *sums = [sums[0] + totals[0], sums[1] + totals[1]];
        }
    }
}

#[inline(always)]
fn rows<T: Number, const N: usize>(
    geometry: &Geometry,
    tile: &Tile,
    inputs: [&[T]; N],
    shifts: impl Fn(usize) -> f64,
    sums: &mut [[f64; 2]],
    term: impl Fn([f64; N], f64) -> [f64; 2],
) {
    let inner = geometry.inner();
    let len = tile.channels.len() * inner;
    let mut buffers = [[[T::Lane::default(); BLOCK]; N]; ROWS];
    let mut shift = [0.0; BLOCK];
    for (channel, lanes) in tile.channels.clone().zip(shift.chunks_mut(inner)) {
        lanes.fill(shifts(channel));
    }
    let [mut first, mut second] = [[0.0; BLOCK]; 2];
    let at = |outer: usize| (outer * geometry.channels() + tile.channels.start) * inner;
    let mut outer = tile.outer.start;
    while outer < tile.outer.end {
        let (shift, first, second) = (&shift[..len], &mut first[..len], &mut second[..len]);
        if N == 1 && outer + ROWS <= tile.outer.end {
            let lanes =
                decode_rows(inputs, array::from_fn::<_, ROWS, _>(|row| at(outer + row)), len, &mut buffers);
            across(lanes, shift, first, second, &term);
            outer += ROWS;
        } else {
            let lanes = decode_rows(inputs, [at(outer)], len, &mut buffers);
            across(lanes, shift, first, second, &term);
            outer += 1;
        }
    }
    for ((sums, first), second) in sums.iter_mut().zip(first.chunks(inner)).zip(second.chunks(inner)) {
        *sums = [first.iter().sum(), second.iter().sum()];
    }
}

/// The same block of every input, as lanes.
#[inline(always)]
fn decode<'s, T: Number, const N: usize>(
    inputs: [&'s [T]; N],
    start: usize,
    len: usize,
    buffers: &'s mut [Block<T::Lane>; N],
) -> [&'s [T::Lane]; N] {
    let mut lanes: [&[T::Lane]; N] = [&[]; N];
    for ((lanes, input), buffer) in lanes.iter_mut().zip(inputs).zip(buffers) {
        *lanes = T::decode(&input[start..start + len], buffer);
    }
    lanes
}

/// Along one channel: of whole blocks of chains, then of whole strips, element i belongs to chain i modulo their length.
#[inline(always)]
fn along<L: Lane, const N: usize>(
    lanes: [&[L]; N],
    len: usize,
    shift: f64,
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) -> [f64; 2] {
    let mut sums = [[[0.0; STRIP]; 2]; CHAINS];
    let mut start = 0;
    while start + CHAINS * STRIP <= len {
        for (chain, sums) in sums.iter_mut().enumerate() {
            *sums = strip(lanes, start + chain * STRIP, shift, *sums, term);
        }
        start += CHAINS * STRIP;
    }
    let mut sum = sums.into_iter().fold([[0.0; STRIP]; 2], add);
    while start + STRIP <= len {
        sum = strip(lanes, start, shift, sum, term);
        start += STRIP;
    }
    let sum = sum.map(|strip| strip.iter().sum::<f64>());
    (start..len).fold(sum, |sum, i| {
        let [a, b] = term(array::from_fn(|n| lanes[n][i].widen()), shift);
        [sum[0] + a, sum[1] + b]
    })
}

/// Adds the terms of a strip: a length that the compiler knows, so that the sums stay in a register.
#[inline(always)]
fn strip<L: Lane, const N: usize>(
    lanes: [&[L]; N],
    start: usize,
    shift: f64,
    sums: [[f64; STRIP]; 2],
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) -> [[f64; STRIP]; 2] {
    let mut values = [[0.0; N]; STRIP];
    for (n, lanes) in lanes.iter().enumerate() {
        for (values, lane) in values.iter_mut().zip(&lanes[start..start + STRIP]) {
            values[n] = lane.widen();
        }
    }
    let terms = values.map(|values| term(values, shift));
    add(sums, [terms.map(|[a, _]| a), terms.map(|[_, b]| b)])
}

#[inline(always)]
fn add(a: [[f64; STRIP]; 2], b: [[f64; STRIP]; 2]) -> [[f64; STRIP]; 2] {
    array::from_fn(|k| array::from_fn(|i| a[k][i] + b[k][i]))
}

/// The same lanes of every input in several rows.
#[inline(always)]
fn decode_rows<'s, T: Number, const N: usize, const R: usize>(
    inputs: [&'s [T]; N],
    starts: [usize; R],
    len: usize,
    buffers: &'s mut [[Block<T::Lane>; N]; ROWS],
) -> [[&'s [T::Lane]; N]; R] {
    let mut rows: [[&[T::Lane]; N]; R] = [[&[]; N]; R];
    for ((row, start), buffers) in rows.iter_mut().zip(starts).zip(buffers) {
        *row = decode(inputs, start, len, buffers);
    }
    rows
}

/// Across channels: every lane has sums and a shift of its own, which several rows share one look at.
#[inline(always)]
fn across<L: Lane, const N: usize, const R: usize>(
    mut rows: [[&[L]; N]; R],
    shift: &[f64],
    first: &mut [f64],
    second: &mut [f64],
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) {
    let len = shift.len();
    for lanes in rows.iter_mut().flatten() {
        *lanes = &lanes[..len];
    }
    let (first, second) = (&mut first[..len], &mut second[..len]);
    for i in 0..len {
        let mut sums = [first[i], second[i]];
        for lanes in &rows {
            let [a, b] = term(array::from_fn(|n| lanes[n][i].widen()), shift[i]);
            sums = [sums[0] + a, sums[1] + b];
        }
        [first[i], second[i]] = sums;
    }
}
