//! Candle's memory on the CPU: slices, borrowed; what is new is a vector.

use std::sync::OnceLock;

use candle_core::{CpuStorage, Device, Layout, Result, Storage};
use syncbn_core::SavedStatistics;
use syncbn_cpu::Cpu;

use crate::device::{OnDevice, not_contiguous, range};
use crate::group::Group;
use crate::op::Saved;
use crate::value::Value;

impl OnDevice for Cpu {
    type Memory = CpuStorage;
    type New<T: Value> = Vec<T>;

    fn backend(_: &Device) -> Result<(Self, ())> {
        Ok((Self, ()))
    }
    fn group(group: &Group) -> Option<&syncbn_core::Group<Self>> {
        group.cpu.as_ref()
    }
    fn slot(saved: &Saved) -> &OnceLock<SavedStatistics<Self>> {
        &saved.0.cpu
    }

    fn queue(_: &CpuStorage) {}
    fn lend<'a, T: Value>(memory: &'a CpuStorage, layout: &Layout, (): &'a ()) -> Result<&'a [T]> {
        T::cpu_storage_as_slice(memory)?.get(range(layout)?).ok_or_else(|| not_contiguous(layout))
    }
    fn lend_mut<'a, T: Value>(
        memory: &'a mut CpuStorage,
        layout: &Layout,
        (): &'a (),
    ) -> Result<&'a mut [T]> {
        let range = range(layout)?;
        let values = T::vec_mut(memory).and_then(|values| values.get_mut(range));
        values.ok_or_else(|| not_contiguous(layout))
    }

    /// Zeros, which the system has at hand.
    fn make<T: Value>(_: &CpuStorage, len: usize) -> Result<Vec<T>> {
        Ok(bytemuck::zeroed_vec(len))
    }
    fn lend_new<'a, T: Value>(new: &'a mut Vec<T>, (): &'a ()) -> &'a mut [T] {
        new
    }
    fn finish<T: Value>(new: Vec<T>, _: &CpuStorage) -> CpuStorage {
        T::to_cpu_storage_owned(new)
    }
    fn wrap(memory: CpuStorage) -> Storage {
        Storage::Cpu(memory)
    }
}
