//! One output element per element, with a few coefficients per channel: what `normalize` and `grad_input` have in common.
//!
//! Deliberately not here: sums. No element depends on another, so the cuts between pieces leave no trace.

use std::array;

use syncbn_core::Geometry;

use crate::CpuError;
use crate::memory::filled;
use crate::number::{BLOCK, Block, Lane, Number};
use crate::partition::{by_planes, for_each_piece};
use crate::vector::vector;

/// Neighbours that a loop of fixed length takes: the compiler makes it of whole vectors, and does not what a longer loop's
/// vectors leave over one by one, which took half the time of planes of 196.
const SEGMENT: usize = 32;

/// The `K` coefficients of every lane, one vector per coefficient: where vectors run along planes, of every channel; where
/// they run across channels, of every element of a row, or of as many rows as fit into a block.
pub(crate) struct Coefficients<const K: usize> {
    vectors: [Vec<f64>; K],
    /// The elements after which the pattern moves on to the next channel, or starts again.
    period: usize,
}

impl<const K: usize> Coefficients<K> {
    /// Calls `of` once per channel, in order.
    pub(crate) fn new(geometry: &Geometry, mut of: impl FnMut(usize) -> [f64; K]) -> Result<Self, CpuError> {
        let (channels, inner) = (geometry.channels(), geometry.inner());
        let (copies, rows) =
            if by_planes(geometry) { (1, 1) } else { (inner, (BLOCK / (channels * inner)).max(1)) };
        let row = channels * copies;
        let mut vectors = [const { Vec::new() }; K];
        for vector in &mut vectors {
            *vector = filled(0.0, row * rows, "coefficients")?;
        }
        for channel in 0..channels {
            let values = of(channel);
            for (vector, value) in vectors.iter_mut().zip(values) {
                vector[channel * copies..(channel + 1) * copies].fill(value);
            }
        }
        for vector in &mut vectors {
            (1..rows).for_each(|copy| vector.copy_within(..row, copy * row));
        }
        Ok(Self { vectors, period: if by_planes(geometry) { inner } else { row * rows } })
    }
}

/// Where an input lies.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a, T> {
    /// In memory of its own.
    Apart(&'a [T]),
    /// In the output's memory, to be overwritten.
    Output,
}

/// `output = of(inputs, coefficients)`, element by element.
pub(crate) fn map<T: Number, const N: usize, const K: usize>(
    geometry: &Geometry,
    coefficients: &Coefficients<K>,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    of: impl Fn([f64; N], [f64; K]) -> f64 + Sync,
) {
    for_each_piece(coefficients.period, &mut output[..geometry.len()], |start, output| {
        let inputs = inputs.map(|input| match input {
            Input::Apart(memory) => Input::Apart(&memory[start..start + output.len()]),
            Input::Output => Input::Output,
        });
        vector(
            #[inline(always)]
            || piece(geometry, coefficients, start, inputs, output, &of),
        );
    });
}

/// A piece that begins at the tensor's element `start`, in blocks that end where a plane or row ends.
#[inline(always)]
fn piece<T: Number, const N: usize, const K: usize>(
    geometry: &Geometry,
    coefficients: &Coefficients<K>,
    start: usize,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let planes = by_planes(geometry);
    let period = coefficients.period;
    let mut buffers = [[T::Lane::default(); BLOCK]; N];
    let mut result = [T::Lane::default(); BLOCK];
    let (mut at, mut within) = (0, start % period);
    let mut channel = start / geometry.inner() % geometry.channels();
    while at < output.len() {
        let len = BLOCK.min(period - within).min(output.len() - at);
        let output = &mut output[at..at + len];
        let lanes = decode(inputs, at, output, &mut buffers);
        T::encode(
            output,
            &mut result,
            #[inline(always)]
            |output| {
                if planes {
                    along(lanes, output, coefficients, channel, of);
                } else {
                    across(lanes, output, coefficients, within, of);
                }
            },
        );
        at += len;
        within += len;
        if within == period {
            within = 0;
            channel = if channel + 1 == geometry.channels() { 0 } else { channel + 1 };
        }
    }
}

/// The same block of every input, as lanes.
#[inline(always)]
fn decode<'s, T: Number, const N: usize>(
    inputs: [Input<'s, T>; N],
    at: usize,
    output: &[T],
    buffers: &'s mut [Block<T::Lane>; N],
) -> [&'s [T::Lane]; N] {
    let mut lanes: [&[T::Lane]; N] = [&[]; N];
    for ((lanes, input), buffer) in lanes.iter_mut().zip(inputs).zip(buffers) {
        *lanes = match input {
            Input::Apart(memory) => T::decode(&memory[at..at + output.len()], buffer),
            Input::Output => T::copy_out(output, buffer),
        };
    }
    lanes
}

/// A block of one channel.
#[inline(always)]
fn along<L: Lane, const N: usize, const K: usize>(
    mut lanes: [&[L]; N],
    output: &mut [L],
    coefficients: &Coefficients<K>,
    channel: usize,
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let len = output.len();
    for lanes in &mut lanes {
        *lanes = &lanes[..len];
    }
    let coefficients: [f64; K] = array::from_fn(|k| coefficients.vectors[k][channel]);
    let mut segment = |start: usize, length: usize| {
        let lanes = lanes.map(|lanes| &lanes[start..start + length]);
        for (i, output) in output[start..start + length].iter_mut().enumerate() {
            *output = L::narrow(of(array::from_fn(|n| lanes[n][i].widen()), coefficients));
        }
    };
    if len < SEGMENT {
        return segment(0, len);
    }
    for start in (0..len).step_by(SEGMENT) {
        // The last one ends with the block: a few elements are computed twice, none alone.
        segment(start.min(len - SEGMENT), SEGMENT);
    }
}

/// A block of a row, whose lanes have coefficients of their own.
#[inline(always)]
fn across<L: Lane, const N: usize, const K: usize>(
    mut lanes: [&[L]; N],
    output: &mut [L],
    coefficients: &Coefficients<K>,
    within: usize,
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let len = output.len();
    for lanes in &mut lanes {
        *lanes = &lanes[..len];
    }
    let mut vectors: [&[f64]; K] = [&[]; K];
    for (short, vector) in vectors.iter_mut().zip(&coefficients.vectors) {
        *short = &vector[within..within + len];
    }
    for i in 0..len {
        let coefficients = array::from_fn(|k| vectors[k][i]);
        output[i] = L::narrow(of(array::from_fn(|n| lanes[n][i].widen()), coefficients));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn period_and_vector(shape: [usize; 3]) -> (usize, Vec<f64>) {
        let geometry = Geometry::channels_first(&shape).unwrap();
        let Coefficients { vectors: [vector], period } =
            Coefficients::new(&geometry, |channel| [channel as f64]).unwrap();
        (period, vector)
    }

    #[test]
    fn a_plane_has_one_coefficient_however_long_it_is() {
        for inner in [32, 49, 5000] {
            assert_eq!(period_and_vector([2, 3, inner]), (inner, vec![0.0, 1.0, 2.0]));
        }
    }

    #[test]
    fn short_rows_are_repeated_to_fill_a_block_and_long_ones_are_not() {
        for (channels, inner) in [(1, 1), (3, 1), (5, 31), (BLOCK, 1), (700, 1), (2100, 3)] {
            let (period, vector) = period_and_vector([2, channels, inner]);
            let row = channels * inner;
            assert_eq!(period, row * (BLOCK / row).max(1));
            assert!(vector.iter().copied().eq((0..period).map(|i| (i / inner % channels) as f64)));
        }
    }
}
