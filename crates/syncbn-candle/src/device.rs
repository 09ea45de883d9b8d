//! What a backend has to know of candle's memory: where a tensor lies, how it is lent to kernels, and how a new one is made.

use std::any::Any;
use std::ops::Range;
use std::sync::OnceLock;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{Device, DeviceLocation, Error, Layout, Result, Storage};
use syncbn_core::{Kernels, SavedStatistics, bf16, f16};

use crate::group::Group;
use crate::op::Saved;
use crate::value::Value;

/// Named in candle's errors.
pub(crate) const OP: &str = "sync-batch-norm";

/// A backend whose kernels work on memory of candle's.
pub(crate) trait OnDevice: Kernels<f16> + Kernels<bf16> + Kernels<f32> + Kernels<f64> + Clone {
    /// Candle's memory of a tensor on this device.
    type Memory: BackendStorage + 'static;
    /// New memory of this device, to become a tensor's.
    type New<T: Value>;

    /// The backend of a device of this kind, and its queue.
    fn backend(device: &Device) -> Result<(Self, Self::Queue)>;
    /// This kind's membership of the group, where the group reaches it.
    fn group(group: &Group) -> Option<&syncbn_core::Group<Self>>;
    /// What a forward pass has saved on this device.
    fn slot(saved: &Saved) -> &OnceLock<SavedStatistics<Self>>;

    /// The queue of a tensor's device.
    fn queue(memory: &Self::Memory) -> Self::Queue;
    /// Lends the elements of a contiguous tensor.
    fn lend<'a, T: Value>(
        memory: &'a Self::Memory,
        layout: &Layout,
        queue: &'a Self::Queue,
    ) -> Result<Self::Mem<'a, T>>;
    /// Lends the elements of a contiguous tensor to be written.
    fn lend_mut<'a, T: Value>(
        memory: &'a mut Self::Memory,
        layout: &Layout,
        queue: &'a Self::Queue,
    ) -> Result<Self::MemMut<'a, T>>;

    /// New memory beside a tensor's, for kernels that write all of it.
    fn make<T: Value>(beside: &Self::Memory, len: usize) -> Result<Self::New<T>>;
    /// Lends new memory.
    fn lend_new<'a, T: Value>(new: &'a mut Self::New<T>, queue: &'a Self::Queue) -> Self::MemMut<'a, T>;
    /// New memory as a tensor's.
    fn finish<T: Value>(new: Self::New<T>, beside: &Self::Memory) -> Self::Memory;

    /// Memory of this kind as candle holds it.
    fn wrap(memory: Self::Memory) -> Storage;
}

/// A tensor as candle gives it to an operation.
pub(crate) type Given<'a, B> = (&'a <B as OnDevice>::Memory, &'a Layout);

/// Where a contiguous tensor begins and ends in its memory.
pub(crate) fn range(layout: &Layout) -> Result<Range<usize>> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| not_contiguous(layout))?;
    Ok(from..to)
}

pub(crate) fn not_contiguous(layout: &Layout) -> Error {
    Error::RequiresContiguous { op: OP }.context(format!("layout {layout:?}"))
}

/// Memory of some device, as that of this one.
pub(crate) fn of<B: OnDevice>(memory: &(impl BackendStorage + 'static)) -> Result<&B::Memory> {
    (memory as &dyn Any).downcast_ref().ok_or_else(|| elsewhere(memory.device().location()))
}

/// The same of memory that is written.
pub(crate) fn of_mut<B: OnDevice>(memory: &mut (impl BackendStorage + 'static)) -> Result<&mut B::Memory> {
    let location = memory.device().location();
    (memory as &mut dyn Any).downcast_mut().ok_or_else(|| elsewhere(location))
}

/// Memory of this device, as that of the device that candle expects.
pub(crate) fn into<B: OnDevice, M: BackendStorage + 'static>(memory: B::Memory) -> Result<M> {
    let location = memory.device().location();
    let memory = (&mut Some(memory) as &mut dyn Any).downcast_mut().and_then(Option::take);
    memory.ok_or_else(|| elsewhere(location))
}

/// Memory that candle holds, as that of this device.
pub(crate) fn of_storage<B: OnDevice>(storage: &Storage) -> Result<&B::Memory> {
    match storage {
        Storage::Cpu(memory) => of::<B>(memory),
        Storage::Cuda(memory) => of::<B>(memory),
        Storage::Metal(_) => Err(elsewhere(storage.device().location())),
    }
}

/// A tensor of another device than the layer's, which candle itself refuses before.
fn elsewhere(got: DeviceLocation) -> Error {
    Error::Msg(format!("{OP}: a tensor is on {got:?}, and the layer is not")).bt()
}
