//! Enqueues `kernels/moments.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::{Element, View};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::module::Kernel;
use crate::raw::driver::{Launch, launch};
use crate::scratch::Sums;
use crate::tile::{Plan, Tile, Tuning};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "moments",
    source: include_str!("../kernels/moments.cu"),
    args_bytes: size_of::<MomentsParams>(),
    writes: false,
    reads: 1,
    few: 1 << 18,
    rows: Tuning::new(512, 2, 4),
    columns: Tuning::new(384, 2, 4),
    columns_of_halves: Tuning::new(384, 1, 8),
};

/// `MomentsArgs` of moments.cu.
#[repr(C)]
pub(crate) struct MomentsParams {
    tile: Tile,
    x: u64,
    message: u64,
    m2: u64,
    partials: u64,
    tickets: u64,
    count: f64,
    per_count: f64,
}

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: &Arc<CudaStream>,
    x: &View<'_, Cuda, T>,
    out: &mut Sums,
) -> Result<(), CudaError> {
    cuda.check_queue(queue)?;
    let geometry = x.geometry();
    let x = cuda.pointer(queue, "x", x.mem().place)?;
    let plan = Plan::new(geometry, size_of::<T>(), &[x], cuda.multiprocessors(), &KERNEL)?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan)?;
    out.enter(queue)?;
    let count = geometry.per_channel() as f64;
    let params = MomentsParams {
        tile: plan.tile,
        x,
        message: out.message(),
        m2: out.m2(),
        partials: out.partials(),
        tickets: out.tickets(),
        count,
        per_count: 1.0 / count,
    };
    launch(queue, kernel, Launch::of(&plan), params)
}
