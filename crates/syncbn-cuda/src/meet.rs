//! Enqueues `kernels/meet.cu`.

use syncbn_core::Dtype;

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::module::Specialization;
use crate::peers::Peers;
use crate::raw::driver::Launch;
use crate::raw::params::{MOST_RANKS, MeetParams};

const THREADS: usize = 32;
const _: () = assert!(MOST_RANKS <= THREADS);

pub(crate) const KERNEL: Kernel = Kernel {
    name: "meet",
    source: include_str!("../kernels/meet.cu"),
    writes: false,
    reads: 0,
    scalar_up_to: 0,
    rows: Tuning::new(THREADS, 1, 1),
    columns: Tuning::new(THREADS, 1, 1),
    columns_of_halves: Tuning::new(THREADS, 1, 1),
};

/// Its only specialization.
pub(crate) const SPECIALIZATION: Specialization =
    Specialization { kernel: &KERNEL, dtype: Dtype::F32, vec: 1, columns: false, peers: true };

/// Which part of the pass the kernel does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meet {
    /// All of it.
    SendsAndReceives,
    /// The previous kernel has sent.
    Receives,
}

pub(crate) fn enqueue(cuda: &Cuda, queue: OpenQueue<'_>, peers: &Peers, meet: Meet) -> Result<(), CudaError> {
    let access = Access::begin(queue);
    let params = MeetParams { count: 0.0, sends: i32::from(meet == Meet::SendsAndReceives) };
    let peers = peers.params(&access)?;
    let launch = Launch { blocks: 1, threads: THREADS as u32, shared: 0, overlaps: false };
    access.launch(cuda.function(SPECIALIZATION)?, launch, params, Some(peers))
}
