//! The whole forward pass of a group of one rank: the moments of a block of channels, then the block's y. A larger group needs
//! the sum over ranks between the two, and uses the kernels `moments` and `normalize`.

use syncbn_core::backend::ForwardArgs;

use crate::device::Cpu;
use crate::error::CpuError;
use crate::map::{Coefficients, Input};
use crate::normalize::{self, Affine, Normalized};
use crate::number::Number;
use crate::plan::{Blocks, Dims, Tiles};
use crate::workspace::Workspace;
use crate::{block, moments};

/// How the tensor is cut, if the whole pass is faster than two kernels.
pub(crate) fn blocks<T: Number>(args: &ForwardArgs<'_, Cpu, T>) -> Option<Blocks> {
    let dims = Dims::from(args.x.geometry());
    Blocks::new(dims, &Tiles::new(dims), 1, size_of::<T>())
}

/// Writes what [`Kernels::moments`](syncbn_core::Kernels::moments) and `normalize` write.
pub(crate) fn alone<T: Number>(args: ForwardArgs<'_, Cpu, T>, blocks: Blocks) -> Result<(), CpuError> {
    let ForwardArgs { x, mut y, weight, bias, eps, running, saved, workspace } = args;
    let Workspace { moments, .. } = workspace;
    let dims = Dims::from(x.geometry());
    let tiles = Tiles::new(dims);
    let affine = Affine::<T> { weight, bias };
    block::for_each(dims, blocks, [Input::Apart(x.mem())], y.mem_mut(), moments, |block, moments| {
        moments::of_block(&tiles, &block, moments)?;
        let first = block.channels.start;
        let coefficients = Coefficients::new(block.own_dims(), |channel| {
            let batch = moments[channel].batch();
            affine.coefficients(first + channel, batch.mean, batch.invstd(eps))
        })?;
        block.write(&coefficients, Normalized);
        Ok(())
    })?;
    normalize::finish(moments.iter().map(|moments| moments.batch()), eps, saved, running);
    Ok(())
}
