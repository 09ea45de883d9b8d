//! Enqueues `kernels/moments.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::{Element, View};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::raw::driver::launch;
use crate::scratch::Sums;
use crate::tile::{Plan, Tile, Work};

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
    let plan = Plan::new(geometry, size_of::<T>(), &[x], cuda.multiprocessors(), Work::Sum)?;
    let kernel = cuda.kernel::<T>("moments", &plan)?;
    out.enter(queue)?;
    let params = MomentsParams {
        tile: plan.tile,
        x,
        message: out.message(),
        m2: out.m2(),
        partials: out.partials(),
        tickets: out.tickets(),
        count: geometry.per_channel() as f64,
    };
    launch(queue, kernel, plan.blocks, params)
}
