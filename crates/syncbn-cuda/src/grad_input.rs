//! Enqueues `kernels/grad_input.cu`.

use syncbn_core::backend::{Grad, GradInputArgs, GradSource, saved_len};
use syncbn_core::{Element, Scalar, View};

use crate::access::{Access, OpenQueue};
use crate::device::{Cuda, same_geometry};
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::meet::{self, Meet};
use crate::peers::Peers;
use crate::plan::LaunchPlan;
use crate::raw::driver::Launch;
use crate::raw::params::GradInputParams;

pub(crate) const KERNEL: Kernel = Kernel {
    name: "grad_input",
    source: concat!(include_str!("../kernels/grad_input.cuh"), include_str!("../kernels/grad_input.cu")),
    writes: true,
    reads: 2,
    scalar_up_to: 0,
    rows: Tuning::new(256, 4, 2),
    columns: Tuning::new(256, 4, 2),
    columns_of_halves: Tuning::new(384, 2, 2),
};

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: OpenQueue<'_>,
    args: GradInputArgs<'_, Cuda, T>,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let geometry = args.x.geometry();
    let pointers = pointers(&args.x, &args.grad);
    let plan = LaunchPlan::new(geometry, size_of::<T>(), &pointers, cuda.multiprocessors(), &KERNEL)?;
    let mut access = Access::begin(queue);
    let mut params = params(&mut access, &plan, args)?;
    if plan.blocks == 0 {
        return peers.map_or(Ok(()), |peers| meet::enqueue(cuda, queue, peers, Meet::Receives));
    }
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let mut launched = plan.launch();
    // With frozen statistics the previous kernel is unknown: it may be the one that writes dy.
    if params.message != 0 && cuda.can_overlap() {
        let prefetch = plan.prefetch(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        params.prefetch_rounds = prefetch.rounds;
        launched = Launch { overlaps: cuda.may_overlap(), shared: prefetch.bytes, ..launched };
    }
    // The first block compares the ranks' calls.
    launched.blocks += u32::from(peers.is_some());
    access.launch(kernel, launched, params, peers)
}

/// Where the tensors begin.
pub(crate) fn pointers<T: Element>(x: &View<'_, Cuda, T>, grad: &Grad<'_, Cuda, T>) -> [u64; 3] {
    let (dy, dx) = match grad {
        Grad::OutOfPlace { dy, dx } => (dy.mem().region.pointer, dx.as_view().mem().region.pointer),
        Grad::InPlace(dy) => (dy.as_view().mem().region.pointer, dy.as_view().mem().region.pointer),
    };
    [x.mem().region.pointer, dy, dx]
}

/// What the kernel is told.
pub(crate) fn params<'a, T: Element>(
    access: &mut Access<'_, 'a>,
    plan: &LaunchPlan,
    args: GradInputArgs<'a, Cuda, T>,
) -> Result<GradInputParams, CudaError> {
    let GradInputArgs { x, grad, saved, source, weight } = args;
    let geometry = *x.geometry();
    let (channels, len) = (geometry.channels(), geometry.len());
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
            workspace.pointers(access)?.message
        }
        GradSource::Frozen => 0,
    };
    Ok(GradInputParams { walk: plan.walk, x, dy, dx, saved, message, weight, prefetch_rounds: 0 })
}
