//! Enqueues `kernels/normalize.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::Element;
use syncbn_core::backend::{NormalizeArgs, Source};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::module::Kernel;
use crate::raw::driver::{Launch, launch};
use crate::tile::{Plan, Tile, Tuning};

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

/// `NormalizeArgs` of normalize.cu.
#[repr(C)]
pub(crate) struct NormalizeParams {
    tile: Tile,
    x: u64,
    y: u64,
    weight: u64,
    bias: u64,
    message: u64,
    m2: u64,
    frozen_mean: u64,
    frozen_var: u64,
    saved: u64,
    running_mean: u64,
    running_var: u64,
    num_batches_tracked: u64,
    ticket: u64,
    eps: f64,
    momentum: f64,
    source: i32,
    owners: i32,
    ahead: i32,
}

/// The enum of the same name in normalize.cu.
const GROUP: i32 = 0;
const LOCAL: i32 = 1;
const FROZEN: i32 = 2;
const SAVED: i32 = 3;

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: &Arc<CudaStream>,
    args: NormalizeArgs<'_, Cuda, T>,
) -> Result<(), CudaError> {
    cuda.check_queue(queue)?;
    let NormalizeArgs { x, mut y, source, weight, bias, eps, .. } = args;
    let geometry = *x.geometry();
    let x = cuda.pointer(queue, "x", x.mem().place)?;
    let y = cuda.pointer(queue, "y", y.mem_mut().place)?;
    let optional = |name, place: Option<_>| place.map_or(Ok(0), |place| cuda.pointer(queue, name, place));
    let plan = Plan::new(&geometry, size_of::<T>(), &[x, y], cuda.multiprocessors(), &KERNEL)?;
    let mut params = NormalizeParams {
        tile: plan.tile,
        x,
        y,
        weight: optional("weight", weight.map(|mem| mem.place))?,
        bias: optional("bias", bias.map(|mem| mem.place))?,
        message: 0,
        m2: 0,
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
        owners: geometry.channels().div_ceil(plan.threads as usize) as i32,
        ahead: 0,
    };
    match source {
        Source::Batch { sums, group, saved, running } => {
            sums.check(queue)?;
            params.source = if group { GROUP } else { LOCAL };
            params.message = sums.message();
            params.m2 = sums.m2();
            params.ticket = sums.state_ticket();
            params.saved = saved.pointer(queue)?;
            if let Some(running) = running {
                params.running_mean = cuda.pointer(queue, "running_mean", running.mean.place)?;
                params.running_var = cuda.pointer(queue, "running_var", running.var.place)?;
                let count = running.num_batches_tracked.place;
                params.num_batches_tracked = cuda.pointer(queue, "num_batches_tracked", count)?;
                params.momentum = running.momentum.unwrap_or(-1.0);
            }
        }
        Source::Frozen { mean, var, saved } => {
            params.source = FROZEN;
            params.frozen_mean = cuda.pointer(queue, "running_mean", mean.place)?;
            params.frozen_var = cuda.pointer(queue, "running_var", var.place)?;
            params.saved = saved.pointer(queue)?;
        }
        Source::Saved(saved) => {
            params.saved = saved.pointer(queue)?;
            params.owners = 0;
        }
        _ => return Err(CudaError::OtherStream { what: "an unknown source of statistics" }),
    }
    let blocks = plan.blocks + params.owners.unsigned_abs();
    if blocks == 0 {
        return Ok(());
    }
    let kernel = cuda.kernel::<T>(&KERNEL, &plan)?;
    let mut launched = Launch { blocks, ..Launch::of(&plan) };
    // Only after `moments` is it known that the previous kernels have nothing to do with x.
    if matches!(params.source, GROUP | LOCAL) && cuda.can_overlap() {
        let ahead = plan.ahead(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        params.ahead = ahead.turns;
        launched = Launch { overlaps: cuda.may_overlap(), shared: ahead.bytes, ..launched };
    }
    launch(queue, kernel, launched, params)
}
