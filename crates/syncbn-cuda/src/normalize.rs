//! Enqueues `kernels/normalize.cu`.

use syncbn_core::backend::{NormalizeArgs, RunningMut, Source, saved_len};
use syncbn_core::{Element, Geometry, NonFinite, Scalar};

use crate::access::{Access, OpenQueue};
use crate::device::{Cuda, same_geometry};
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::peers::Peers;
use crate::plan::LaunchPlan;
use crate::raw::driver::Launch;
use crate::raw::params::{NormalizeParams, StatisticsSource};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "normalize",
    source: concat!(include_str!("../kernels/normalize.cuh"), include_str!("../kernels/normalize.cu")),
    writes: true,
    reads: 1,
    scalar_up_to: 0,
    rows: Tuning::new(256, 4, 4),
    columns: Tuning::new(512, 2, 4),
    columns_of_halves: Tuning::new(512, 2, 4),
};

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: OpenQueue<'_>,
    args: NormalizeArgs<'_, Cuda, T>,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let pointers = [args.x.mem().region.pointer, args.y.as_view().mem().region.pointer];
    let geometry = args.x.geometry();
    let plan = LaunchPlan::new(geometry, size_of::<T>(), &pointers, cuda.multiprocessors(), &KERNEL)?;
    let mut access = Access::begin(queue);
    let mut params = params(&mut access, &plan, args)?;
    let blocks = plan.blocks + params.state_blocks.unsigned_abs();
    if blocks == 0 {
        return Ok(());
    }
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let mut launched = Launch { blocks, ..plan.launch() };
    // Only here is the previous kernel known: `moments`, or the sum over the ranks. It does not write x.
    if matches!(params.source, StatisticsSource::Group | StatisticsSource::Local) && cuda.can_overlap() {
        let prefetch = plan.prefetch(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        params.prefetch_rounds = prefetch.rounds;
        launched = Launch { overlaps: cuda.may_overlap(), shared: prefetch.bytes, ..launched };
    }
    access.launch(kernel, launched, params, peers)
}

/// What the kernel is told.
pub(crate) fn params<'a, T: Element>(
    access: &mut Access<'_, 'a>,
    plan: &LaunchPlan,
    args: NormalizeArgs<'a, Cuda, T>,
) -> Result<NormalizeParams, CudaError> {
    let NormalizeArgs { x, mut y, source, weight, bias, eps } = args;
    let geometry = *x.geometry();
    let channels = geometry.channels();
    same_geometry("y", &geometry, y.geometry())?;
    let mut params = NormalizeParams {
        walk: plan.walk,
        x: access.read("x", x.mem().region, geometry.len())?,
        y: access.write("y", y.mem_mut().region, geometry.len())?,
        weight: weight.map_or(Ok(0), |mem| access.read("weight", mem.region, channels))?,
        bias: bias.map_or(Ok(0), |mem| access.read("bias", mem.region, channels))?,
        message: 0,
        local_moments: 0,
        frozen_mean: 0,
        frozen_var: 0,
        saved: 0,
        running_mean: 0,
        running_var: 0,
        num_batches_tracked: 0,
        state_ticket: 0,
        eps,
        momentum: -1.0,
        source: StatisticsSource::Saved,
        skip_non_finite: 0,
        state_blocks: channels.div_ceil(plan.threads as usize) as i32,
        prefetch_rounds: 0,
    };
    fill_source::<T>(&mut params, access, &geometry, source)?;
    Ok(params)
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
            let pointers = workspace.pointers(access)?;
            params.source = if group { StatisticsSource::Group } else { StatisticsSource::Local };
            params.message = pointers.message;
            params.local_moments = pointers.local_moments;
            params.state_ticket = pointers.state_ticket;
            params.saved = access.write(WORDS, saved.region, saved_len(channels))?;
            running.map_or(Ok(()), |running| fill_running(params, access, channels, &running))
        }
        Source::Frozen { mean, var, saved } => {
            params.source = StatisticsSource::Frozen;
            params.frozen_mean = access.read("running_mean", mean.region, channels)?;
            params.frozen_var = access.read("running_var", var.region, channels)?;
            params.saved = access.write(WORDS, saved.region, saved_len(channels))?;
            Ok(())
        }
        Source::Saved { saved, running } => {
            params.saved = access.read(WORDS, saved.region, saved_len(channels))?;
            // Without a workspace there is no ticket, so one block has all channels.
            params.state_blocks = i32::from(running.is_some());
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
    params.skip_non_finite = match non_finite {
        NonFinite::Propagate => 0,
        NonFinite::Skip => 1,
    };
    Ok(())
}
