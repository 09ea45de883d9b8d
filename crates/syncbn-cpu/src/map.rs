//! One output element per element, with a few coefficients per channel: what `normalize` and `grad_input` have in common.
//!
//! The tensor's last pieces come first: the pass before this one has read them last, so that they may still be in the
//! cache.
//!
//! Deliberately not here: sums. No element depends on another, so the cuts between pieces leave no trace.

use syncbn_core::Geometry;

use crate::CpuError;
use crate::memory::filled;
use crate::number::{BLOCK, Block, Number, Real, STRIP, rest};
use crate::partition::{PIECE, by_planes, share};
use crate::vector::vector;

/// What is computed for every element from the inputs and the channel's coefficients.
pub(crate) trait Formula<const N: usize, const K: usize>: Sync {
    fn of<A: Real>(&self, inputs: [A; N], coefficients: [A; K]) -> A;
}

/// See [`rest`].
pub(crate) type Rest = fn(f64) -> f64;

/// The `K` coefficients of every channel, in the type in which elements are computed.
pub(crate) enum Coefficients<L, const K: usize> {
    /// The type of the lanes.
    Lanes(Table<L, K>),
    /// Where a coefficient exceeds what that can hold: 1 / std of numbers near the smallest.
    Wide(Table<f64, K>),
}

impl<L: Real, const K: usize> Coefficients<L, K> {
    /// Calls `of` once or twice per channel, in order, with what rounding takes away from a value.
    pub(crate) fn new(
        geometry: &Geometry,
        mut of: impl FnMut(usize, Rest) -> [f64; K],
    ) -> Result<Self, CpuError> {
        let mut exceeded = false;
        let table = Table::new(geometry, |channel, rest| {
            let values = of(channel, rest);
            exceeded |=
                values.iter().any(|&value| value.is_finite() && !L::nearest(value).into().is_finite());
            values
        })?;
        Ok(if exceeded { Self::Wide(Table::new(geometry, of)?) } else { Self::Lanes(table) })
    }
}

/// One vector per coefficient: where vectors run along planes, of every channel; where they run across channels, of every
/// element of a row, or of as many rows as fit into a block.
pub(crate) struct Table<A, const K: usize> {
    vectors: [Vec<A>; K],
    /// The elements after which the pattern moves on to the next channel, or starts again.
    period: usize,
}

impl<A: Real, const K: usize> Table<A, K> {
    fn new(geometry: &Geometry, mut of: impl FnMut(usize, Rest) -> [f64; K]) -> Result<Self, CpuError> {
        let (channels, inner) = (geometry.channels(), geometry.inner());
        let (copies, rows) =
            if by_planes(geometry) { (1, 1) } else { (inner, (BLOCK / (channels * inner).max(1)).max(1)) };
        let row = channels * copies;
        let mut vectors = [const { Vec::new() }; K];
        for vector in &mut vectors {
            *vector = filled(A::default(), row * rows, "coefficients")?;
        }
        for channel in 0..channels {
            let values = of(channel, rest::<A>);
            for (vector, value) in vectors.iter_mut().zip(values) {
                vector[channel * copies..(channel + 1) * copies].fill(A::nearest(value));
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

/// `output = formula(inputs, coefficients)`, element by element.
pub(crate) fn map<T: Number, const N: usize, const K: usize>(
    geometry: &Geometry,
    coefficients: &Coefficients<T::Lane, K>,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    formula: &impl Formula<N, K>,
) {
    match coefficients {
        Coefficients::Lanes(table) => map_in(geometry, table, inputs, output, formula),
        Coefficients::Wide(table) => map_in(geometry, table, inputs, output, formula),
    }
}

fn map_in<T: Number, A: Real, const N: usize, const K: usize>(
    geometry: &Geometry,
    table: &Table<A, K>,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    formula: &impl Formula<N, K>,
) where
    T::Lane: Into<A>,
{
    let output = &mut output[..geometry.len()];
    let planes = by_planes(geometry);
    let pieces = output.len().div_ceil(PIECE);
    share(pieces, output.chunks_mut(PIECE).enumerate().rev(), |(piece, output)| {
        let start = piece * PIECE;
        let period = table.period;
        let channel = if planes { start / period % geometry.channels() } else { 0 };
        let inputs = inputs.map(|input| match input {
            Input::Apart(memory) => Input::Apart(&memory[start..start + output.len()]),
            Input::Output => Input::Output,
        });
        let piece = Piece { table, planes, channel, within: start % period };
        vector(
            #[inline(always)]
            || piece.write(inputs, output, formula),
        );
    });
}

/// A piece of the output, and where in the pattern of coefficients the next element is.
struct Piece<'a, A, const K: usize> {
    table: &'a Table<A, K>,
    planes: bool,
    channel: usize,
    within: usize,
}

impl<A: Real, const K: usize> Piece<'_, A, K> {
    /// Block by block.
    #[inline(always)]
    fn write<T: Number, const N: usize>(
        mut self,
        inputs: [Input<'_, T>; N],
        output: &mut [T],
        formula: &impl Formula<N, K>,
    ) where
        T::Lane: Into<A>,
    {
        let mut buffers = [[T::Lane::default(); BLOCK]; N];
        let mut result = [T::Lane::default(); BLOCK];
        for (block, output) in output.chunks_mut(BLOCK).enumerate() {
            let lanes = decode(inputs, block * BLOCK, output, &mut buffers);
            T::encode(
                output,
                &mut result,
                #[inline(always)]
                |output| self.block(lanes, output, formula),
            );
        }
    }

    /// A block, in segments that end where a plane or row ends.
    #[inline(always)]
    fn block<L: Real + Into<A>, const N: usize>(
        &mut self,
        lanes: [&[L]; N],
        output: &mut [L],
        formula: &impl Formula<N, K>,
    ) {
        let Table { vectors, period } = self.table;
        let mut at = 0;
        while at < output.len() {
            let len = (period - self.within).min(output.len() - at);
            let (lanes, output) = (window(lanes, at, len), &mut output[at..at + len]);
            if self.planes {
                let mut coefficients = [A::default(); K];
                for (coefficient, vector) in coefficients.iter_mut().zip(vectors) {
                    *coefficient = vector[self.channel];
                }
                along(lanes, output, coefficients, formula);
            } else {
                let mut short: [&[A]; K] = [&[]; K];
                for (short, vector) in short.iter_mut().zip(vectors) {
                    *short = &vector[self.within..self.within + len];
                }
                across(lanes, output, short, formula);
            }
            self.within += len;
            if self.within == *period {
                self.within = 0;
                self.channel = if self.channel + 1 == vectors[0].len() { 0 } else { self.channel + 1 };
            }
            at += len;
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

/// So many lanes of every input.
#[inline(always)]
fn window<L, const N: usize>(mut lanes: [&[L]; N], start: usize, len: usize) -> [&[L]; N] {
    for lanes in &mut lanes {
        *lanes = &lanes[start..start + len];
    }
    lanes
}

/// A segment of one channel, in strips; the last may do again what the one before has done.
#[inline(always)]
fn along<L: Real + Into<A>, A: Real, const N: usize, const K: usize>(
    lanes: [&[L]; N],
    output: &mut [L],
    coefficients: [A; K],
    formula: &impl Formula<N, K>,
) {
    let len = output.len();
    let whole = len - len % STRIP;
    for start in (0..whole).step_by(STRIP) {
        each(window(lanes, start, STRIP), &mut output[start..start + STRIP], coefficients, formula);
    }
    if whole < len {
        let start = if len >= STRIP { len - STRIP } else { whole };
        each(window(lanes, start, len - start), &mut output[start..], coefficients, formula);
    }
}

#[inline(always)]
fn each<L: Real + Into<A>, A: Real, const N: usize, const K: usize>(
    lanes: [&[L]; N],
    output: &mut [L],
    coefficients: [A; K],
    formula: &impl Formula<N, K>,
) {
    let lanes = window(lanes, 0, output.len());
    for (i, output) in output.iter_mut().enumerate() {
        let value: A = formula.of(element(lanes, i), coefficients);
        *output = L::nearest(value.into());
    }
}

/// A segment of a row, whose lanes have coefficients of their own.
#[inline(always)]
fn across<L: Real + Into<A>, A: Real, const N: usize, const K: usize>(
    lanes: [&[L]; N],
    output: &mut [L],
    coefficients: [&[A]; K],
    formula: &impl Formula<N, K>,
) {
    let lanes = window(lanes, 0, output.len());
    let coefficients = window(coefficients, 0, output.len());
    for (i, output) in output.iter_mut().enumerate() {
        let mut own = [A::default(); K];
        for (own, vector) in own.iter_mut().zip(coefficients) {
            *own = vector[i];
        }
        let value: A = formula.of(element(lanes, i), own);
        *output = L::nearest(value.into());
    }
}

/// Element `i` of every vector.
#[inline(always)]
fn element<L: Real + Into<A>, A: Real, const N: usize>(vectors: [&[L]; N], i: usize) -> [A; N] {
    let mut elements = [A::default(); N];
    for (element, vector) in elements.iter_mut().zip(vectors) {
        *element = vector[i].into();
    }
    elements
}
