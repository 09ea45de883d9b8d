//! Device memory that is borrowed: its address, and what orders its uses.
//!
//! A use is recorded when work is enqueued, not when a borrow ends, because a borrow may be forgotten.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, CudaView, CudaViewMut, DeviceRepr, DeviceSlice, SyncOnDrop,
};
use syncbn_core::Scalar;

use super::driver;
use super::owned::{Order, Owned, Region};
use super::queue::thread_of;
use crate::error::CudaError;

/// Device memory that is read.
#[derive(Debug)]
pub struct Mem<'a, T: Scalar> {
    pub(crate) region: Region<'a>,
    pub(super) marker: PhantomData<&'a [T]>,
}

/// Device memory that is written.
#[derive(Debug)]
pub struct MemMut<'a, T: Scalar> {
    pub(crate) region: Region<'a>,
    pub(super) marker: PhantomData<&'a mut [T]>,
}

/// Memory of cudarc's for at least `len` elements, at least one, with whatever values it has: for kernels that write all of it. A
/// copy to the host before that gives any numbers.
///
/// # Errors
///
/// [`CudaError::OutOfMemory`].
pub fn allocate<T: Scalar + DeviceRepr>(
    stream: &Arc<CudaStream>,
    len: usize,
) -> Result<CudaSlice<T>, CudaError> {
    let bytes = len.max(1).checked_mul(size_of::<T>()).ok_or(CudaError::OutOfMemory { bytes: usize::MAX })?;
    // SAFETY: every pattern of bits is a value of a `Scalar`.
    unsafe { stream.alloc(len.max(1)) }.map_err(|source| driver::allocation(bytes, source))
}

pub(super) fn region<'a>(context: &CudaContext, pointer: u64, len: usize, order: Order<'a>) -> Region<'a> {
    Region { pointer, len, context: context.cu_ctx() as usize, order }
}

const EMPTY: Region<'static> = Region { pointer: 0, len: 0, context: 0, order: Order::Empty };

/// The event that cudarc would record at the end of the borrow.
fn event<'a>(guard: SyncOnDrop<'a>, stream: &'a CudaStream) -> Order<'a> {
    let used = match &guard {
        SyncOnDrop::Record(Some((event, _))) => Some(*event),
        SyncOnDrop::Record(None) | SyncOnDrop::Sync(_) => None,
    };
    // Every use records it.
    std::mem::forget(guard);
    Order::Event { stream, thread: thread_of(stream), used }
}

impl<'a, T: Scalar> Mem<'a, T> {
    /// Borrows a view of cudarc's, for use on this stream. The stream waits for the last write to the view, and later writes wait
    /// for this read.
    #[must_use]
    pub fn new(view: CudaView<'a, T>, stream: &'a CudaStream) -> Self {
        let (context, len) = (view.stream().context().clone(), view.len());
        let (pointer, guard) = view.view_ptr(stream);
        Self { region: region(&context, pointer, len, event(guard, stream)), marker: PhantomData }
    }

    pub(crate) fn empty() -> Self {
        Self { region: EMPTY, marker: PhantomData }
    }

    /// `len` elements from the beginning of memory that has as many.
    pub(crate) fn of(owned: &'a Owned, len: usize) -> Self {
        Self { region: owned.region(len), marker: PhantomData }
    }

    pub(crate) fn reborrow(&self) -> Mem<'_, T> {
        Mem { region: self.region, marker: PhantomData }
    }
}

impl<'a, T: Scalar> MemMut<'a, T> {
    /// Borrows a view of cudarc's, for use on this stream. The stream waits for the last use of the view, and later uses wait for
    /// this write.
    #[must_use]
    pub fn new(view: CudaViewMut<'a, T>, stream: &'a CudaStream) -> Self {
        let (context, len) = (view.stream().context().clone(), view.len());
        let (pointer, guard) = view.view_ptr_mut(stream);
        Self { region: region(&context, pointer, len, event(guard, stream)), marker: PhantomData }
    }

    pub(crate) fn empty() -> Self {
        Self { region: EMPTY, marker: PhantomData }
    }

    /// `len` elements from the beginning of memory that has as many.
    pub(crate) fn of(owned: &'a mut Owned, len: usize) -> Self {
        Self { region: owned.region(len), marker: PhantomData }
    }

    pub(crate) fn reborrow_mut(&mut self) -> MemMut<'_, T> {
        MemMut { region: self.region, marker: PhantomData }
    }

    pub(crate) fn as_mem(&self) -> Mem<'_, T> {
        Mem { region: self.region, marker: PhantomData }
    }
}
