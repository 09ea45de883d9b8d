//! Enqueues `kernels/meet.cu`.

use syncbn_core::Dtype;

use crate::access::{Access, OpenQueue};
use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::{Kernel, Tuning};
use crate::module::Special;
use crate::peers::Peers;
use crate::raw::driver::Launch;
use crate::raw::params::{MOST_RANKS, MeetParams};

const THREADS: usize = 32;
const _: () = assert!(MOST_RANKS <= THREADS);

pub(crate) const KERNEL: Kernel = Kernel {
    name: "meet",
    source: include_str!("../kernels/meet.cu"),
    args_bytes: size_of::<MeetParams>(),
    writes: false,
    reads: 0,
    few: 0,
    rows: Tuning::new(THREADS, 1, 1),
    columns: Tuning::new(THREADS, 1, 1),
    columns_of_halves: Tuning::new(THREADS, 1, 1),
};

/// The one way in which it is compiled.
pub(crate) const SPECIAL: Special =
    Special { kernel: &KERNEL, dtype: Dtype::F32, vec: 1, columns: false, peers: true };

/// What a rank has done of the pass before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meet {
    /// Nothing: this kernel sends, too.
    SendsAndReceives,
    /// The kernel before has sent.
    Receives,
}

pub(crate) fn enqueue(cuda: &Cuda, queue: OpenQueue<'_>, peers: &Peers, meet: Meet) -> Result<(), CudaError> {
    let access = Access::begin(queue);
    let params = MeetParams { count: 0.0, sends: i32::from(meet == Meet::SendsAndReceives) };
    let peers = peers.params(&access)?;
    let launch = Launch { blocks: 1, threads: THREADS as u32, shared: 0, overlaps: false };
    access.launch(cuda.function(SPECIAL)?, launch, params, Some(peers))
}
