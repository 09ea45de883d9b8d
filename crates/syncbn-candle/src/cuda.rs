//! Candle's memory on CUDA: cudarc's slices and stream, borrowed. Nothing is copied, and nothing waits.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};
use candle_core::cuda_backend::{CudaDType, CudaStorage};
use candle_core::{Device, Layout, Result, Storage};
use syncbn_core::SavedStatistics;
use syncbn_cuda::{Cuda, Mem, MemMut, allocate};

use crate::device::{OnDevice, not_contiguous, range};
use crate::error::Error;
use crate::group::Group;
use crate::op::Saved;
use crate::value::Value;

thread_local! {
    /// The backends that layers of this thread use, one for each context: candle's stream is, by default, the thread's own, so
    /// what a backend keeps for later passes must not come from another thread's.
    static BACKENDS: RefCell<Vec<Cuda>> = const { RefCell::new(Vec::new()) };
}

impl OnDevice for Cuda {
    type Memory = CudaStorage;
    type New<T: Value> = CudaSlice<T>;

    fn backend(device: &Device) -> Result<(Self, Arc<CudaStream>)> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let context = stream.context();
        BACKENDS.with_borrow_mut(|backends| {
            if let Some(cuda) = backends.iter().find(|cuda| cuda.context().cu_ctx() == context.cu_ctx()) {
                return Ok((cuda.clone(), stream.clone()));
            }
            let cuda = Cuda::new(context.clone()).map_err(Error::from)?;
            backends.push(cuda.clone());
            Ok((cuda, stream.clone()))
        })
    }
    fn group(group: &Group) -> Option<&syncbn_core::Group<Self>> {
        group.cuda.as_ref()
    }
    fn slot(saved: &Saved) -> &OnceLock<SavedStatistics<Self>> {
        &saved.0.cuda
    }

    fn queue(memory: &CudaStorage) -> Arc<CudaStream> {
        memory.device.cuda_stream()
    }
    fn lend<'a, T: Value>(
        memory: &'a CudaStorage,
        layout: &Layout,
        queue: &'a Arc<CudaStream>,
    ) -> Result<Mem<'a, T>> {
        let view = <T as CudaDType>::as_cuda_slice(memory)?.try_slice(range(layout)?);
        view.map(|view| Mem::new(view, queue)).ok_or_else(|| not_contiguous(layout))
    }
    fn lend_mut<'a, T: Value>(
        memory: &'a mut CudaStorage,
        layout: &Layout,
        queue: &'a Arc<CudaStream>,
    ) -> Result<MemMut<'a, T>> {
        let view = <T as CudaDType>::as_cuda_slice_mut(memory)?.try_slice_mut(range(layout)?);
        view.map(|view| MemMut::new(view, queue)).ok_or_else(|| not_contiguous(layout))
    }

    fn make<T: Value>(beside: &CudaStorage, len: usize) -> Result<CudaSlice<T>> {
        Ok(allocate(&beside.device.cuda_stream(), len).map_err(Error::from)?)
    }
    fn lend_new<'a, T: Value>(new: &'a mut CudaSlice<T>, queue: &'a Arc<CudaStream>) -> MemMut<'a, T> {
        MemMut::new(new.as_view_mut(), queue)
    }
    fn finish<T: Value>(new: CudaSlice<T>, beside: &CudaStorage) -> CudaStorage {
        <T as CudaDType>::wrap_cuda_slice(new, beside.device.clone())
    }
    fn wrap(memory: CudaStorage) -> Storage {
        Storage::Cuda(memory)
    }
}
