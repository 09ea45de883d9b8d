//! Memory of other libraries, whose lifetime and order the caller promises.

use std::marker::PhantomData;

use syncbn_core::Scalar;

use super::memory::{Mem, MemMut, region};
use super::owned::Order;
use crate::device::Cuda;

impl<T: Scalar> Mem<'_, T> {
    /// Borrows memory of another library (`DLPack`, `PyTorch`, candle): `len` elements from a device pointer on.
    ///
    /// # Safety
    /// - Lifetime: the memory stays allocated for `'a` and until the work enqueued with it has run.
    /// - Device: it belongs to `cuda`'s device, is readable there, and is aligned for `T`.
    /// - Stream: what wrote it runs before the queue that it is used with (same stream, or an event).
    /// - Aliasing: nothing writes it until the work enqueued with it has run.
    #[must_use]
    pub unsafe fn from_raw(cuda: &Cuda, pointer: u64, len: usize) -> Self {
        Self { region: region(cuda.context(), pointer, len, Order::Promised), marker: PhantomData }
    }
}

impl<T: Scalar> MemMut<'_, T> {
    /// Borrows memory of another library (`DLPack`, `PyTorch`, candle): `len` elements from a device pointer on.
    ///
    /// # Safety
    /// As [`Mem::from_raw`], and: the memory is writable, and nothing else reads or writes it until the work enqueued with
    /// it has run.
    #[must_use]
    pub unsafe fn from_raw(cuda: &Cuda, pointer: u64, len: usize) -> Self {
        Self { region: region(cuda.context(), pointer, len, Order::Promised), marker: PhantomData }
    }
}
