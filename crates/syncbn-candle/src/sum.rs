//! Sums of a caller's numbers over the ranks, where the numbers are.

use candle_core::{Device, Result, Tensor};
use syncbn_core::Param;
use syncbn_cpu::Cpu;

use crate::device::OnDevice;
use crate::error::Error;
use crate::group::Group;
use crate::memory::with_mem_mut;
use crate::value::Value;

/// Replaces the numbers of a contiguous tensor by their sums over the ranks.
pub(crate) fn all_reduce<P: Param + Value>(
    group: &Group,
    operation: &'static str,
    name: &str,
    numbers: &Tensor,
) -> Result<()> {
    match numbers.device() {
        Device::Cpu => all_reduce_on::<Cpu, P>(group, operation, name, numbers),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => all_reduce_on::<syncbn_cuda::Cuda, P>(group, operation, name, numbers),
        other => Err(Error::OutOfReach { operation, got: other.location() }.into()),
    }
}

fn all_reduce_on<B: OnDevice, P: Param + Value>(
    group: &Group,
    operation: &'static str,
    name: &str,
    numbers: &Tensor,
) -> Result<()> {
    let got = numbers.device().location();
    let group = B::group(group).ok_or(Error::OutOfReach { operation, got })?;
    let (backend, _) = B::backend(numbers.device())?;
    with_mem_mut::<B, P, _>(numbers, |queue, numbers| {
        let group_error = |source| Error::Group { operation, source }.into();
        group.all_reduce(name, &backend, queue, numbers).map_err(group_error)
    })
}
