//! The memory types: borrowed slices, a pass's scratch, and the vectors that a layer owns.
//!
//! Deliberately not here: arithmetic on tensors, and `ndarray`, which has a file of its own.

use std::convert::Infallible;

use syncbn_core::host_memory::{message_to_batch, moments_to_message};
use syncbn_core::statistics::{Batch, Moments};
use syncbn_core::{Backend, Dtype, Pass, Scalar, Storage, saved_len};

use crate::{Cpu, CpuError};

/// The scratch of a pass: the per-channel sums of one rank and then of the group, and that of the reduction that makes them.
#[derive(Debug)]
pub struct Workspace {
    params: Dtype,
    /// This rank's moments per channel.
    pub(crate) moments: Vec<Moments>,
    /// The group's statistics per channel.
    pub(crate) group: Vec<Batch>,
    /// `[sum_dy | sum_dy_xmu]`: this rank's, then the group's.
    pub(crate) sums: Vec<f64>,
    /// The results of single tiles, before they are merged.
    pub(crate) partials: Vec<[f64; 2]>,
}

impl Workspace {
    /// The sums that a backward pass uses: `sum_dy` and `sum_dy_xmu` of one channel.
    pub(crate) fn sums_of(&self, channel: usize) -> (f64, f64) {
        (self.sums[channel], self.sums[self.moments.len() + channel])
    }
}

impl Backend for Cpu {
    type Queue = ();
    type Workspace = Workspace;
    type Saved = Vec<f64>;
    type Peers = Infallible;
    type Mem<'a, T: Scalar> = &'a [T];
    type MemMut<'a, T: Scalar> = &'a mut [T];
    type Error = CpuError;

    fn mem_len<T: Scalar>(mem: &&[T]) -> usize {
        mem.len()
    }

    fn mem_mut_len<T: Scalar>(mem: &&mut [T]) -> usize {
        mem.len()
    }

    fn reborrow<'s, T: Scalar>(mem: &'s &[T]) -> &'s [T] {
        mem
    }

    #[allow(clippy::mut_mut)] // a borrow of the borrowed slice, as the trait has it
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut &mut [T]) -> &'s mut [T] {
        mem
    }

    fn as_mem<'s, T: Scalar>(mem: &'s &mut [T]) -> &'s [T] {
        mem
    }

    fn empty<'a, T: Scalar>() -> &'a [T] {
        &[]
    }

    fn empty_mut<'a, T: Scalar>() -> &'a mut [T] {
        &mut []
    }

    fn read<T: Scalar>(&self, (): &(), mem: &[T], values: &mut [T]) -> Result<(), CpuError> {
        copy_in(values, mem, "values")
    }

    fn write<T: Scalar>(&self, (): &(), mem: &mut [T], values: &[T]) -> Result<(), CpuError> {
        copy_in(mem, values, "values")
    }

    fn workspace(&self, (): &(), channels: usize, params: Dtype) -> Result<Workspace, CpuError> {
        let what = "sums";
        Ok(Workspace {
            params,
            moments: filled(Moments::default(), channels, what)?,
            group: filled(Batch::default(), channels, what)?,
            sums: filled(0.0, channels.saturating_mul(2), what)?,
            partials: Vec::new(),
        })
    }

    fn saved(&self, (): &(), channels: usize) -> Result<Vec<f64>, CpuError> {
        filled(0.0, saved_len(channels), "saved statistics")
    }

    fn saved_mem(saved: &Vec<f64>) -> &[f64] {
        saved
    }

    fn saved_mem_mut(saved: &mut Vec<f64>) -> &mut [f64] {
        saved
    }

    fn read_message(
        &self,
        (): &(),
        pass: Pass,
        workspace: &mut Workspace,
        message: &mut [f64],
    ) -> Result<(), CpuError> {
        let Workspace { params, moments, sums, .. } = workspace;
        same_length(pass.message_len(moments.len(), *params), message.len(), "message")?;
        match pass {
            Pass::Forward => moments_to_message(moments, *params, message),
            Pass::Backward => message.copy_from_slice(sums),
        }
        Ok(())
    }

    fn write_message(
        &self,
        (): &(),
        pass: Pass,
        workspace: &mut Workspace,
        message: &[f64],
    ) -> Result<(), CpuError> {
        let Workspace { params, group, sums, .. } = workspace;
        same_length(pass.message_len(group.len(), *params), message.len(), "message")?;
        match pass {
            Pass::Forward => {
                let batches = (0..).map(|channel| message_to_batch(message, *params, channel));
                group.iter_mut().zip(batches).for_each(|(group, batch)| *group = batch);
            }
            Pass::Backward => sums.copy_from_slice(message),
        }
        Ok(())
    }
}

impl Storage for Cpu {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, CpuError> {
        let mut buffer = reserved(values.len(), "a layer's parameters")?;
        buffer.extend_from_slice(values);
        Ok(buffer)
    }

    fn mem<T: Scalar>(buffer: &Vec<T>) -> &[T] {
        buffer
    }

    fn mem_mut<T: Scalar>(buffer: &mut Vec<T>) -> &mut [T] {
        buffer
    }
}

/// An empty vector with room for `len` values; too many are an error, not an abort.
pub(crate) fn reserved<T>(len: usize, what: &'static str) -> Result<Vec<T>, CpuError> {
    let mut values = Vec::new();
    reserve(&mut values, len, what)?;
    Ok(values)
}

/// A vector of `len` copies of `value`.
pub(crate) fn filled<T: Clone>(value: T, len: usize, what: &'static str) -> Result<Vec<T>, CpuError> {
    let mut values = reserved(len, what)?;
    values.resize(len, value);
    Ok(values)
}

/// Makes scratch at least `len` long and lends that much of it; what is in it is left over from earlier.
pub(crate) fn scratch<'a, T: Clone + Default>(
    values: &'a mut Vec<T>,
    len: usize,
    what: &'static str,
) -> Result<&'a mut [T], CpuError> {
    if values.len() < len {
        reserve(values, len - values.len(), what)?;
        values.resize(len, T::default());
    }
    Ok(&mut values[..len])
}

fn reserve<T>(values: &mut Vec<T>, additional: usize, what: &'static str) -> Result<(), CpuError> {
    let bytes = additional.saturating_mul(size_of::<T>());
    values.try_reserve_exact(additional).map_err(|_| CpuError::OutOfMemory { what, bytes })
}

/// Overwrites a buffer with values whose number the caller may have got wrong; `what` names them.
fn copy_in<T: Copy>(ours: &mut [T], from: &[T], what: &'static str) -> Result<(), CpuError> {
    same_length(ours.len(), from.len(), what)?;
    ours.copy_from_slice(from);
    Ok(())
}

fn same_length(expected: usize, got: usize, what: &'static str) -> Result<(), CpuError> {
    if expected == got { Ok(()) } else { Err(CpuError::Length { what, expected, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_grows_by_what_is_missing_and_never_shrinks() {
        let mut values = Vec::<u8>::new();
        for (len, kept) in [(3, 3), (5, 5), (2, 5), (5, 5)] {
            assert_eq!(scratch(&mut values, len, "test").unwrap().len(), len);
            assert_eq!(values.len(), kept);
        }
        let missing = isize::MAX as usize + 1;
        let error = scratch(&mut vec![0_u8; 5], missing + 5, "test").unwrap_err();
        assert_eq!(error, CpuError::OutOfMemory { what: "test", bytes: missing });
    }
}
