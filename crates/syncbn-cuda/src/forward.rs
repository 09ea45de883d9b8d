//! Enqueues `kernels/forward.cu`.

use syncbn_core::Element;
use syncbn_core::backend::{ForwardArgs, NormalizeArgs, Source};

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::one_launch::OneLaunch;
use crate::peers::Peers;
use crate::raw::params::ForwardParams;
use crate::{moments, normalize};

pub(crate) const KERNEL: Kernel = Kernel {
    name: "forward",
    source: concat!(
        include_str!("../kernels/moments.cuh"),
        include_str!("../kernels/normalize.cuh"),
        include_str!("../kernels/forward.cu")
    ),
    writes: true,
    reads: 1,
    // What decides how a tensor is walked is that of the kernel that only sums.
    scalar_up_to: moments::KERNEL.scalar_up_to,
    rows: moments::KERNEL.rows,
    columns: moments::KERNEL.columns,
    columns_of_halves: moments::KERNEL.columns_of_halves,
};

/// The pass in one launch, if the tensors fit.
pub(crate) fn find<T: Element>(
    cuda: &Cuda,
    args: &ForwardArgs<'_, Cuda, T>,
    peers: bool,
) -> Result<Option<OneLaunch>, CudaError> {
    let (x, y) = (args.x.mem().region.pointer, args.y.as_view().mem().region.pointer);
    OneLaunch::find::<T>(cuda, args.x.geometry(), &[x], y, &KERNEL, peers)
}

pub(crate) fn enqueue<T: Element>(
    queue: OpenQueue<'_>,
    args: ForwardArgs<'_, Cuda, T>,
    one: &OneLaunch,
    peers: Option<&Peers>,
) -> Result<(), CudaError> {
    let ForwardArgs { x, y, weight, bias, eps, running, saved, workspace } = args;
    let count = x.geometry().per_channel() as f64;
    let launch = one.launch();
    let mut access = Access::begin(queue);
    let source = Source::Batch { workspace, group: false, saved, running };
    let args = NormalizeArgs { x, y, source, weight, bias, eps };
    let mut normalize = normalize::params(&mut access, &one.plan, args)?;
    normalize.state_blocks = launch.blocks as i32;
    normalize.prefetch_rounds = one.rounds();
    let peers = peers.map(|peers| peers.params(&access)).transpose()?;
    access.launch(one.kernel, launch, ForwardParams { normalize, count, per_count: 1.0 / count }, peers)
}
