//! Enqueues `kernels/moments.cu`.

use syncbn_core::backend::MomentsArgs;
use syncbn_core::{Element, Scalar};

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::peers::Peers;
use crate::plan::LaunchPlan;
use crate::raw::params::MomentsParams;

pub(crate) const KERNEL: Kernel = Kernel {
    name: "moments",
    source: concat!(include_str!("../kernels/moments.cuh"), include_str!("../kernels/moments.cu")),
    writes: false,
    reads: 1,
    scalar_up_to: 1 << 18,
    rows: Tuning::new(512, 2, 4),
    columns: Tuning::new(384, 2, 4),
    columns_of_halves: Tuning::new(384, 1, 8),
};

/// What is done with the moments.
#[derive(Clone, Copy)]
pub(crate) enum Wanted<'a> {
    /// This rank's mean and M2.
    Own,
    /// These, and the message that is then summed over the ranks.
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
    let plan = LaunchPlan::new(&geometry, size_of::<T>(), &[x], cuda.multiprocessors(), &KERNEL)?;
    let (with_message, peers) = match wanted {
        Wanted::Own => (false, None),
        Wanted::Message => (true, None),
        Wanted::Sent(peers) => (false, Some(peers.params(&access)?)),
    };
    let kernel = cuda.kernel::<T>(&KERNEL, &plan, peers.is_some())?;
    let pointers = workspace.pointers(&mut access)?;
    let count = geometry.per_channel() as f64;
    let params = MomentsParams {
        walk: plan.walk,
        x,
        message: pointers.message,
        local_moments: pointers.local_moments,
        partials: pointers.partials,
        tickets: pointers.tickets,
        count,
        per_count: 1.0 / count,
        with_message: i32::from(with_message),
    };
    access.launch(kernel, plan.launch(), params, peers)
}
