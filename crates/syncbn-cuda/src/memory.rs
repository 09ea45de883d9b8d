//! The memory that a layer owns on the device.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::Scalar;

use crate::access::{Access, OpenQueue};
use crate::error::CudaError;
use crate::raw::memory::{Mem, MemMut};
use crate::raw::owned::Owned;
use crate::raw::transfer;

/// Device memory that a layer owns: its parameters and running statistics. Freeing it waits for the device.
///
/// It may be used on any stream: work that uses it waits, on the device, for work on other streams that uses it. An optimiser on the
/// device gets its pointer from [`device_ptr_mut`](Self::device_ptr_mut).
#[derive(Debug)]
pub struct Buffer<T: Scalar> {
    owned: Owned,
    len: usize,
    marker: PhantomData<T>,
}

impl<T: Scalar> Buffer<T> {
    pub(crate) fn upload(stream: &Arc<CudaStream>, values: &[T]) -> Result<Self, CudaError> {
        let owned = Owned::new(stream.context(), size_of_val(values))?;
        let mut buffer = Self { owned, len: values.len(), marker: PhantomData };
        transfer::write(stream, &mut buffer.mem_mut(), values)?;
        Ok(buffer)
    }

    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device's address of the first element, for a kernel on this queue that reads the elements.
    ///
    /// The queue waits for the last write on other streams, and writes that are enqueued later wait for the queue. So enqueue the
    /// kernel before anything else uses the buffer. Launching it is where `unsafe` begins: the address is good for
    /// [`len`](Self::len) elements of type `T`, as long as the buffer lives.
    ///
    /// # Errors
    ///
    /// [`CudaError::OtherQueue`]: the queue is another device's; [`CudaError::Capturing`], [`CudaError::Uncaptured`]: it captures a graph.
    pub fn device_ptr(&self, queue: &Arc<CudaStream>) -> Result<u64, CudaError> {
        Access::begin(OpenQueue::new(queue)?).read("a buffer", self.mem().region, self.len)
    }

    /// The device's address of the first element, for a kernel on this queue that reads and writes the elements.
    ///
    /// The queue waits for all uses on other streams, and uses that are enqueued later wait for the queue. So enqueue the kernel
    /// before anything else uses the buffer. Launching it is where `unsafe` begins: the address is good for [`len`](Self::len)
    /// elements of type `T`, as long as the buffer lives.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    ///
    /// use syncbn_core::SyncBatchNorm;
    /// use syncbn_cuda::Cuda;
    /// use syncbn_cuda::cudarc::driver::{CudaFunction, CudaStream, LaunchConfig, PushKernelArg};
    ///
    /// /// `step` is a kernel `(float* weight, const float* gradient, unsigned n)`.
    /// fn update(
    ///     stream: &Arc<CudaStream>,
    ///     norm: &mut SyncBatchNorm<Cuda, f32>,
    ///     gradient: u64,
    ///     step: &CudaFunction,
    /// ) -> Result<(), Box<dyn std::error::Error>> {
    ///     let Some(weight) = norm.weight_mut() else { return Ok(()) };
    ///     let count = u32::try_from(weight.len())?;
    ///     let weight = weight.device_ptr_mut(stream)?;
    ///     let mut launch = stream.launch_builder(step);
    ///     launch.arg(&weight).arg(&gradient).arg(&count);
    ///     // SAFETY: the kernel takes these arguments, and touches `count` elements of each.
    ///     unsafe { launch.launch(LaunchConfig::for_num_elems(count)) }?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`device_ptr`](Self::device_ptr).
    pub fn device_ptr_mut(&mut self, queue: &Arc<CudaStream>) -> Result<u64, CudaError> {
        let len = self.len;
        Access::begin(OpenQueue::new(queue)?).write("a buffer", self.mem_mut().region, len)
    }

    /// Enqueues a copy of another buffer of the same length and context.
    ///
    /// # Errors
    ///
    /// [`CudaError::Length`]; and as [`device_ptr`](Self::device_ptr).
    pub fn copy_from(&mut self, queue: &Arc<CudaStream>, from: &Self) -> Result<(), CudaError> {
        transfer::copy(queue, &mut self.mem_mut(), &from.mem())
    }

    pub(crate) fn mem(&self) -> Mem<'_, T> {
        Mem::of(&self.owned, self.len)
    }

    pub(crate) fn mem_mut(&mut self) -> MemMut<'_, T> {
        MemMut::of(&mut self.owned, self.len)
    }
}
