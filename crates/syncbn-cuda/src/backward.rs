//! Enqueues `kernels/backward.cu`.

use syncbn_core::backend::{BackwardArgs, GradInputArgs};
use syncbn_core::{Element, Gradients};

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::one_launch::OneLaunch;
use crate::peers::Peers;
use crate::raw::memory::MemMut;
use crate::raw::params::BackwardParams;
use crate::{grad_input, grad_sums};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "backward",
    source: concat!(
        include_str!("../kernels/grad_sums.cuh"),
        include_str!("../kernels/grad_input.cuh"),
        include_str!("../kernels/backward.cu")
    ),
    writes: true,
    reads: 2,
    // What decides how a tensor is walked is that of the kernel that only sums.
    scalar_up_to: grad_sums::KERNEL.scalar_up_to,
    rows: grad_sums::KERNEL.rows,
    columns: grad_sums::KERNEL.columns,
    columns_of_halves: grad_sums::KERNEL.columns_of_halves,
};

/// The pass in one launch, if the tensors fit.
pub(crate) fn find<T: Element>(
    cuda: &Cuda,
    args: &BackwardArgs<'_, Cuda, T>,
    peers: bool,
) -> Result<Option<OneLaunch>, CudaError> {
    let dy = args.gradients.dy().mem().region.pointer;
    let dx = match &args.gradients {
        Gradients::OutOfPlace { dy: _, dx } => dx.as_view().mem().region.pointer,
        Gradients::InPlace(_) => dy,
        Gradients::ParametersOnly { dy: _ } => return Ok(None),
    };
    OneLaunch::find::<T>(cuda, args.x.geometry(), &[args.x.mem().region.pointer, dy], dx, &KERNEL, peers)
}

pub(crate) fn enqueue<'a, T: Element>(
    queue: OpenQueue<'_>,
    args: GradInputArgs<'a, Cuda, T>,
    d_weight: Option<MemMut<'a, T::Param>>,
    d_bias: Option<MemMut<'a, T::Param>>,
    one: &OneLaunch,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let channels = args.x.geometry().channels();
    let mut access = Access::begin(queue);
    let mut input = grad_input::params(&mut access, &one.plan, args)?;
    input.prefetch_rounds = one.rounds();
    let d_weight = d_weight.map_or(Ok(0), |mem| access.write("d_weight", mem.region, channels))?;
    let d_bias = d_bias.map_or(Ok(0), |mem| access.write("d_bias", mem.region, channels))?;
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    access.launch(one.kernel, one.launch(), BackwardParams { input, d_weight, d_bias }, peers)
}
