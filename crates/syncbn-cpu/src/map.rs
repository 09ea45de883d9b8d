//! One output element per element, with a few coefficients per channel: what `normalize` and `grad_input` have in common.
//!
//! No element depends on another, so the results do not depend on where the tensor is cut.

use std::iter;

use crate::error::CpuError;
use crate::memory::filled;
use crate::number::{Number, padded};
use crate::plan::{Dims, for_each_piece, merged_rows};
use crate::prefetch;
use crate::vector::{STRIP, Strip, Vector, Work, vectors, with_vectors};

/// The `K` coefficients of every channel.
pub(crate) enum Coefficients<const K: usize> {
    /// For vectors along planes of `len` elements: those of each channel.
    Planes { len: usize, channels: Vec<[f64; K]> },
    /// For vectors across channels: those of every strip of one row, or of several rows; they repeat after `len` elements.
    Rows { len: usize, strips: Vec<[Strip; K]> },
}

impl<const K: usize> Coefficients<K> {
    /// Calls `of` once per channel, in order.
    pub(crate) fn new(dims: Dims, of: impl FnMut(usize) -> [f64; K]) -> Result<Self, CpuError> {
        const WHAT: &str = "coefficients";
        const ENOUGH: usize = 256;
        let Dims { channels, inner, .. } = dims;
        let mut each = filled([0.0; K], channels, WHAT)?;
        let values = (0..channels).map(of);
        each.iter_mut().zip(values).for_each(|(each, values)| *each = values);
        if dims.by_planes() {
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

    /// The length of a plane, or of the rows after which the coefficients repeat.
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

/// One output element.
pub(crate) trait Formula<const N: usize, const K: usize>: Copy + Sync {
    fn of<V: Vector>(self, inputs: [V; N], coefficients: [V; K]) -> V;
}

/// `output = formula(inputs, coefficients)`, element by element.
pub(crate) fn map<T: Number, const N: usize, const K: usize>(
    dims: Dims,
    coefficients: &Coefficients<K>,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    formula: impl Formula<N, K>,
) -> Result<(), CpuError> {
    let divisible = matches!(coefficients, Coefficients::Planes { .. });
    for_each_piece(coefficients.period(), divisible, &mut output[..dims.len()], |start, output| {
        let each = iter::once(Run { inputs_at: start, begin: start, output });
        with_vectors(Runs { coefficients, inputs, each, formula });
    })
}

/// Neighbours that are written.
pub(crate) struct Run<'a, T> {
    /// The offset at which their inputs begin.
    pub(crate) inputs_at: usize,
    /// The elements between the beginning of the first channel that there are coefficients of, and the run's.
    pub(crate) begin: usize,
    pub(crate) output: &'a mut [T],
}

/// All runs of a piece of work.
pub(crate) struct Runs<'a, T, const N: usize, const K: usize, R, F> {
    pub(crate) coefficients: &'a Coefficients<K>,
    pub(crate) inputs: [Input<'a, T>; N],
    pub(crate) each: R,
    pub(crate) formula: F,
}

impl<'a, T, const N: usize, const K: usize, R, F> Work for Runs<'a, T, N, K, R, F>
where
    T: Number,
    R: Iterator<Item = Run<'a, T>>,
    F: Formula<N, K>,
{
    #[inline(always)]
    fn run<V: Vector>(self, set: V::Set) {
        let Self { coefficients, inputs, each, formula } = self;
        for Run { inputs_at, begin, output } in each {
            let inputs = inputs.map(|input| input.cut(inputs_at, output.len()));
            let piece = Piece { begin, inputs, output, formula };
            match coefficients {
                Coefficients::Planes { len, channels } => piece.planes::<V, K>(set, *len, channels),
                Coefficients::Rows { len, strips } => piece.rows::<V, K>(set, *len, strips),
            }
        }
    }
}

/// One run.
struct Piece<'a, T, const N: usize, F> {
    begin: usize,
    inputs: [Input<'a, T>; N],
    output: &'a mut [T],
    formula: F,
}

impl<T: Number, const N: usize, F> Piece<'_, T, N, F> {
    /// The first plane may have begun in the piece before, the last may end in the next.
    #[inline(always)]
    fn planes<V: Vector, const K: usize>(self, set: V::Set, len: usize, channels: &[[f64; K]])
    where
        F: Formula<N, K>,
    {
        let Self { begin, inputs, output, formula } = self;
        let (mut at, mut within, mut channel) = (0, begin % len, begin / len % channels.len());
        while at < output.len() {
            let end = output.len().min(at + len - within);
            let inputs = inputs.map(|input| input.cut(at, end - at));
            let coefficients = vectors(set, channels[channel], V::splat);
            plane(set, inputs, &mut output[at..end], coefficients, formula);
            (at, within) = (end, 0);
            channel = if channel + 1 == channels.len() { 0 } else { channel + 1 };
        }
    }

    /// No piece begins within a row.
    #[inline(always)]
    fn rows<V: Vector, const K: usize>(self, set: V::Set, len: usize, strips: &[[Strip; K]])
    where
        F: Formula<N, K>,
    {
        let Self { begin: _, inputs, output, formula } = self;
        for (i, output) in output.chunks_mut(len).enumerate() {
            let inputs = inputs.map(|input| input.cut(i * len, output.len()));
            run(
                set,
                inputs,
                output,
                #[inline(always)]
                |i| vectors(set, strips[i].each_ref(), V::from_f64),
                formula,
            );
        }
    }
}

/// Neighbours with the same coefficients. The last strip overlaps the one before it if the plane is not a whole number of strips.
#[inline(always)]
fn plane<T: Number, V: Vector, const N: usize, const K: usize>(
    set: V::Set,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    coefficients: [V; K],
    formula: impl Formula<N, K>,
) {
    let rest = output.len() % STRIP;
    let Some(last) = output.last_chunk::<STRIP>().filter(|_| rest > 0) else {
        return run(set, inputs, output, |_| coefficients, formula);
    };
    // Before anything is written: an input may lie in the output's memory.
    let strips = inputs.map(|input| match input {
        Input::Apart(memory) => memory.last_chunk().unwrap_or(last), // All are of one length.
        Input::Output => last,
    });
    let values = vectors(set, strips, T::widen);
    let whole = output.len() - rest;
    let inputs = inputs.map(|input| input.cut(0, whole));
    run(set, inputs, &mut output[..whole], |_| coefficients, formula);
    if let Some(last) = output.last_chunk_mut() {
        *last = T::narrow(formula.of(values, coefficients));
    }
}

/// Neighbours, in strips that have coefficients of their own.
#[inline(always)]
fn run<T: Number, V: Vector, const N: usize, const K: usize>(
    set: V::Set,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    coefficients: impl Fn(usize) -> [V; K],
    formula: impl Formula<N, K>,
) {
    let distance = prefetch::elements::<T>(N + 1);
    let (strips, rest) = output.as_chunks_mut::<STRIP>();
    let whole = strips.len();
    let sources = inputs.map(|input| match input {
        Input::Apart(memory) => Some(&memory.as_chunks::<STRIP>().0[..whole]),
        Input::Output => None,
    });
    for (i, output) in strips.iter_mut().enumerate() {
        prefetch::ahead(output, distance);
        let strips = sources.map(|source| match source {
            Some(strips) => {
                prefetch::ahead(&strips[i], distance);
                &strips[i]
            }
            None => &*output,
        });
        let values = vectors(set, strips, T::widen);
        *output = T::narrow(formula.of(values, coefficients(i)));
    }
    if !rest.is_empty() {
        let strips = inputs.map(|input| match input.cut(whole * STRIP, rest.len()) {
            Input::Apart(memory) => padded(memory),
            Input::Output => padded(rest),
        });
        let values = vectors(set, strips.each_ref(), T::widen);
        let results = T::narrow(formula.of(values, coefficients(whole)));
        rest.iter_mut().zip(results).for_each(|(output, result)| *output = result);
    }
}

#[cfg(test)]
mod tests {
    use syncbn_core::{Geometry, f16};

    use super::*;
    use crate::vector::{sets, with};

    #[derive(Clone, Copy)]
    struct Combination;

    impl Formula<2, 2> for Combination {
        fn of<V: Vector>(self, [x, dy]: [V; 2], [a, b]: [V; 2]) -> V {
            x + dy + dy + dy + dy + a + b
        }
    }

    /// Shapes with rows and planes of every kind: whole strips or not, short, long, merged, cut.
    const SHAPES: [[usize; 3]; 17] = [
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
        [2, 3, 70_001],
        [1, 1, 131_075],
        [0, 3, 4],
    ];

    #[test]
    fn every_element_meets_its_channel_s_coefficients() {
        for shape in SHAPES {
            let geometry = Geometry::channels_first(&shape).unwrap();
            let channel = |i: usize| (i / geometry.inner() % geometry.channels()) as f64;
            let coefficients =
                Coefficients::new(Dims::from(&geometry), |channel| [channel as f64, 2.0 * channel as f64])
                    .unwrap();
            let x: Vec<f64> = (0..geometry.len()).map(|i| i as f64).collect();
            let dy: Vec<f64> = x.iter().map(|x| x * 0.5).collect();
            let expected: Vec<f64> = (0..geometry.len()).map(|i| i as f64 * 3.0 + 3.0 * channel(i)).collect();

            let mut apart = vec![f64::NAN; geometry.len() + 1];
            map(
                Dims::from(&geometry),
                &coefficients,
                [Input::Apart(&x), Input::Apart(&dy)],
                &mut apart,
                Combination,
            )
            .unwrap();
            assert_eq!(apart[..geometry.len()], expected, "{shape:?}");
            assert!(apart[geometry.len()].is_nan(), "{shape:?}");

            let mut in_place = dy.clone();
            map(
                Dims::from(&geometry),
                &coefficients,
                [Input::Apart(&x), Input::Output],
                &mut in_place,
                Combination,
            )
            .unwrap();
            assert_eq!(in_place, expected, "{shape:?}");
        }
    }

    #[test]
    fn every_instruction_set_writes_the_same_bits() {
        for shape in [[3, 1, 1003], [2, 3, 49], [77, 5, 1], [6, 513, 1]] {
            let geometry = Geometry::channels_first(&shape).unwrap();
            let coefficients = Coefficients::new(Dims::from(&geometry), |channel| {
                [0.1, 0.3].map(|value| value * channel as f64)
            })
            .unwrap();
            let x: Vec<f16> = (0..geometry.len()).map(|i| f16::from_f64(1.0 / (i + 1) as f64)).collect();
            let of = |arch| {
                let mut output = x.clone();
                let inputs = [Input::Apart(&x[..]), Input::Output];
                let coefficients = &coefficients;
                with(
                    arch,
                    Runs {
                        coefficients,
                        inputs,
                        each: iter::once(Run { inputs_at: 0, begin: 0, output: &mut output[..] }),
                        formula: Combination,
                    },
                );
                output
            };
            let all: Vec<_> = sets().into_iter().map(of).collect();
            assert!(all.iter().all(|output| *output == all[0]), "{shape:?}");
        }
    }
}
