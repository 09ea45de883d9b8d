//! Enqueues `kernels/normalize.cu`.

use syncbn_core::backend::{NormalizeArgs, RunningMut, Source, saved_len};
use syncbn_core::{Element, Geometry, NonFinite, Scalar};

use crate::access::{Access, OpenQueue};
use crate::device::{Cuda, same_geometry};
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::peers::Peers;
use crate::plan::Plan;
use crate::raw::driver::Launch;
use crate::raw::params::NormalizeParams;

pub(crate) const KERNEL: Kernel = Kernel {
    name: "normalize",
    source: include_str!("../kernels/normalize.cu"),
    args_bytes: size_of::<NormalizeParams>(),
    writes: true,
    reads: 1,
    few: 0,
    rows: Tuning::new(256, 4, 4),
    columns: Tuning::new(512, 2, 4),
    columns_of_halves: Tuning::new(512, 2, 4),
};

/// The enum of the same name in normalize.cu.
const GROUP: i32 = 0;
const LOCAL: i32 = 1;
const FROZEN: i32 = 2;
const SAVED: i32 = 3;

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: OpenQueue<'_>,
    args: NormalizeArgs<'_, Cuda, T>,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let NormalizeArgs { x, mut y, source, weight, bias, eps } = args;
    let geometry = *x.geometry();
    let channels = geometry.channels();
    same_geometry("y", &geometry, y.geometry())?;
    let mut access = Access::begin(queue);
    let x = access.read("x", x.mem().region, geometry.len())?;
    let y = access.write("y", y.mem_mut().region, geometry.len())?;
    let plan = Plan::new(&geometry, size_of::<T>(), &[x, y], cuda.multiprocessors(), &KERNEL)?;
    let mut params = NormalizeParams {
        tile: plan.tile,
        x,
        y,
        weight: weight.map_or(Ok(0), |mem| access.read("weight", mem.region, channels))?,
        bias: bias.map_or(Ok(0), |mem| access.read("bias", mem.region, channels))?,
        message: 0,
        own: 0,
        frozen_mean: 0,
        frozen_var: 0,
        saved: 0,
        running_mean: 0,
        running_var: 0,
        num_batches_tracked: 0,
        ticket: 0,
        eps,
        momentum: -1.0,
        source: SAVED,
        skip: 0,
        owners: channels.div_ceil(plan.threads as usize) as i32,
        ahead: 0,
    };
    fill_source::<T>(&mut params, &mut access, &geometry, source)?;
    let blocks = plan.blocks + params.owners.unsigned_abs();
    if blocks == 0 {
        return Ok(());
    }
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let mut launched = Launch { blocks, ..plan.launch() };
    // Only after `moments` is it known that the previous kernels have nothing to do with x.
    if matches!(params.source, GROUP | LOCAL) && cuda.can_overlap() {
        let ahead = plan.ahead(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        params.ahead = ahead.turns;
        launched = Launch { overlaps: cuda.may_overlap(), shared: ahead.bytes, ..launched };
    }
    access.launch(kernel, launched, params, peers)
}

fn fill_source<'a, T: Element>(
    params: &mut NormalizeParams,
    access: &mut Access<'_, 'a>,
    geometry: &Geometry,
    source: Source<'a, Cuda, T::Param>,
) -> Result<(), CudaError> {
    const WORDS: &str = "the saved statistics";
    let channels = geometry.channels();
    match source {
        Source::Batch { workspace, group, saved, running } => {
            workspace.check(geometry, T::Param::DTYPE)?;
            let parts = workspace.parts(access)?;
            params.source = if group { GROUP } else { LOCAL };
            params.message = parts.message;
            params.own = parts.own;
            params.ticket = parts.state_ticket;
            params.saved = access.write(WORDS, saved.region, saved_len(channels))?;
            running.map_or(Ok(()), |running| fill_running(params, access, channels, &running))
        }
        Source::Frozen { mean, var, saved } => {
            params.source = FROZEN;
            params.frozen_mean = access.read("running_mean", mean.region, channels)?;
            params.frozen_var = access.read("running_var", var.region, channels)?;
            params.saved = access.write(WORDS, saved.region, saved_len(channels))?;
            Ok(())
        }
        Source::Saved { saved, running } => {
            params.saved = access.read(WORDS, saved.region, saved_len(channels))?;
            // Without a workspace there is no ticket: one block owns all channels.
            params.owners = i32::from(running.is_some());
            running.map_or(Ok(()), |running| fill_running(params, access, channels, &running))
        }
    }
}

fn fill_running<'a, P: Element>(
    params: &mut NormalizeParams,
    access: &mut Access<'_, 'a>,
    channels: usize,
    running: &RunningMut<'a, Cuda, P>,
) -> Result<(), CudaError> {
    let RunningMut { mean, var, num_batches_tracked, momentum, non_finite } = running;
    params.running_mean = access.write("running_mean", mean.region, channels)?;
    params.running_var = access.write("running_var", var.region, channels)?;
    params.num_batches_tracked = access.write("num_batches_tracked", num_batches_tracked.region, 1)?;
    params.momentum = momentum.unwrap_or(-1.0);
    params.skip = match non_finite {
        NonFinite::Propagate => 0,
        NonFinite::Skip => 1,
    };
    Ok(())
}
