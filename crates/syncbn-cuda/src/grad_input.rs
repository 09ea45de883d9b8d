//! Enqueues `kernels/grad_input.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::Element;
use syncbn_core::backend::{Grad, GradInputArgs};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::module::Kernel;
use crate::raw::driver::{Launch, launch};
use crate::tile::{Ahead, Plan, Tile, Tuning};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "grad_input",
    source: include_str!("../kernels/grad_input.cu"),
    args_bytes: size_of::<GradInputParams>(),
    writes: true,
    reads: 2,
    few: 0,
    rows: Tuning::new(256, 4, 2),
    columns: Tuning::new(256, 4, 2),
    columns_of_halves: Tuning::new(384, 2, 2),
};

/// `GradInputArgs` of `grad_input.cu`.
#[repr(C)]
pub(crate) struct GradInputParams {
    tile: Tile,
    x: u64,
    dy: u64,
    dx: u64,
    saved: u64,
    message: u64,
    weight: u64,
    ahead: i32,
}

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: &Arc<CudaStream>,
    args: GradInputArgs<'_, Cuda, T>,
) -> Result<(), CudaError> {
    cuda.check_queue(queue)?;
    let GradInputArgs { x, grad, saved, sums, weight, .. } = args;
    let geometry = *x.geometry();
    let x = cuda.pointer(queue, "x", x.mem().place)?;
    let (dy, dx) = match grad {
        Grad::Apart { dy, mut dx } => {
            (cuda.pointer(queue, "dy", dy.mem().place)?, cuda.pointer(queue, "dx", dx.mem_mut().place)?)
        }
        Grad::InPlace(mut dy) => {
            let dy = cuda.pointer(queue, "dy", dy.mem_mut().place)?;
            (dy, dy)
        }
    };
    if let Some(sums) = sums {
        sums.check(queue)?;
    }
    let weight = weight.map_or(Ok(0), |mem| cuda.pointer(queue, "weight", mem.place))?;
    let saved = saved.pointer(queue)?;
    let plan = Plan::new(&geometry, size_of::<T>(), &[x, dy, dx], cuda.multiprocessors(), &KERNEL)?;
    if plan.blocks == 0 {
        return Ok(());
    }
    let message = sums.map_or(0, crate::scratch::Sums::message);
    let kernel = cuda.kernel::<T>(&KERNEL, &plan)?;
    let mut launched = Launch::of(&plan);
    let mut ahead = Ahead::default();
    // With frozen statistics nothing says what the previous kernel was: it may be the one that makes dy.
    if message != 0 && cuda.can_overlap() {
        ahead = plan.ahead(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        launched = Launch { overlaps: cuda.may_overlap(), shared: ahead.bytes, ..launched };
    }
    let params = GradInputParams { tile: plan.tile, x, dy, dx, saved, message, weight, ahead: ahead.turns };
    launch(queue, kernel, launched, params)
}
