//! Device memory, borrowed from the caller or owned by a layer.
//!
//! Deliberately not here: tracking of its own. Memory that cudarc tracks is tracked on, as long as the borrow lasts.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, CudaView, CudaViewMut, DeviceSlice, SyncOnDrop};
use syncbn_core::Scalar;

use super::driver::{self, DeviceMemory};
use super::nccl::Comm;
use crate::device::Cuda;
use crate::error::CudaError;

/// Where borrowed memory lies, and where it may be used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) pointer: u64,
    pub(crate) len: usize,
    /// The context's handle, as a number: compared, never followed.
    pub(crate) context: usize,
    /// The only stream that may use it, as a number; `None`: the caller has promised.
    pub(crate) stream: Option<usize>,
}

/// Device memory that is read.
#[derive(Debug)]
pub struct Mem<'a, T: Scalar> {
    pub(crate) place: Place,
    _guard: Option<SyncOnDrop<'a>>,
    marker: PhantomData<&'a [T]>,
}

/// Device memory that is written.
#[derive(Debug)]
pub struct MemMut<'a, T: Scalar> {
    pub(crate) place: Place,
    _guard: Option<SyncOnDrop<'a>>,
    marker: PhantomData<&'a mut [T]>,
}

fn place(context: &CudaContext, pointer: u64, len: usize, stream: Option<&CudaStream>) -> Place {
    Place { pointer, len, context: context.cu_ctx() as usize, stream: stream.map(|s| s.cu_stream() as usize) }
}

impl<'a, T: Scalar> Mem<'a, T> {
    /// Borrows a view of cudarc's, to be used on this stream: it waits for the view's last write, and the view's memory
    /// waits for this read.
    #[must_use]
    pub fn new(view: CudaView<'a, T>, stream: &'a CudaStream) -> Self {
        let (context, len) = (view.stream().context().clone(), view.len());
        let (pointer, guard) = view.view_ptr(stream);
        Self { place: place(&context, pointer, len, Some(stream)), _guard: Some(guard), marker: PhantomData }
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
        Self { place: place(cuda.context(), pointer, len, None), _guard: None, marker: PhantomData }
    }

    pub(crate) fn reborrow(&self) -> Mem<'_, T> {
        Mem { place: self.place, _guard: None, marker: PhantomData }
    }
}

impl<'a, T: Scalar> MemMut<'a, T> {
    /// Borrows a view of cudarc's, to be used on this stream: it waits for the view's last use, and the view's memory
    /// waits for this write.
    #[must_use]
    pub fn new(view: CudaViewMut<'a, T>, stream: &'a CudaStream) -> Self {
        let (context, len) = (view.stream().context().clone(), view.len());
        let (pointer, guard) = view.view_ptr_mut(stream);
        Self { place: place(&context, pointer, len, Some(stream)), _guard: Some(guard), marker: PhantomData }
    }

    /// Borrows memory of another library (`DLPack`, `PyTorch`, candle): `len` elements from a device pointer on.
    ///
    /// # Safety
    /// As [`Mem::from_raw`], and: the memory is writable, and nothing else reads or writes it until the work enqueued with
    /// it has run.
    #[must_use]
    pub unsafe fn from_raw(cuda: &Cuda, pointer: u64, len: usize) -> Self {
        Self { place: place(cuda.context(), pointer, len, None), _guard: None, marker: PhantomData }
    }

    pub(crate) fn reborrow_mut(&mut self) -> MemMut<'_, T> {
        MemMut { place: self.place, _guard: None, marker: PhantomData }
    }

    pub(crate) fn as_mem(&self) -> Mem<'_, T> {
        Mem { place: self.place, _guard: None, marker: PhantomData }
    }
}

/// Device memory that a layer owns. Freeing it waits for the device.
#[derive(Debug)]
pub struct Buffer<T: Scalar> {
    memory: DeviceMemory,
    len: usize,
    marker: PhantomData<T>,
}

impl<T: Scalar> Buffer<T> {
    pub(crate) fn upload(stream: &CudaStream, values: &[T]) -> Result<Self, CudaError> {
        let memory = DeviceMemory::new(stream.context(), size_of_val(values))?;
        let mut buffer = Self { memory, len: values.len(), marker: PhantomData };
        buffer.write(stream, values)?;
        Ok(buffer)
    }

    pub(crate) fn write(&mut self, stream: &CudaStream, values: &[T]) -> Result<(), CudaError> {
        if values.len() != self.len {
            return Err(CudaError::Length { expected: self.len, got: values.len() });
        }
        // SAFETY: as long as the values; borrowed mutably, and work on this stream comes before the copy.
        unsafe { driver::upload(stream, self.memory.pointer(), values) }
    }

    pub(crate) fn download(&self, stream: &CudaStream) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::default(); self.len];
        // SAFETY: as long as the values, all written by upload; work on this stream comes before the copy.
        unsafe { driver::download(stream, self.memory.pointer(), &mut values) }?;
        Ok(values)
    }

    /// Enqueues a copy of another buffer of the same length and context.
    pub fn copy_from(&mut self, stream: &CudaStream, from: &Self) -> Result<(), CudaError> {
        if self.len != from.len {
            return Err(CudaError::Length { expected: self.len, got: from.len });
        }
        let same = |memory: &DeviceMemory| memory.context().cu_ctx() == stream.context().cu_ctx();
        if !same(&self.memory) || !same(&from.memory) {
            return Err(CudaError::OtherDevice { tensor: "a buffer", ordinal: stream.context().ordinal() });
        }
        driver::copy(stream, &mut self.memory, &from.memory, self.len * size_of::<T>())
    }

    pub(crate) fn mem(&self) -> Mem<'_, T> {
        Mem { place: self.place(), _guard: None, marker: PhantomData }
    }

    pub(crate) fn mem_mut(&mut self) -> MemMut<'_, T> {
        MemMut { place: self.place(), _guard: None, marker: PhantomData }
    }

    fn place(&self) -> Place {
        place(self.memory.context(), self.memory.pointer(), self.len, None)
    }
}

/// A piece of scratch: `f64` numbers and counters. Freed when nothing on the device can use it any more.
#[derive(Debug)]
pub(crate) struct Scratch {
    memory: DeviceMemory,
    bytes: usize,
}

impl Scratch {
    pub(crate) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, CudaError> {
        Ok(Self { memory: DeviceMemory::new(context, bytes)?, bytes })
    }

    pub(crate) fn zeroed(stream: &CudaStream, bytes: usize) -> Result<Self, CudaError> {
        let mut scratch = Self::new(stream.context(), bytes)?;
        driver::zero(stream, &mut scratch.memory, bytes)?;
        Ok(scratch)
    }

    pub(crate) fn pointer(&self) -> u64 {
        self.memory.pointer()
    }

    /// Its first numbers, after all work on the stream.
    pub(crate) fn read(&self, stream: &CudaStream, values: &mut [f64]) -> Result<(), CudaError> {
        self.check(values.len())?;
        // SAFETY: the length was checked; the scratch is used on this stream only.
        unsafe { driver::download(stream, self.pointer(), values) }
    }

    /// Overwrites its first numbers, after all work on the stream.
    pub(crate) fn write(&mut self, stream: &CudaStream, values: &[f64]) -> Result<(), CudaError> {
        self.check(values.len())?;
        // SAFETY: the length was checked; the scratch is borrowed mutably and used on this stream only.
        unsafe { driver::upload(stream, self.pointer(), values) }
    }

    /// Enqueues the sum of its first `count` numbers over the ranks, in place. The communicator's device is the stream's, and
    /// current.
    pub(crate) fn all_reduce(
        &mut self,
        comm: &Comm,
        count: usize,
        stream: &CudaStream,
    ) -> Result<(), CudaError> {
        self.check(count)?;
        // SAFETY: the length was checked; the scratch is borrowed mutably, used on this stream only, and freed after a wait
        // for the device. The group has compared devices and holds its gate.
        Ok(unsafe { comm.all_reduce_sum(self.pointer(), count, stream) }?)
    }

    fn check(&self, got: usize) -> Result<(), CudaError> {
        let expected = self.bytes / size_of::<f64>();
        if got <= expected { Ok(()) } else { Err(CudaError::Length { expected, got }) }
    }
}
