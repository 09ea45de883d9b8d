//! One output element per element, with a few coefficients per channel: what `normalize` and `grad_input` have in common.
//!
//! Deliberately not here: sums. No element depends on another, so the cuts between pieces leave no trace.

use std::array;

use syncbn_core::Geometry;

use crate::CpuError;
use crate::memory::filled;
use crate::number::{Number, STRIP, Strip, padded};
use crate::partition::{by_planes, for_each_piece, merged_rows};
use crate::prefetch;
use crate::vector::vector;

/// The `K` coefficients of every channel.
pub(crate) enum Coefficients<const K: usize> {
    /// Where vectors run along planes of `len` elements: of each channel.
    Planes { len: usize, channels: Vec<[f64; K]> },
    /// Where vectors run across channels: of each strip of `len` elements, a row or several, after which they start again.
    Rows { len: usize, strips: Vec<[Strip; K]> },
}

impl<const K: usize> Coefficients<K> {
    /// Calls `of` once per channel, in order.
    pub(crate) fn new(geometry: &Geometry, of: impl FnMut(usize) -> [f64; K]) -> Result<Self, CpuError> {
        const WHAT: &str = "coefficients";
        const ENOUGH: usize = 256;
        let (channels, inner) = (geometry.channels(), geometry.inner());
        let mut each = filled([0.0; K], channels, WHAT)?;
        let values = (0..channels).map(of);
        each.iter_mut().zip(values).for_each(|(each, values)| *each = values);
        if by_planes(geometry) {
            return Ok(Self::Planes { len: inner, channels: each });
        }
        let row = channels * inner;
        let len = row * merged_rows(row, ENOUGH);
        let mut strips = filled([[0.0; STRIP]; K], len.div_ceil(STRIP), WHAT)?;
        let lanes = each.iter().flat_map(|values| (0..inner).map(move |_| values)).cycle().take(len);
        for (lane, values) in lanes.enumerate() {
            for (strip, value) in strips[lane / STRIP].iter_mut().zip(values) {
                strip[lane % STRIP] = *value;
            }
        }
        Ok(Self::Rows { len, strips })
    }

    /// The elements after which others, or the same again, apply.
    fn period(&self) -> usize {
        match self {
            Self::Planes { len, .. } | Self::Rows { len, .. } => *len,
        }
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

impl<T> Input<'_, T> {
    fn cut(self, start: usize, len: usize) -> Self {
        match self {
            Self::Apart(memory) => Self::Apart(&memory[start..start + len]),
            Self::Output => Self::Output,
        }
    }
}

/// `output = of(inputs, coefficients)`, element by element.
pub(crate) fn map<T: Number, const N: usize, const K: usize>(
    geometry: &Geometry,
    coefficients: &Coefficients<K>,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    of: impl Fn([f64; N], [f64; K]) -> f64 + Sync,
) {
    let divisible = matches!(coefficients, Coefficients::Planes { .. });
    for_each_piece(coefficients.period(), divisible, &mut output[..geometry.len()], |start, output| {
        let inputs = inputs.map(|input| input.cut(start, output.len()));
        vector(
            #[inline(always)]
            || piece(geometry, coefficients, start, inputs, output, &of),
        );
    });
}

/// A piece that begins at the tensor's element `start`, in runs that end where a plane or row ends.
#[inline(always)]
fn piece<T: Number, const N: usize, const K: usize>(
    geometry: &Geometry,
    coefficients: &Coefficients<K>,
    start: usize,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let period = coefficients.period();
    let mut channel = start / geometry.inner() % geometry.channels();
    let (mut at, mut within) = (0, start % period);
    while at < output.len() {
        let len = (period - within).min(output.len() - at);
        let inputs = inputs.map(|input| input.cut(at, len));
        let output = &mut output[at..at + len];
        match coefficients {
            Coefficients::Planes { channels, .. } => {
                plane(inputs, output, channels[channel].map(|value| [value; STRIP]), of);
            }
            Coefficients::Rows { strips, .. } => {
                // Rows are not divided: this is one's beginning.
                run(inputs, output, |i| strips[i], of);
            }
        }
        at += len;
        within = 0;
        channel = if channel + 1 == geometry.channels() { 0 } else { channel + 1 };
    }
}

/// Neighbours with the same coefficients. What does not fill a strip is computed with some of the elements before it.
#[inline(always)]
fn plane<T: Number, const N: usize, const K: usize>(
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    coefficients: [Strip; K],
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let rest = output.len() % STRIP;
    let Some(last) = output.last_chunk::<STRIP>().filter(|_| rest > 0) else {
        return run(inputs, output, |_| coefficients, of);
    };
    // Before anything is written: an input may lie in the output's memory.
    let values = inputs.map(|input| match input {
        Input::Apart(memory) => T::widen(memory.last_chunk().unwrap_or(last)),
        Input::Output => T::widen(last),
    });
    let whole = output.len() - rest;
    run(inputs.map(|input| input.cut(0, whole)), &mut output[..whole], |_| coefficients, of);
    if let Some(last) = output.last_chunk_mut() {
        *last = T::narrow(each(values, coefficients, of));
    }
}

/// Neighbours, in strips that have coefficients of their own.
#[inline(always)]
fn run<T: Number, const N: usize, const K: usize>(
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    coefficients: impl Fn(usize) -> [Strip; K],
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) {
    let distance = prefetch::elements::<T>();
    let (strips, rest) = output.as_chunks_mut::<STRIP>();
    let whole = strips.len();
    let sources = inputs.map(|input| match input {
        Input::Apart(memory) => Some(&memory.as_chunks::<STRIP>().0[..whole]),
        Input::Output => None,
    });
    for (i, output) in strips.iter_mut().enumerate() {
        prefetch::ahead(output, distance);
        let values = sources.map(|source| {
            let strip = source.map_or(&*output, |strips| &strips[i]);
            prefetch::ahead(strip, distance);
            T::widen(strip)
        });
        *output = T::narrow(each(values, coefficients(i), of));
    }
    if !rest.is_empty() {
        let values = inputs.map(|input| match input.cut(whole * STRIP, rest.len()) {
            Input::Apart(memory) => T::widen(&padded(memory)),
            Input::Output => T::widen(&padded(rest)),
        });
        let results = T::narrow(each(values, coefficients(whole), of));
        rest.iter_mut().zip(results).for_each(|(output, result)| *output = result);
    }
}

#[inline(always)]
fn each<const N: usize, const K: usize>(
    values: [Strip; N],
    coefficients: [Strip; K],
    of: &impl Fn([f64; N], [f64; K]) -> f64,
) -> Strip {
    let mut results = [0.0; STRIP];
    for (i, result) in results.iter_mut().enumerate() {
        *result = of(array::from_fn(|n| values[n][i]), array::from_fn(|k| coefficients[k][i]));
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes with rows and planes of every kind: whole strips or not, short, long, merged, cut.
    const SHAPES: [[usize; 3]; 16] = [
        [1, 1, 1],
        [5, 3, 1],
        [1, 3, 2],
        [200, 5, 1],
        [9, 64, 1],
        [7, 513, 1],
        [3, 2100, 1],
        [2, 70_001, 1],
        [2, 3000, 31],
        [4, 5, 31],
        [3, 4, 32],
        [2, 3, 49],
        [5, 7, 196],
        [2, 2, 70_001],
        [1, 1, 131_075],
        [0, 3, 4],
    ];

    #[test]
    fn every_element_meets_its_channel_s_coefficients() {
        for shape in SHAPES {
            let geometry = Geometry::channels_first(&shape).unwrap();
            let channel = |i: usize| (i / geometry.inner() % geometry.channels()) as f64;
            let coefficients =
                Coefficients::new(&geometry, |channel| [channel as f64, 2.0 * channel as f64]).unwrap();
            let x: Vec<f64> = (0..geometry.len()).map(|i| i as f64).collect();
            let dy: Vec<f64> = x.iter().map(|x| x * 0.5).collect();
            let of = |[x, dy]: [f64; 2], [a, b]: [f64; 2]| x + 4.0 * dy + a + b;
            let expected: Vec<f64> = (0..geometry.len()).map(|i| i as f64 * 3.0 + 3.0 * channel(i)).collect();

            let mut apart = vec![f64::NAN; geometry.len() + 1];
            map(&geometry, &coefficients, [Input::Apart(&x), Input::Apart(&dy)], &mut apart, of);
            assert_eq!(apart[..geometry.len()], expected, "{shape:?}");
            assert!(apart[geometry.len()].is_nan(), "{shape:?}");

            let mut in_place = dy.clone();
            map(&geometry, &coefficients, [Input::Apart(&x), Input::Output], &mut in_place, of);
            assert_eq!(in_place, expected, "{shape:?}");
        }
    }
}
