//! A whole pass over a few neighbouring channels at a time, whose elements the processor's own cache holds from the sums to the
//! writes. Memory is then read once instead of twice.
//!
//! A block has the same tiles as the whole tensor, merged in the same order: the results have the same bits as two kernels'.
//!
//! Deliberately not here: what is summed and what is written.

use std::cell::RefCell;
use std::ops::Range;

use ndarray::{ArrayViewMut3, Axis};

use crate::map::{Coefficients, Formula, Input, Run, Runs};
use crate::memory::scratch;
use crate::number::Number;
use crate::plan::{Blocks, Dims, Tile, Tiles};
use crate::vector::with_vectors;
use crate::{CpuError, pool};

/// Some of a tensor's channels: where they are read, and where they are written.
pub(crate) struct Block<'a, T, const N: usize> {
    /// The block's channels within the tensor.
    pub(crate) channels: Range<usize>,
    /// The sizes of what the inputs hold: the whole tensor, or the block alone.
    pub(crate) dims: Dims,
    pub(crate) inputs: [&'a [T]; N],
    /// The block's channels within the inputs.
    held: Range<usize>,
    output: ArrayViewMut3<'a, T>,
}

/// Runs `work` for every block, and lends it its own of the `results`, one per channel.
pub(crate) fn for_each<T: Number, R: Send, const N: usize>(
    dims: Dims,
    blocks: Blocks,
    inputs: [Input<'_, T>; N],
    output: &mut [T],
    results: &mut [R],
    work: impl Fn(Block<'_, T, N>, &mut [R]) -> Result<(), CpuError> + Sync,
) -> Result<(), CpuError> {
    let sizes = (dims.outer, dims.channels, dims.inner);
    let mut output = ArrayViewMut3::from_shape(sizes, &mut output[..dims.len()])
        .map_err(|cause| CpuError::shape(&cause))?;
    let outputs = output.axis_chunks_iter_mut(Axis(1), blocks.step);
    let parts = outputs.zip(results.chunks_mut(blocks.step)).enumerate();
    pool::for_each(dims.len(), parts, |(index, (output, results))| {
        let first = index * blocks.step;
        let channels = first..first + results.len();
        match whole(inputs) {
            Some(inputs) => work(Block { held: channels.clone(), channels, dims, inputs, output }, results),
            None => copied(dims, channels, inputs, output, |block| work(block, results)),
        }
    })
}

/// The inputs, if all of them lie in memory of their own.
fn whole<T, const N: usize>(inputs: [Input<'_, T>; N]) -> Option<[&[T]; N]> {
    let mut slices = [&[][..]; N];
    for (slice, input) in slices.iter_mut().zip(inputs) {
        let Input::Apart(memory) = input else { return None };
        *slice = memory;
    }
    Some(slices)
}

impl<T: Number, const N: usize> Block<'_, T, N> {
    /// The sizes of the block alone.
    pub(crate) fn own_dims(&self) -> Dims {
        Dims { channels: self.channels.len(), ..self.dims }
    }

    /// The block's part of the tensor's tiles, in the order of merging.
    pub(crate) fn tiles(&self, tiles: &Tiles) -> impl Iterator<Item = Tile> {
        (0..tiles.splits()).map(|split| tiles.tile(split, self.held.clone()))
    }

    /// `output = formula(inputs, coefficients)`, with coefficients of the block's channels.
    pub(crate) fn write<const K: usize>(
        mut self,
        coefficients: &Coefficients<K>,
        formula: impl Formula<N, K>,
    ) {
        let (stride, first) = (self.dims.channels * self.dims.inner, self.held.start * self.dims.inner);
        let each = self.output.outer_iter_mut().enumerate().filter_map(|(index, rows)| {
            // Neighbouring channels of one sample have no gaps between them.
            Some(Run { inputs_at: index * stride + first, begin: 0, output: rows.into_slice()? })
        });
        let inputs = self.inputs.map(Input::Apart);
        with_vectors(Runs { coefficients, inputs, each, formula });
    }
}

/// Copies the block's inputs to memory that this thread uses for every block, since one of them is overwritten.
fn copied<T: Number, const N: usize>(
    dims: Dims,
    channels: Range<usize>,
    inputs: [Input<'_, T>; N],
    output: ArrayViewMut3<'_, T>,
    work: impl FnOnce(Block<'_, T, N>) -> Result<(), CpuError>,
) -> Result<(), CpuError> {
    thread_local!(static COPIES: RefCell<Vec<f64>> = const { RefCell::new(Vec::new()) });
    let held = Dims { channels: channels.len(), ..dims };
    let (run, stride) = (held.channels * held.inner, dims.channels * dims.inner);
    COPIES.with_borrow_mut(|copies| {
        let words = (N * held.len() * size_of::<T>()).div_ceil(size_of::<f64>());
        let mut rest: &mut [T] = bytemuck::cast_slice_mut(scratch(copies, words, "copies of channels")?);
        let mut copies = [&[][..]; N];
        for (copy, input) in copies.iter_mut().zip(inputs) {
            let (target, others) = rest.split_at_mut(held.len());
            match input {
                Input::Apart(memory) => {
                    let first = channels.start * dims.inner;
                    let rows = memory[..dims.len()].chunks(stride);
                    copy_rows(rows.map(|row| &row[first..first + run]), target);
                }
                Input::Output => copy_rows(output.outer_iter().filter_map(|row| row.to_slice()), target),
            }
            (*copy, rest) = (target, others);
        }
        work(Block { held: 0..held.channels, channels, dims: held, inputs: copies, output })
    })
}

/// Puts rows one behind the other.
fn copy_rows<'a, T: Number>(rows: impl Iterator<Item = &'a [T]>, target: &mut [T]) {
    let mut rest = target;
    for row in rows {
        let (target, others) = rest.split_at_mut(row.len());
        target.copy_from_slice(row);
        rest = others;
    }
}

#[cfg(test)]
mod tests {
    use syncbn_core::backend::{BackwardArgs, ForwardArgs, Gradients};
    use syncbn_core::meeting::{backward_by_kernels, forward_by_kernels};
    use syncbn_core::{
        Backend, Element, Geometry, Kernels, Meeting, NonFinite, RunningMut, Scalar, View, ViewMut, bf16,
        f16, saved_len,
    };

    use super::*;
    use crate::{Cpu, backward, forward};

    /// How a pass is done: by two kernels, or whole.
    type Way = Option<Blocks>;

    fn values<T: Scalar>(len: usize, seed: usize, of: impl Fn(f64) -> T) -> Vec<T> {
        (0..len).map(|i| of(((i * 31 + seed) * 2_654_435_761 % 4093) as f64 / 1000.0 - 1.5)).collect()
    }

    /// Everything that a forward and a backward pass write, as bytes.
    fn written<T: Number>(geometry: Geometry, [first, second]: [Way; 2], in_place: bool) -> Vec<u8>
    where
        Cpu: Kernels<T>,
    {
        let (len, channels) = (geometry.len(), geometry.channels());
        let params = |seed| values(channels, seed, <T::Param as Element>::from_f64);
        let [weight, bias, mut mean, mut var] = [1, 2, 3, 4].map(params);
        let mut tracked = [7_i64];
        let (x, dy) = (values(len, 5, T::from_f64), values(len, 6, T::from_f64));
        let (mut y, mut dx) = (vec![T::default(); len + 1], dy.clone());
        let [mut d_weight, mut d_bias] = [1, 2].map(params);
        let mut saved = vec![f64::NAN; saved_len(channels)];
        let mut workspace = Cpu.workspace(&(), channels, T::Param::DTYPE).unwrap();

        let running = RunningMut {
            mean: &mut mean[..],
            var: &mut var[..],
            num_batches_tracked: &mut tracked[..],
            momentum: None,
            non_finite: NonFinite::Propagate,
        };
        let args = ForwardArgs {
            x: View::new(&x[..], geometry).unwrap(),
            y: ViewMut::new(&mut y[..], geometry).unwrap(),
            weight: Some(&weight[..]),
            bias: Some(&bias[..]),
            eps: 1e-5,
            running: Some(running),
            saved: &mut saved[..],
            workspace: &mut workspace,
        };
        match first {
            Some(blocks) => forward::alone(args, blocks).unwrap(),
            None => forward_by_kernels(&Cpu, &(), args, Meeting::Alone).unwrap(),
        }

        let target = ViewMut::new(&mut dx[..], geometry).unwrap();
        let args = BackwardArgs {
            x: View::new(&x[..], geometry).unwrap(),
            gradients: if in_place {
                Gradients::InPlace(target)
            } else {
                Gradients::OutOfPlace { dy: View::new(&dy[..], geometry).unwrap(), dx: target }
            },
            saved: &saved[..],
            weight: Some(&weight[..]),
            d_weight: Some(&mut d_weight[..]),
            d_bias: Some(&mut d_bias[..]),
            workspace: &mut workspace,
        };
        match second {
            Some(blocks) => backward::alone(args, blocks).unwrap(),
            None => backward_by_kernels(&Cpu, &(), args, Meeting::Alone).unwrap(),
        }
        let parameters = [mean, var, d_weight, d_bias];
        let bytes: [&[u8]; 4] = [
            bytemuck::cast_slice(&y),
            bytemuck::cast_slice(&dx),
            bytemuck::cast_slice(&saved),
            bytemuck::cast_slice(&tracked),
        ];
        let parameters = parameters.iter().flatten().flat_map(|value| value.to_f64().to_le_bytes());
        bytes.concat().into_iter().chain(parameters).collect()
    }

    /// Every block that [`Blocks::new`] may choose, and some that it would not for so small a tensor.
    fn blocks(dims: Dims) -> Vec<Blocks> {
        let tiles = Tiles::new(dims);
        (1..=dims.channels).filter(|&step| tiles.can_be_cut(step)).map(|step| Blocks { step }).collect()
    }

    fn whole_passes_have_the_bits_of_two_kernels<T: Number>()
    where
        Cpu: Kernels<T>,
    {
        for shape in [
            [0, 3, 4],
            [1, 1, 9],
            [5, 24, 1],
            [700, 40, 1],
            [70, 9, 1],
            [3, 1100, 2],
            [9, 5, 8],
            [7, 6, 31],
            [30, 3, 33],
            [5, 7, 49],
            [9, 20, 70],
            [3, 6, 196],
            [2, 2, 66_000],
        ] {
            let geometry = Geometry::channels_first(&shape).unwrap();
            for in_place in [false, true] {
                let expected = written::<T>(geometry, [None, None], in_place);
                let all = blocks(Dims::from(&geometry));
                let few = all.len().div_ceil(12);
                for blocks in all.into_iter().step_by(few) {
                    let whole = written::<T>(geometry, [Some(blocks), Some(blocks)], in_place);
                    assert!(whole == expected, "{} {shape:?} {blocks:?} {in_place}", T::DTYPE);
                }
            }
        }
    }

    #[test]
    fn whole_passes_have_the_bits_of_two_kernels_of_f32() {
        whole_passes_have_the_bits_of_two_kernels::<f32>();
    }

    #[test]
    fn whole_passes_have_the_bits_of_two_kernels_of_f64() {
        whole_passes_have_the_bits_of_two_kernels::<f64>();
    }

    #[test]
    fn whole_passes_have_the_bits_of_two_kernels_of_halves() {
        whole_passes_have_the_bits_of_two_kernels::<f16>();
        whole_passes_have_the_bits_of_two_kernels::<bf16>();
    }
}
