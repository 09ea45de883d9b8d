//! Enqueues `kernels/moments.cu`.

use syncbn_core::backend::MomentsArgs;
use syncbn_core::{Element, Scalar};

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::peers::Peers;
use crate::plan::Plan;
use crate::raw::params::MomentsParams;

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

/// What becomes of the moments.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// This rank's mean and M2.
    Own,
    /// These, and the message whose sum over the ranks the group's are taken from.
    Message,
    /// They are sent to the peers.
    Sent(&'a Peers),
}

pub(crate) fn enqueue<T: Element>(
    cuda: &Cuda,
    queue: OpenQueue<'_>,
    args: MomentsArgs<'_, Cuda, T>,
    wanted: Wanted<'_>,
) -> Result<(), CudaError> {
    let MomentsArgs { x, workspace } = args;
    let geometry = *x.geometry();
    workspace.check(&geometry, T::Param::DTYPE)?;
    let mut access = Access::begin(queue);
    let x = access.read("x", x.mem().region, geometry.len())?;
    let plan = Plan::new(&geometry, size_of::<T>(), &[x], cuda.multiprocessors(), &KERNEL)?;
    let (with_parts, peers) = match wanted {
        Wanted::Own => (false, None),
        Wanted::Message => (true, None),
        Wanted::Sent(peers) => (false, Some(peers.params(&access)?)),
    };
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let parts = workspace.parts(&mut access)?;
    let count = geometry.per_channel() as f64;
    let params = MomentsParams {
        tile: plan.tile,
        x,
        message: parts.message,
        own: parts.own,
        partials: parts.partials,
        tickets: parts.tickets,
        count,
        per_count: 1.0 / count,
        with_parts: i32::from(with_parts),
    };
    access.launch(kernel, plan.launch(), params, peers)
}
