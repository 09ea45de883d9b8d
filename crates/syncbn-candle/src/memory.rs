//! Candle's memory on the CPU, borrowed.

use std::cell::Cell;
use std::marker::PhantomData;

use candle_core::{CpuStorage, Error, InplaceOp1, Layout, Result, Tensor, WithDType};

/// The elements of a contiguous tensor.
pub(crate) fn slice<'a, T: WithDType>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let (from, to) = offsets(layout)?;
    T::cpu_storage_as_slice(storage)?.get(from..to).ok_or_else(|| not_contiguous(layout))
}

fn offsets(layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| not_contiguous(layout))
}

fn not_contiguous(layout: &Layout) -> Error {
    Error::RequiresContiguous { op: "sync-batch-norm" }.context(format!("layout {layout:?}"))
}

/// A type whose storage can be lent to be written.
pub(crate) trait WithStorageMut: WithDType {
    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;
}

macro_rules! with_storage_mut {
    ($type:ty, $variant:ident) => {
        impl WithStorageMut for $type {
            fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
                if let CpuStorage::$variant(values) = storage { Some(values) } else { None }
            }
        }
    };
}

with_storage_mut!(f32, F32);
with_storage_mut!(f64, F64);
with_storage_mut!(i64, I64);

/// Lends the elements of a contiguous tensor on the CPU to be written in place.
pub(crate) fn with_slice_mut<T: WithStorageMut, R>(
    tensor: &Tensor,
    job: impl FnOnce(&mut [T]) -> Result<R>,
) -> Result<R> {
    let in_place = InPlace { job: Cell::new(Some(job)), result: Cell::new(None), values: PhantomData };
    tensor.inplace_op1(&in_place)?;
    in_place.result.take().ok_or_else(|| Error::Msg("the operation did not run".into()))
}

struct InPlace<T, F, R> {
    job: Cell<Option<F>>,
    result: Cell<Option<R>>,
    values: PhantomData<fn(T)>,
}

impl<T: WithStorageMut, R, F: FnOnce(&mut [T]) -> Result<R>> InplaceOp1 for InPlace<T, F, R> {
    fn name(&self) -> &'static str {
        "sync-batch-norm-in-place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (from, to) = offsets(layout)?;
        let values = T::vec_mut(storage).and_then(|values| values.get_mut(from..to));
        let (Some(values), Some(job)) = (values, self.job.take()) else {
            return Err(not_contiguous(layout));
        };
        self.result.set(Some(job(values)?));
        Ok(())
    }
}
