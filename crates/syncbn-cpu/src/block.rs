//! A whole pass over a few neighbouring channels at a time: their elements stay in a core's cache between the sums and the writes,
//! so that they are read from memory once instead of twice.
//!
//! A block has its part of the whole tensor's tiles, merged in the same order, so that the results have the same bits as those of two
//! kernels.

use std::cell::RefCell;
use std::ops::Range;

use ndarray::{ArrayViewMut3, Axis};

use crate::error::CpuError;
use crate::map::{Coefficients, Formula, Input, Run, Runs};
use crate::memory::scratch;
use crate::number::Number;
use crate::plan::{Blocks, Dims, Tile, Tiles};
use crate::pool;
use crate::vector::with_vectors;

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

/// Runs `work` for every block, with the block's part of `results`, which has one entry per channel.
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
