//! A tensor's memory, lent to be written in place.

use std::cell::Cell;
use std::marker::PhantomData;

use candle_core::{CpuStorage, CudaStorage, Error, InplaceOp1, Layout, Result, Tensor};

use crate::device::{OnDevice, of_mut};
use crate::value::Value;

/// Lends the elements of a contiguous tensor, with its device's queue.
pub(crate) fn with_mem_mut<B: OnDevice, T: Value, R>(
    tensor: &Tensor,
    job: impl FnOnce(&B::Queue, B::MemMut<'_, T>) -> Result<R>,
) -> Result<R> {
    let in_place =
        InPlace { job: Cell::new(Some(job)), result: Cell::new(None), values: PhantomData::<fn(B, T)> };
    tensor.inplace_op1(&in_place)?;
    in_place.result.take().ok_or_else(|| Error::Msg("the operation did not run".into()))
}

struct InPlace<B, T, F, R> {
    job: Cell<Option<F>>,
    result: Cell<Option<R>>,
    values: PhantomData<fn(B, T)>,
}

impl<B: OnDevice, T: Value, R, F: FnOnce(&B::Queue, B::MemMut<'_, T>) -> Result<R>> InPlace<B, T, F, R> {
    fn run(&self, memory: &mut B::Memory, layout: &Layout) -> Result<()> {
        let queue = B::queue(memory);
        let values = B::lend_mut(memory, layout, &queue)?;
        if let Some(job) = self.job.take() {
            self.result.set(Some(job(&queue, values)?));
        }
        Ok(())
    }
}

impl<B: OnDevice, T: Value, R, F: FnOnce(&B::Queue, B::MemMut<'_, T>) -> Result<R>> InplaceOp1
    for InPlace<B, T, F, R>
{
    fn name(&self) -> &'static str {
        "sync-batch-norm-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        self.run(of_mut::<B>(storage)?, layout)
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        self.run(of_mut::<B>(storage)?, layout)
    }
}
