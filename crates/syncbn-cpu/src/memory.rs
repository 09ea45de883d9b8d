//! The memory types: borrowed slices, the per-channel sums, the saved statistics, and the vectors that a layer owns.
//!
//! Deliberately not here: arithmetic on tensors, and `ndarray`, which has a file of its own.

use syncbn_core::statistics::Moments;
use syncbn_core::{Backend, Pass, Scalar, Storage};

use crate::{Cpu, CpuError};

/// The per-channel sums of one rank and then of the group, with the scratch of the reduction that makes them.
#[derive(Debug)]
pub struct Sums {
    /// This rank's moments per channel: what a world of one normalises with, free of the message's cancellation.
    pub(crate) local: Vec<Moments>,
    /// What the ranks sum, as [`Pass`] describes it: 2 C + 1 numbers, of which a backward pass uses the first 2 C.
    pub(crate) message: Vec<f64>,
    /// The results of single tiles, before they are merged.
    pub(crate) partials: Vec<[f64; 2]>,
}

impl Sums {
    /// The sums over the group that a forward pass uses: the count, sum and sum of squares of one channel.
    pub(crate) fn forward(&self, channel: usize) -> (f64, f64, f64) {
        let channels = self.local.len();
        (self.message[0], self.message[1 + channel], self.message[1 + channels + channel])
    }

    /// The sums over the group that a backward pass uses: `sum_dy` and `sum_dy_xmu` of one channel.
    pub(crate) fn backward(&self, channel: usize) -> (f64, f64) {
        (self.message[channel], self.message[self.local.len() + channel])
    }
}

/// The mean, `invstd` and count of one forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    pub(crate) count: f64,
    pub(crate) mean: Vec<f64>,
    pub(crate) invstd: Vec<f64>,
}

impl Saved {
    /// The number of elements per channel that the statistics come from; 0 where they were given.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.count
    }

    /// The mean per channel.
    #[must_use]
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// `1 / sqrt(var + eps)` per channel.
    #[must_use]
    pub fn invstd(&self) -> &[f64] {
        &self.invstd
    }
}

impl Backend for Cpu {
    type Queue = ();
    type Sums = Sums;
    type Saved = Saved;
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

    fn sums(&self, (): &(), channels: usize) -> Result<Sums, CpuError> {
        Ok(Sums {
            local: filled(Moments::default(), channels, "sums")?,
            message: filled(0.0, channels.saturating_mul(2).saturating_add(1), "sums")?,
            partials: Vec::new(),
        })
    }

    fn saved(&self, (): &(), channels: usize) -> Result<Saved, CpuError> {
        let what = "saved statistics";
        Ok(Saved { count: 0.0, mean: filled(0.0, channels, what)?, invstd: filled(0.0, channels, what)? })
    }

    fn read_sums(&self, (): &(), pass: Pass, sums: &Sums, message: &mut [f64]) -> Result<(), CpuError> {
        let ours = &sums.message[..pass.message_len(sums.local.len())];
        same_length(ours.len(), message.len(), "message")?;
        message.copy_from_slice(ours);
        Ok(())
    }

    fn write_sums(&self, (): &(), pass: Pass, sums: &mut Sums, message: &[f64]) -> Result<(), CpuError> {
        let ours = &mut sums.message[..pass.message_len(sums.local.len())];
        copy_in(ours, message, "message")
    }
}

impl Storage for Cpu {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, CpuError> {
        let mut buffer = reserved(values.len(), "a layer's parameters")?;
        buffer.extend_from_slice(values);
        Ok(buffer)
    }

    fn write<T: Scalar>(&self, (): &(), buffer: &mut Vec<T>, values: &[T]) -> Result<(), CpuError> {
        copy_in(buffer, values, "values")
    }

    fn download<T: Scalar>(&self, (): &(), buffer: &Vec<T>) -> Result<Vec<T>, CpuError> {
        self.upload(&(), buffer)
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
