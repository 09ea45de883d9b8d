//! Enqueues `kernels/forward.cu`.

use syncbn_core::Element;
use syncbn_core::backend::{ForwardArgs, NormalizeArgs, Source};

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::normalize;
use crate::one_launch::OneLaunch;
use crate::raw::params::ForwardParams;

pub(crate) const KERNEL: Kernel = Kernel {
    name: "forward",
    source: concat!(
        include_str!("../kernels/moments.cuh"),
        include_str!("../kernels/normalize.cuh"),
        include_str!("../kernels/forward.cu")
    ),
    writes: true,
    meets: false,
    reads: 1,
    scalar_up_to: 1 << 18,
    rows: Tuning::new(512, 2, 4),
    columns: Tuning::new(384, 2, 4),
    columns_of_halves: Tuning::new(384, 1, 8),
};

/// The pass in one launch, if it is to be had.
pub(crate) fn find<T: Element>(
    cuda: &Cuda,
    args: &ForwardArgs<'_, Cuda, T>,
) -> Result<Option<OneLaunch>, CudaError> {
    let pointers = [args.x.mem().region.pointer, args.y.as_view().mem().region.pointer];
    OneLaunch::find::<T>(cuda, args.x.geometry(), &pointers, &KERNEL)
}

pub(crate) fn enqueue<T: Element>(
    queue: OpenQueue<'_>,
    args: ForwardArgs<'_, Cuda, T>,
    one: &OneLaunch,
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
    access.launch(one.kernel, launch, ForwardParams { normalize, count, per_count: 1.0 / count }, None)
}
