//! Enqueues `kernels/grad_sums.cu`.

use syncbn_core::backend::{GradSumsArgs, saved_len};
use syncbn_core::{Element, Scalar};

use crate::access::{Access, OpenQueue};
use crate::device::{Cuda, same_geometry};
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::peers::Peers;
use crate::plan::LaunchPlan;
use crate::raw::params::GradSumsParams;

pub(crate) const KERNEL: Kernel = Kernel {
    name: "grad_sums",
    source: concat!(include_str!("../kernels/grad_sums.cuh"), include_str!("../kernels/grad_sums.cu")),
    writes: false,
    reads: 2,
    scalar_up_to: 1 << 16,
    rows: Tuning::new(512, 2, 2),
    columns: Tuning::new(384, 2, 2),
    columns_of_halves: Tuning::new(384, 1, 4),
};

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: OpenQueue<'_>,
    args: GradSumsArgs<'_, Cuda, T>,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, workspace } = args;
    let geometry = *x.geometry();
    let channels = geometry.channels();
    same_geometry("dy", &geometry, dy.geometry())?;
    workspace.check(&geometry, T::Param::DTYPE)?;
    let mut access = Access::begin(queue);
    let x = access.read("x", x.mem().region, geometry.len())?;
    let dy = access.read("dy", dy.mem().region, geometry.len())?;
    let plan = LaunchPlan::new(&geometry, size_of::<T>(), &[x, dy], cuda.multiprocessors(), &KERNEL)?;
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let saved = access.read("the saved statistics", saved.region, saved_len(channels))?;
    let d_weight = d_weight.map_or(Ok(0), |mem| access.write("d_weight", mem.region, channels))?;
    let d_bias = d_bias.map_or(Ok(0), |mem| access.write("d_bias", mem.region, channels))?;
    let pointers = workspace.pointers(&mut access)?;
    let params = GradSumsParams {
        walk: plan.walk,
        x,
        dy,
        saved,
        d_weight,
        d_bias,
        message: pointers.message,
        partials: pointers.partials,
        tickets: pointers.tickets,
    };
    access.launch(kernel, plan.launch(), params, peers)
}
