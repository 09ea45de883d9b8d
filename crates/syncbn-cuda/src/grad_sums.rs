//! Enqueues `kernels/grad_sums.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::Element;
use syncbn_core::backend::GradSumsArgs;

use crate::device::Cuda;
use crate::error::CudaError;
use crate::module::Kernel;
use crate::raw::driver::{Launch, launch};
use crate::tile::{Plan, Tile, Tuning};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "grad_sums",
    source: include_str!("../kernels/grad_sums.cu"),
    args_bytes: size_of::<GradSumsParams>(),
    writes: false,
    reads: 2,
    few: 1 << 16,
    rows: Tuning::new(512, 2, 2),
    columns: Tuning::new(384, 2, 2),
    columns_of_halves: Tuning::new(384, 1, 4),
};

/// `GradSumsArgs` of `grad_sums.cu`.
#[repr(C)]
pub(crate) struct GradSumsParams {
    tile: Tile,
    x: u64,
    dy: u64,
    saved: u64,
    d_weight: u64,
    d_bias: u64,
    message: u64,
    partials: u64,
    tickets: u64,
}

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: &Arc<CudaStream>,
    args: GradSumsArgs<'_, Cuda, T>,
) -> Result<(), CudaError> {
    cuda.check_queue(queue)?;
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, out, .. } = args;
    let geometry = *x.geometry();
    let x = cuda.pointer(queue, "x", x.mem().place)?;
    let dy = cuda.pointer(queue, "dy", dy.mem().place)?;
    let optional = |name, place: Option<_>| place.map_or(Ok(0), |place| cuda.pointer(queue, name, place));
    let plan = Plan::new(&geometry, size_of::<T>(), &[x, dy], cuda.multiprocessors(), &KERNEL)?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan)?;
    let saved = saved.pointer(queue)?;
    let d_weight = optional("d_weight", d_weight.map(|mem| mem.place))?;
    let d_bias = optional("d_bias", d_bias.map(|mem| mem.place))?;
    out.enter(queue)?;
    let params = GradSumsParams {
        tile: plan.tile,
        x,
        dy,
        saved,
        d_weight,
        d_bias,
        message: out.message(),
        partials: out.partials(),
        tickets: out.tickets(),
    };
    launch(queue, kernel, Launch::of(&plan), params)
}
