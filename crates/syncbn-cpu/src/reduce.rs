//! Two sums per channel over the elements of one tile, in `f64`: what `moments` and `grad_sums` have in common.
//!
//! Deliberately not here: how tiles' sums are put together.

use std::array;

use syncbn_core::Geometry;

use crate::number::{BLOCK, Block, Lane, Number};
use crate::partition::{Tile, by_planes};

/// The independent chains of sums along a plane.
const CHAINS: usize = 32;

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
    if by_planes(geometry) {
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
            let mut chains = [[0.0; CHAINS]; 2];
            while start < end {
                let len = BLOCK.min(end - start);
                let lanes = decode(inputs, start, len, &mut buffers);
                along(lanes, len, shift, &mut chains, &term);
                start += len;
            }
            for (sum, chain) in sums.iter_mut().zip(chains) {
                *sum += total(chain);
            }
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
    let mut buffers = [[T::Lane::default(); BLOCK]; N];
    let mut shift = [0.0; BLOCK];
    for (channel, lanes) in tile.channels.clone().zip(shift.chunks_mut(inner)) {
        lanes.fill(shifts(channel));
    }
    let [mut first, mut second] = [[0.0; BLOCK]; 2];
    for outer in tile.outer.clone() {
        let start = (outer * geometry.channels() + tile.channels.start) * inner;
        let lanes = decode(inputs, start, len, &mut buffers);
        across(lanes, &shift[..len], &mut first[..len], &mut second[..len], &term);
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
    let mut buffers = buffers.iter_mut();
    inputs.map(|input| match buffers.next() {
        Some(buffer) => T::decode(&input[start..start + len], buffer),
        None => &[],
    })
}

/// Along one channel: element i belongs to chain i modulo [`CHAINS`].
#[inline(always)]
fn along<L: Lane, const N: usize>(
    lanes: [&[L]; N],
    len: usize,
    shift: f64,
    chains: &mut [[f64; CHAINS]; 2],
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) {
    let [first, second] = chains;
    let mut start = 0;
    while start < len {
        let count = CHAINS.min(len - start);
        let block = lanes.map(|lanes| &lanes[start..start + count]);
        for i in 0..count {
            let [a, b] = term(array::from_fn(|n| block[n][i].widen()), shift);
            first[i] += a;
            second[i] += b;
        }
        start += count;
    }
}

/// Across channels: every lane has sums and a shift of its own.
#[inline(always)]
fn across<L: Lane, const N: usize>(
    lanes: [&[L]; N],
    shift: &[f64],
    first: &mut [f64],
    second: &mut [f64],
    term: &impl Fn([f64; N], f64) -> [f64; 2],
) {
    let len = shift.len();
    let lanes = lanes.map(|lanes| &lanes[..len]);
    let (first, second) = (&mut first[..len], &mut second[..len]);
    for i in 0..len {
        let [a, b] = term(array::from_fn(|n| lanes[n][i].widen()), shift[i]);
        first[i] += a;
        second[i] += b;
    }
}

/// The sum of the chains, in halves: the order in which vectors add up.
#[inline(always)]
fn total(mut chain: [f64; CHAINS]) -> f64 {
    let mut half = CHAINS / 2;
    while half > 0 {
        for i in 0..half {
            chain[i] += chain[i + half];
        }
        half /= 2;
    }
    chain[0]
}
