//! How a grid walks a tensor: the host's half of tile.cuh.
//!
//! Rows: a block has whole channels, each a number of runs in memory, and a thread sums vectors of one channel. Columns:
//! the tensor is a matrix whose columns belong to one channel each, a thread goes down the columns under one vector,
//! and has a sum for each. Channels-last is such a matrix; so are many short planes, `inner` columns to a channel; and so is
//! channels-last with an odd number of channels, if as many rows are read as one until they fill whole vectors.
//!
//! Deliberately not here: anything that runs on the device.

use syncbn_core::Geometry;

use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::raw::driver::Launch;
use crate::raw::params::Tile;

mod limits;
mod matrix;
mod team;

pub(crate) use limits::{most_pack, most_partials};
use matrix::Matrix;

/// Bytes of shared memory that each block takes beside its own.
const RESERVED: usize = 1024;

/// What a thread of a kernel that may start early reads before it has to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead {
    /// Turns of its loads, besides one that stays in registers.
    pub(crate) turns: i32,
    /// Bytes of a block's shared memory that they take.
    pub(crate) bytes: u32,
}

/// A tile, and what else a launch needs.
pub(crate) struct Plan {
    pub(crate) tile: Tile,
    /// Blocks that walk the tensor; 0 for an empty one that is only written.
    pub(crate) blocks: u32,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Elements of one load.
    pub(crate) vec: usize,
    pub(crate) columns: bool,
}

impl Plan {
    /// The plan for tensors of elements of `size` bytes that begin at `pointers`.
    pub(crate) fn new(
        geometry: &Geometry,
        size: usize,
        pointers: &[u64],
        multiprocessors: usize,
        kernel: &Kernel,
    ) -> Result<Self, CudaError> {
        let matrix = Matrix::of(geometry, size, pointers, kernel.few);
        let team = matrix.team(kernel.tuning(matrix.columns, size), multiprocessors);
        let vectors = matrix.runs * matrix.segment;
        let step = team.members * team.splits;
        let empty = kernel.writes && geometry.is_empty();
        let blocks = if empty { 0 } else { team.groups.saturating_mul(team.splits) };

        let too_large = || CudaError::TooLarge { channels: geometry.channels() };
        // Leaves room in a grid for the blocks that own the state.
        let blocks = u32::try_from(blocks).ok().filter(|&b| b < u32::MAX / 4).ok_or_else(too_large)?;
        let small = |value: usize| i32::try_from(value).map_err(|_| too_large());
        let tile = Tile {
            channels: geometry.channels() as i64,
            lanes: matrix.lanes as i64,
            segment: matrix.segment as i64,
            runs: matrix.runs as i64,
            step_index: (step / matrix.segment * matrix.lanes * matrix.segment + step % matrix.segment)
                as i64,
            wrap: ((matrix.lanes - 1) * matrix.segment) as i64,
            tail: matrix.tail as i64,
            step_within: small(step % matrix.segment)?,
            whole: small(vectors / step)?,
            rest: small(vectors % step)?,
            inner: small(matrix.inner)?,
            slots: small(team.slots)?,
            members: small(team.members)?,
            splits: small(team.splits)?,
            pack: small(team.pack)?,
            shares: small(team.shares())?,
        };
        Ok(Self { tile, blocks, threads: team.threads as u32, vec: matrix.vec, columns: matrix.columns })
    }

    /// A launch of the blocks that walk the tensor.
    pub(crate) fn launch(&self) -> Launch {
        Launch { blocks: self.blocks, threads: self.threads, shared: 0, overlaps: false }
    }

    /// As much as there is: all but a thread's last turn, if a multiprocessor with `room` bytes of shared memory has room for
    /// that in all the blocks that it runs, of which each takes `taken` bytes anyway.
    pub(crate) fn ahead(&self, kernel: &Kernel, size: usize, room: usize, taken: usize) -> Ahead {
        let tuning = kernel.tuning(self.columns, size);
        let threads = self.threads as usize;
        let blocks = (tuning.blocks * tuning.threads / threads).max(1);
        let turn = kernel.reads * tuning.unroll * threads * self.vec * size;
        let vectors = self.tile.whole.unsigned_abs() as usize + usize::from(self.tile.rest > 0);
        let wanted = vectors.div_ceil(tuning.unroll).saturating_sub(1);
        let turns = wanted.min((room / blocks).saturating_sub(taken + RESERVED) / turn);
        Ahead { turns: turns as i32, bytes: (turns * turn) as u32 }
    }
}

#[cfg(test)]
#[expect(clippy::cast_sign_loss, reason = "every field of a plan was a usize")]
mod tests;
