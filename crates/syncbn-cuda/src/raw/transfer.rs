//! Copies between host and device, copies on the device, and sums over devices.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::{Param, Scalar};

use super::driver;
use super::memory::{Mem, MemMut};
use super::nccl::Comm;
use super::owned::Order;
use crate::access::{Access, OpenQueue};
use crate::error::CudaError;

const MEMORY: &str = "the memory that is copied";

/// Waits for the queue, and copies the memory to as many values.
pub(crate) fn read<T: Scalar>(
    queue: &Arc<CudaStream>,
    mem: &Mem<'_, T>,
    values: &mut [T],
) -> Result<(), CudaError> {
    let access = Access::waiting(queue, "a copy to the host")?;
    let pointer = access.read_once(MEMORY, mem.region, values.len())?;
    // SAFETY: the memory has as many elements, on the queue's device; it is borrowed until the copy has been waited for, and the
    // queue comes after what wrote it.
    access.enqueue(|queue| unsafe { driver::download(queue, pointer, values) })
}

/// Overwrites the memory with as many values, and waits until it has them.
pub(crate) fn write<T: Scalar>(
    queue: &Arc<CudaStream>,
    mem: &mut MemMut<'_, T>,
    values: &[T],
) -> Result<(), CudaError> {
    let mut access = Access::waiting(queue, "a copy from the host")?;
    if mem.region.len != values.len() {
        return Err(CudaError::Length { what: MEMORY, expected: mem.region.len, got: values.len() });
    }
    let pointer = access.write(MEMORY, mem.region, values.len())?;
    // SAFETY: the memory has as many elements, on the queue's device; it is borrowed mutably until the copy has been waited for, and
    // the queue comes after its other uses.
    access.enqueue(|queue| unsafe { driver::upload(queue, pointer, values) })?;
    if let Order::Owned(owned) = mem.region.order {
        owned.is_idle();
    }
    Ok(())
}

/// Enqueues a copy of as many elements.
pub(crate) fn copy<T: Scalar>(
    queue: &Arc<CudaStream>,
    to: &mut MemMut<'_, T>,
    from: &Mem<'_, T>,
) -> Result<(), CudaError> {
    let mut access = Access::begin(OpenQueue::new(queue)?);
    let len = to.region.len;
    if from.region.len != len {
        return Err(CudaError::Length { what: MEMORY, expected: len, got: from.region.len });
    }
    let (to, from) = (access.write(MEMORY, to.region, len)?, access.read(MEMORY, from.region, len)?);
    // SAFETY: both have as many elements, on the queue's device, and are not the same, since one is borrowed mutably; the queue
    // comes after their other uses, and those that follow come after the queue.
    access.enqueue(|queue| unsafe { driver::copy(queue, to, from, len * size_of::<T>()) })
}

/// Enqueues the sum of all elements over the ranks, in place. The communicator's device is the queue's, and current; the caller holds
/// the group's gate.
pub(crate) fn sum<P: Param>(
    queue: OpenQueue<'_>,
    comm: &Comm,
    mem: &mut MemMut<'_, P>,
) -> Result<(), CudaError> {
    let mut access = Access::begin(queue);
    let len = mem.region.len;
    let pointer = access.write("the numbers to be summed", mem.region, len)?;
    // SAFETY: the memory has as many elements of that type, on the queue's device, and is borrowed mutably; the queue comes after its
    // other uses, and those that follow come after the queue. The gate keeps other calls away.
    access.enqueue(|queue| unsafe { comm.all_reduce_sum::<P>(pointer, len, queue) }.map_err(CudaError::from))
}
