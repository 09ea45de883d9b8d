//! How a grid walks a tensor: which blocks and threads read which elements.
//!
//! - Rows: a block has whole channels, or a part of one. A channel is a number of runs in memory, and a thread adds up vectors of one
//!   channel.
//! - Columns: the tensor is a matrix, and each of its columns belongs to one channel. A thread reads down the columns of one vector, and
//!   has a sum for each of them. This is how channels-last tensors are read. So are short planes, of which each channel has
//!   `inner` columns, and channels-last tensors with an odd number of channels, where several rows that together are whole
//!   vectors are read as one.
//!
//! kernels/walk.cuh is the device's half, and explains the terms.

use syncbn_core::Geometry;

use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::raw::driver::Launch;
use crate::raw::params::WalkParams;

mod block_shape;
mod limits;
mod matrix;

pub(crate) use limits::{most_channels_per_block, most_partials};
use matrix::Matrix;

/// Bytes of shared memory that the driver reserves in each block.
const RESERVED: usize = 1024;

/// How much of its input a block keeps in shared memory: what a kernel that may start early reads before it waits, or all of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Prefetch {
    /// Rounds of a thread's loads.
    pub(crate) rounds: i32,
    /// Bytes of shared memory of a block.
    pub(crate) bytes: u32,
}

/// How a grid walks a tensor, and what else its launch needs.
pub(crate) struct LaunchPlan {
    pub(crate) walk: WalkParams,
    /// Blocks that walk the tensor; 0 for an empty tensor, if the kernel writes a tensor.
    pub(crate) blocks: u32,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Elements of a vector.
    pub(crate) vec: usize,
    pub(crate) columns: bool,
}

impl LaunchPlan {
    /// The plan for tensors of elements of `size` bytes that begin at `pointers`.
    pub(crate) fn new(
        geometry: &Geometry,
        size: usize,
        pointers: &[u64],
        multiprocessors: usize,
        kernel: &Kernel,
    ) -> Result<Self, CudaError> {
        let matrix = Matrix::of(geometry, size, pointers, kernel.scalar_up_to);
        let shape = matrix.block_shape(kernel.tuning(matrix.columns, size), multiprocessors);
        let vectors = matrix.runs * matrix.segment;
        let step = shape.threads_per_lane * shape.blocks_per_channel;
        let empty = kernel.writes && geometry.is_empty();
        let blocks = if empty { 0 } else { shape.groups.saturating_mul(shape.blocks_per_channel) };

        let too_large = || CudaError::TooLarge { channels: geometry.channels() };
        // A grid also has the blocks that write the state.
        let blocks = u32::try_from(blocks).ok().filter(|&b| b < u32::MAX / 4).ok_or_else(too_large)?;
        let small = |value: usize| i32::try_from(value).map_err(|_| too_large());
        let walk = WalkParams {
            channels: geometry.channels() as i64,
            lanes: matrix.lanes as i64,
            segment: matrix.segment as i64,
            runs: matrix.runs as i64,
            step_index: (step / matrix.segment * matrix.lanes * matrix.segment + step % matrix.segment)
                as i64,
            run_gap: ((matrix.lanes - 1) * matrix.segment) as i64,
            tail: matrix.tail as i64,
            step_within: small(step % matrix.segment)?,
            vectors_per_thread: small(vectors / step)?,
            threads_with_one_more: small(vectors % step)?,
            inner: small(matrix.inner)?,
            lanes_per_block: small(shape.lanes_per_block)?,
            threads_per_lane: small(shape.threads_per_lane)?,
            blocks_per_channel: small(shape.blocks_per_channel)?,
            channels_per_block: small(shape.channels_per_block)?,
            reducers_per_channel: small(shape.reducers_per_channel())?,
        };
        Ok(Self { walk, blocks, threads: shape.threads as u32, vec: matrix.vec, columns: matrix.columns })
    }

    /// A launch of the blocks that walk the tensor.
    pub(crate) fn launch(&self) -> Launch {
        Launch { blocks: self.blocks, threads: self.threads, shared: 0, overlaps: false }
    }

    /// All rounds of a thread but its last, or as many as fit: a multiprocessor has `room` bytes of shared memory for the blocks that it
    /// runs, and each of them has `taken` bytes already.
    pub(crate) fn prefetch(&self, kernel: &Kernel, size: usize, room: usize, taken: usize) -> Prefetch {
        let tuning = kernel.tuning(self.columns, size);
        let blocks = (tuning.blocks * tuning.threads / self.threads as usize).max(1);
        let most = (room / blocks).saturating_sub(taken + RESERVED) / self.round_bytes(kernel, size);
        self.prefetched(kernel, size, self.rounds(kernel, size).saturating_sub(1).min(most))
    }

    /// All rounds of a thread, if the multiprocessors, each with `room` bytes of shared memory, have enough of it for the whole grid at
    /// once. Each block has `taken` bytes already.
    pub(crate) fn keep(
        &self,
        kernel: &Kernel,
        size: usize,
        multiprocessors: usize,
        room: usize,
        taken: usize,
    ) -> Option<Prefetch> {
        let blocks = (self.blocks as usize).div_ceil(multiprocessors).max(1);
        let kept = self.prefetched(kernel, size, self.rounds(kernel, size));
        (blocks * (kept.bytes as usize + taken + RESERVED) <= room).then_some(kept)
    }

    fn rounds(&self, kernel: &Kernel, size: usize) -> usize {
        let vectors = self.walk.vectors_per_thread.unsigned_abs() as usize
            + usize::from(self.walk.threads_with_one_more > 0);
        vectors.div_ceil(kernel.tuning(self.columns, size).unroll)
    }

    fn round_bytes(&self, kernel: &Kernel, size: usize) -> usize {
        let unroll = kernel.tuning(self.columns, size).unroll;
        kernel.reads * unroll * self.threads as usize * self.vec * size
    }

    fn prefetched(&self, kernel: &Kernel, size: usize, rounds: usize) -> Prefetch {
        let bytes = rounds * self.round_bytes(kernel, size);
        Prefetch { rounds: rounds as i32, bytes: bytes as u32 }
    }
}

#[cfg(test)]
#[expect(clippy::cast_sign_loss, reason = "every field of a plan was a usize")]
mod tests;
