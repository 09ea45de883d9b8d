//! Enqueues `kernels/grad_input.cu`.

use syncbn_core::backend::{Grad, GradInputArgs, GradSource, saved_len};
use syncbn_core::{Element, Scalar};

use crate::access::{Access, OpenQueue};
use crate::device::{Cuda, same_geometry};
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::meet::{self, Meet};
use crate::peers::Peers;
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
    queue: OpenQueue<'_>,
    args: GradInputArgs<'_, Cuda, T>,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let GradInputArgs { x, grad, saved, source, weight } = args;
    let geometry = *x.geometry();
    let (channels, len) = (geometry.channels(), geometry.len());
    let mut access = Access::begin(queue);
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
        return peers.map_or(Ok(()), |peers| meet::enqueue(cuda, queue, peers, Meet::Receives));
    }
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let (mut launched, mut ahead) = (plan.launch(), Ahead::default());
    // With frozen statistics nothing says what the previous kernel was: it may be the one that makes dy.
    if message != 0 && cuda.can_overlap() {
        ahead = plan.ahead(&KERNEL, size_of::<T>(), cuda.shared_memory(), kernel.shared);
        launched = Launch { overlaps: cuda.may_overlap(), shared: ahead.bytes, ..launched };
    }
    // The first block compares the ranks' calls.
    launched.blocks += u32::from(peers.is_some());
    let params = GradInputParams { tile: plan.tile, x, dy, dx, saved, message, weight, ahead: ahead.turns };
    access.launch(kernel, launched, params, peers)
}
