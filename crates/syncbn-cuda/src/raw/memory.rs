//! Device memory that is borrowed: where it lies, and what orders its uses.
//!
//! A use is told to whoever has to wait for it when work is enqueued, never when a borrow ends: a borrow may be forgotten.
//!
//! Deliberately not here: memory that this crate owns.

use std::marker::PhantomData;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, CudaView, CudaViewMut, DeviceSlice, SyncOnDrop};
use syncbn_core::Scalar;

use super::owned::Owned;
use crate::device::Cuda;

/// Where borrowed memory lies, and what orders its uses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region<'a> {
    pub(crate) pointer: u64,
    pub(crate) len: usize,
    /// The context's handle, as a number: compared, never followed.
    pub(crate) context: usize,
    pub(crate) order: Order<'a>,
}

/// What orders the uses of memory on several streams.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order<'a> {
    /// There are no elements to be used.
    Empty,
    /// The caller has promised it.
    Promised,
    /// cudarc: the stream already waits for what came before, and whatever uses the memory records the event, if it is tracked.
    Event { stream: &'a CudaStream, used: Option<&'a CudaEvent> },
    /// The memory's own account.
    Owned(&'a Owned),
}

/// Device memory that is read.
#[derive(Debug)]
pub struct Mem<'a, T: Scalar> {
    pub(crate) region: Region<'a>,
    marker: PhantomData<&'a [T]>,
}

/// Device memory that is written.
#[derive(Debug)]
pub struct MemMut<'a, T: Scalar> {
    pub(crate) region: Region<'a>,
    marker: PhantomData<&'a mut [T]>,
}

fn region<'a>(context: &CudaContext, pointer: u64, len: usize, order: Order<'a>) -> Region<'a> {
    Region { pointer, len, context: context.cu_ctx() as usize, order }
}

const EMPTY: Region<'static> = Region { pointer: 0, len: 0, context: 0, order: Order::Empty };

/// The event that cudarc would record at the end of the borrow.
fn event<'a>(guard: SyncOnDrop<'a>, stream: &'a CudaStream) -> Order<'a> {
    let used = match &guard {
        SyncOnDrop::Record(Some((event, _))) => Some(*event),
        SyncOnDrop::Record(None) | SyncOnDrop::Sync(_) => None,
    };
    // Every use records it; until there is one, there is nothing to record.
    std::mem::forget(guard);
    Order::Event { stream, used }
}

impl<'a, T: Scalar> Mem<'a, T> {
    /// Borrows a view of cudarc's, to be used on this stream: it waits for the view's last write, and the view's memory
    /// waits for this read.
    #[must_use]
    pub fn new(view: CudaView<'a, T>, stream: &'a CudaStream) -> Self {
        let (context, len) = (view.stream().context().clone(), view.len());
        let (pointer, guard) = view.view_ptr(stream);
        Self { region: region(&context, pointer, len, event(guard, stream)), marker: PhantomData }
    }

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
    /// Borrows a view of cudarc's, to be used on this stream: it waits for the view's last use, and the view's memory
    /// waits for this write.
    #[must_use]
    pub fn new(view: CudaViewMut<'a, T>, stream: &'a CudaStream) -> Self {
        let (context, len) = (view.stream().context().clone(), view.len());
        let (pointer, guard) = view.view_ptr_mut(stream);
        Self { region: region(&context, pointer, len, event(guard, stream)), marker: PhantomData }
    }

    /// Borrows memory of another library (`DLPack`, `PyTorch`, candle): `len` elements from a device pointer on.
    ///
    /// # Safety
    /// As [`Mem::from_raw`], and: the memory is writable, and nothing else reads or writes it until the work enqueued with
    /// it has run.
    #[must_use]
    pub unsafe fn from_raw(cuda: &Cuda, pointer: u64, len: usize) -> Self {
        Self { region: region(cuda.context(), pointer, len, Order::Promised), marker: PhantomData }
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
