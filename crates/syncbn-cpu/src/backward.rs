//! The whole backward pass of a group of one rank: the sums of a block of channels, then the block's dx. A larger group needs the
//! sum over ranks between the two, and uses the kernels `grad_sums` and `grad_input`.

use syncbn_core::Element;
use syncbn_core::backend::{BackwardArgs, Gradients};
use syncbn_core::host_memory::saved_channel;

use crate::device::Cpu;
use crate::error::CpuError;
use crate::grad_input::Batch;
use crate::map::{Coefficients, Input};
use crate::memory::scratch;
use crate::number::Number;
use crate::plan::{Blocks, Dims, Tiles};
use crate::workspace::Workspace;
use crate::{block, grad_sums};

/// How the tensor is cut, if the whole pass is faster than two kernels.
pub(crate) fn blocks<T: Number>(args: &BackwardArgs<'_, Cpu, T>) -> Option<Blocks> {
    if let Gradients::ParametersOnly { .. } = args.gradients {
        return None;
    }
    let dims = Dims::from(args.x.geometry());
    Blocks::new(dims, &Tiles::new(dims), 2, size_of::<T>())
}

/// Writes what [`Kernels::grad_sums`](syncbn_core::Kernels::grad_sums) and `grad_input` write.
pub(crate) fn alone<T: Number>(args: BackwardArgs<'_, Cpu, T>, blocks: Blocks) -> Result<(), CpuError> {
    let BackwardArgs { x, mut gradients, saved, weight, d_weight, d_bias, workspace } = args;
    let dims = Dims::from(x.geometry());
    let tiles = Tiles::new(dims);
    let (dy, dx) = match &mut gradients {
        Gradients::OutOfPlace { dy, dx } => (Input::Apart(dy.mem()), dx.mem_mut()),
        Gradients::InPlace(dy) => (Input::Output, dy.mem_mut()),
        Gradients::ParametersOnly { .. } => return Ok(()),
    };
    let Workspace { sums, partials, .. } = workspace;
    let of_channels = scratch(partials, dims.channels, "sums of channels")?;
    let weight = |channel: usize| weight.map_or(1.0, |weight| weight[channel].to_f64());
    block::for_each(dims, blocks, [Input::Apart(x.mem()), dy], dx, of_channels, |block, sums| {
        let first = block.channels.start;
        grad_sums::of_block(&tiles, &block, |channel| saved_channel(saved, first + channel).0.mean, sums)?;
        let coefficients = Coefficients::new(block.own_dims(), |channel| {
            let [sum_dy, sum_dy_xmu] = sums[channel];
            let (weight, saved) = (weight(first + channel), saved_channel(saved, first + channel));
            Batch::coefficients(weight, saved, (sum_dy, sum_dy_xmu))
        })?;
        block.write(&coefficients, Batch);
        Ok(())
    })?;
    grad_sums::finish::<T>(of_channels, saved, sums, d_weight, d_bias);
    Ok(())
}
