//! One output element per element, with a few coefficients per channel: what `normalize` and `grad_input` have in common.
//!
//! Deliberately not here: sums. No element depends on another, so the cuts between pieces leave no trace.

use std::array;

use syncbn_core::Geometry;

use crate::CpuError;
use crate::memory::filled;
use crate::number::{BLOCK, Block, Lane, Number};
use crate::partition::{by_planes, for_each_piece};

/// The `K` coefficients of every lane: of every channel where vectors run along planes, of every element of a row where
/// they run across channels. One vector per coefficient.
pub(crate) struct Coefficients<const K: usize>([Vec<f64>; K]);

impl<const K: usize> Coefficients<K> {
    /// Calls `of` once per channel, in order.
    pub(crate) fn new(geometry: &Geometry, mut of: impl FnMut(usize) -> [f64; K]) -> Result<Self, CpuError> {
        let copies = if by_planes(geometry) { 1 } else { geometry.inner() };
        let mut vectors = [const { Vec::new() }; K];
        for vector in &mut vectors {
            *vector = filled(0.0, geometry.channels() * copies, "coefficients")?;
        }
        for channel in 0..geometry.channels() {
            let values = of(channel);
            for (vector, value) in vectors.iter_mut().zip(values) {
                vector[channel * copies..(channel + 1) * copies].fill(value);
            }
        }
        Ok(Self(vectors))
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
    for_each_piece(geometry, &mut output[..geometry.len()], |start, output| {
        let inputs = inputs.map(|input| match input {
            Input::Apart(memory) => Input::Apart(&memory[start..start + output.len()]),
            Input::Output => Input::Output,
        });
        piece(geometry, coefficients, start, inputs, output, &of);
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
    let (channels, inner) = (geometry.channels(), geometry.inner());
    let whole = if planes { inner } else { channels * inner };
    let mut buffers = [[T::Lane::default(); BLOCK]; N];
    let mut result = [T::Lane::default(); BLOCK];
    let (mut at, mut within, mut channel) = (0, start % whole, start / inner % channels);
    while at < output.len() {
        let len = BLOCK.min(whole - within).min(output.len() - at);
        let output = &mut output[at..at + len];
        let lanes = decode(inputs, at, output, &mut buffers);
        T::encode(output, &mut result, |output| {
            if planes {
                let coefficients = array::from_fn(|k| coefficients.0[k][channel]);
                block(lanes, output, |_| coefficients, of);
            } else {
                let coefficients: [&[f64]; K] = array::from_fn(|k| &coefficients.0[k][within..within + len]);
                block(lanes, output, |i| array::from_fn(|k| coefficients[k][i]), of);
            }
        });
        at += len;
        within += len;
        if within == whole {
            within = 0;
            channel = if channel + 1 == channels { 0 } else { channel + 1 };
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
    let mut buffers = buffers.iter_mut();
    inputs.map(|input| match (input, buffers.next()) {
        (Input::Apart(memory), Some(buffer)) => T::decode(&memory[at..at + output.len()], buffer),
        (Input::Output, Some(buffer)) => T::copy_out(output, buffer),
        (_, None) => &[],
    })
}

#[inline(always)]
fn block<L: Lane, const N: usize, const K: usize>(
    lanes: [&[L]; N],
    output: &mut [L],
    coefficients: impl Fn(usize) -> [f64; K],
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let lanes = lanes.map(|lanes| &lanes[..output.len()]);
    for (i, output) in output.iter_mut().enumerate() {
        *output = L::narrow(of(array::from_fn(|n| lanes[n][i].widen()), coefficients(i)));
    }
}
