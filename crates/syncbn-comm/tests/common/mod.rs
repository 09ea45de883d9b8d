//! What the tests of thread ranks share.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

pub(crate) mod tcp;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use syncbn_comm::{ThreadComm, ThreadGroup};
use syncbn_core::{CollectiveId, CollectiveKind, CommError, Dtype, HostCommunicator, Pass};

/// A time-out that no test waits for, even on a busy machine.
pub(crate) const PATIENT: Duration = Duration::from_secs(600);

/// Far below [`PATIENT`], and far above what anything but waiting takes.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(60);

pub(crate) fn size(world_size: usize) -> NonZeroUsize {
    NonZeroUsize::new(world_size).unwrap()
}

/// A group whose ranks would wait for [`PATIENT`].
pub(crate) fn group<const N: usize>() -> [ThreadComm; N] {
    ThreadGroup::new(size(N), PATIENT).unwrap().try_into().unwrap()
}

/// The backward sum of a layer: 2 numbers per channel.
pub(crate) fn backward(layer: &str, channels: usize) -> CollectiveId {
    pass(layer, Pass::Backward, channels)
}

/// The sum of a layer's pass.
pub(crate) fn pass(layer: &str, pass: Pass, channels: usize) -> CollectiveId {
    CollectiveId::new(layer, pass.message_len(channels, Dtype::F32)).with_kind(CollectiveKind::Pass(pass))
}

/// Sums `values` in layer `bn`.
pub(crate) fn sum<const N: usize>(comm: &ThreadComm, mut values: [f64; N]) -> Result<[f64; N], CommError> {
    comm.all_reduce_sum(&backward("bn", N / 2), &mut values)?;
    Ok(values)
}

/// Sums zeros as `id` says: the failure, if it fails.
pub(crate) fn attempt(comm: &ThreadComm, id: &CollectiveId) -> Result<(), CommError> {
    comm.all_reduce_sum(id, &mut vec![0.0; id.length])
}

/// What `work` returns, provided that it did not wait for a time-out.
pub(crate) fn at_once<R>(work: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < AT_ONCE, "took {:?}", start.elapsed());
    result
}
