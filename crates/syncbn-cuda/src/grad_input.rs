//! Enqueues `kernels/grad_input.cu`.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::backend::{Grad, GradInputArgs, GradSource, saved_len};
use syncbn_core::{Element, Scalar};

use crate::access::Access;
use crate::device::{Cuda, same_geometry};
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::plan::{Ahead, Plan};
use crate::raw::driver::Launch;
use crate::raw::params::GradInputParams;

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

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: &Arc<CudaStream>,
    args: GradInputArgs<'_, Cuda, T>,
) -> Result<(), CudaError> {
    cuda.check_queue(queue)?;
    let GradInputArgs { x, grad, saved, source, weight } = args;
    let geometry = *x.geometry();
    let (channels, len) = (geometry.channels(), geometry.len());
    let mut access = Access::begin(queue)?;
    let x = access.read("x", x.mem().region, len)?;
    let (dy, dx) = match grad {
        Grad::OutOfPlace { dy, mut dx } => {
            same_geometry("dy", &geometry, dy.geometry())?;
            same_geometry("dx", &geometry, dx.geometry())?;
            let dy = access.read("dy", dy.mem().region, len)?;
            (dy, access.write("dx", dx.mem_mut().region, len)?)
        }
        Grad::InPlace(mut dy) => {
            same_geometry("dy", &geometry, dy.geometry())?;
            let dy = access.write("dy", dy.mem_mut().region, len)?;
            (dy, dy)
        }
    };
    let weight = weight.map_or(Ok(0), |mem| access.read("weight", mem.region, channels))?;
    let saved = access.read("the saved statistics", saved.region, saved_len(channels))?;
    let message = match source {
        GradSource::Batch { workspace } => {
            workspace.check(&geometry, T::Param::DTYPE)?;
            workspace.parts(&mut access)?.message
        }
        GradSource::Frozen => 0,
    };
    let plan = Plan::new(&geometry, size_of::<T>(), &[x, dy, dx], cuda.multiprocessors(), &KERNEL)?;
    if plan.blocks == 0 {
        return Ok(());
    }
    let kernel = cuda.kernel::<T>(&KERNEL, &plan)?;
    let (mut launched, mut ahead) = (plan.launch(), Ahead::default());
    // With frozen statistics nothing says what the previous kernel was: it may be the one that makes dy.
    if message != 0 && cuda.can_overlap() {
        ahead = plan.ahead(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        launched = Launch { overlaps: cuda.may_overlap(), shared: ahead.bytes, ..launched };
    }
    let params = GradInputParams { tile: plan.tile, x, dy, dx, saved, message, weight, ahead: ahead.turns };
    access.launch(kernel, launched, params)
}
