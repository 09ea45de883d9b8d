//! What the kernels need besides the caller's memory: the sums of a layer, and the saved statistics of its forward passes.
//!
//! Messages are `f64` and take form on the host, since WGSL has no `f64`: the device gives mean and M2, or the gradients' sums, as
//! pairs of `f32` times a power of two, and takes the group's mean and variance the same way.
//!
//! Deliberately not here: kernels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use syncbn_core::Pass;
use syncbn_core::statistics::{Batch, Moments};

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::memory::Slice;
use crate::params::{HIGH_EXPONENT, HIGH_FROM, LOW_BELOW, LOW_EXPONENT, LOWEST_BELOW, LOWEST_EXPONENT};
use crate::plan::most_partials;
use crate::queue::Queue;
use crate::statistics;

/// A layer's sums.
#[derive(Debug)]
pub struct Sums {
    channels: usize,
    /// The count; then two vectors of four numbers per channel.
    merged: wgpu::Buffer,
    /// Where workgroups leave their parts.
    partials: wgpu::Buffer,
    staging: wgpu::Buffer,
    /// What `moments` has left in `partials`.
    pub(crate) parts: Option<Parts>,
    /// Whether the sums in `merged` are the group's, and what `grad_input` needs of them is still to be computed.
    pub(crate) terms_missing: bool,
    /// The powers of two that the last backward message's numbers were multiplied by, per channel.
    exponents: RefCell<Vec<i32>>,
}

/// The moments of a tensor's splits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) splits: usize,
    /// Elements per channel.
    pub(crate) count: usize,
}

impl Sums {
    pub(crate) fn new(wgpu: &Wgpu, channels: usize) -> Result<Self, WgpuError> {
        let vectors = channels.saturating_mul(2).saturating_add(1);
        let merged = wgpu.scratch("sums", vectors)?;
        let partials = most_partials(wgpu.parallelism(), channels).saturating_mul(2);
        Ok(Self {
            channels,
            partials: wgpu.scratch("partial sums", partials)?,
            staging: wgpu.staging(merged.size())?,
            merged,
            parts: None,
            terms_missing: false,
            exponents: RefCell::default(),
        })
    }

    pub(crate) fn merged(&self) -> Slice<'_> {
        Slice { buffer: &self.merged, offset: 0, size: self.merged.size() }
    }

    pub(crate) fn partials(&self) -> Slice<'_> {
        Slice { buffer: &self.partials, offset: 0, size: self.partials.size() }
    }

    pub(crate) fn read(
        &self,
        wgpu: &Wgpu,
        queue: &Queue,
        pass: Pass,
        message: &mut [f64],
    ) -> Result<(), WgpuError> {
        let count = match pass {
            Pass::Forward => {
                let parts = self.parts.ok_or(WgpuError::OutOfOrder { what: "a rank's moments" })?;
                statistics::merge(wgpu, queue, self, self.channels, parts)?;
                parts.count as f64
            }
            Pass::Backward => 0.0,
        };
        let numbers = queue.read(&self.merged, &self.staging, self.merged.size(), |bytes| {
            bytes.chunks_exact(4).map(|b| b.try_into().map_or(0.0, f32::from_le_bytes)).collect::<Vec<f32>>()
        })?;
        let channels = numbers[4..].chunks_exact(8).map(Channel::from);
        let mut exponents = self.exponents.borrow_mut();
        exponents.clear();
        let (head, sums) = message.split_at_mut(message.len() - 2 * self.channels);
        head.fill(count);
        let (first, second) = sums.split_at_mut(self.channels);
        for (c, channel) in channels.take(self.channels).enumerate() {
            let unit = power(channel.exponent);
            exponents.push(channel.exponent);
            (first[c], second[c]) = match pass {
                // Without elements there is no mean, and 0 is what the sums are.
                Pass::Forward if count == 0.0 => (0.0, 0.0),
                Pass::Forward => {
                    Moments { count, mean: channel.first * unit, m2: channel.second * unit * unit }.to_sums()
                }
                Pass::Backward => (channel.first, channel.second * unit),
            };
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, queue: &Queue, pass: Pass, message: &[f64]) -> Result<(), WgpuError> {
        let (head, sums) = message.split_at(message.len() - 2 * self.channels);
        let (first, second) = sums.split_at(self.channels);
        let count = head.first().copied().unwrap_or(0.0);
        let exponents = self.exponents.get_mut();
        exponents.resize(self.channels, 0);
        let mut numbers = Vec::with_capacity(4 + 8 * self.channels);
        let (high, low) = halves(count);
        numbers.extend([high, low, 0.0, 0.0]);
        for ((&a, &b), &exponent) in first.iter().zip(second).zip(exponents.iter()) {
            let channel = match pass {
                Pass::Forward => {
                    let batch = Batch::from_sums(count, a, b);
                    let exponent = exponent_for(batch);
                    let unit = power(-exponent);
                    Channel { first: batch.mean * unit, second: batch.var * unit * unit, exponent }
                }
                Pass::Backward => Channel { first: a, second: b * power(-exponent), exponent },
            };
            channel.put(&mut numbers);
        }
        self.terms_missing = true;
        queue.write(&self.merged, bytemuck::cast_slice(&numbers))
    }
}

/// A channel's numbers as the device has them.
struct Channel {
    first: f64,
    second: f64,
    exponent: i32,
}

impl From<&[f32]> for Channel {
    fn from(n: &[f32]) -> Self {
        let wide = |i: usize| f64::from(n[i]) + f64::from(n[i + 1]);
        Self { first: wide(0), second: wide(2), exponent: n[4] as i32 }
    }
}

impl Channel {
    fn put(&self, numbers: &mut Vec<f32>) {
        let (a, b) = (halves(self.first), halves(self.second));
        numbers.extend([a.0, a.1, b.0, b.1, self.exponent as f32, 0.0, 0.0, 0.0]);
    }
}

/// The two `f32` whose unevaluated sum is nearest to the value.
pub(crate) fn halves(value: f64) -> (f32, f32) {
    let high = value as f32;
    let low = (value - f64::from(high)) as f32;
    // Infinity minus itself is not to become a NaN where there was none.
    if high.is_finite() { (high, low) } else { (high, 0.0) }
}

fn power(exponent: i32) -> f64 {
    2.0_f64.powi(exponent)
}

/// The power of two that the device takes such a channel's numbers times the inverse of: `exponent_for` of merge.wgsl.
fn exponent_for(batch: Batch) -> i32 {
    let size = batch.mean.abs().max(batch.var.sqrt());
    if !size.is_finite() || size == 0.0 || (power(LOW_BELOW)..power(HIGH_FROM)).contains(&size) {
        0
    } else if size >= power(HIGH_FROM) {
        HIGH_EXPONENT
    } else if size < power(LOWEST_BELOW) {
        LOWEST_EXPONENT
    } else {
        LOW_EXPONENT
    }
}

/// The statistics of one forward pass, on loan from the device's pool.
#[derive(Debug)]
pub struct Saved {
    buffer: Option<wgpu::Buffer>,
    channels: usize,
    pool: Arc<Pool>,
}

impl Saved {
    pub(crate) fn slice(&self) -> Option<Slice<'_>> {
        self.buffer.as_ref().map(|buffer| Slice { buffer, offset: 0, size: buffer.size() })
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(self.channels).or_default().push(buffer);
        }
    }
}

/// Saved statistics that are not in use, by channels. Work on a device runs in the order of its submissions, and wgpu keeps
/// what it still needs, so the next forward may have them at once.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<usize, Vec<wgpu::Buffer>>>);

impl Pool {
    pub(crate) fn take(self: &Arc<Self>, wgpu: &Wgpu, channels: usize) -> Result<Saved, WgpuError> {
        let pooled =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&channels).and_then(Vec::pop);
        let buffer = match pooled {
            Some(buffer) => buffer,
            None => wgpu.scratch("saved statistics", channels.saturating_add(1))?,
        };
        Ok(Saved { buffer: Some(buffer), channels, pool: self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_halves_hold_48_bits() {
        for value in [1.0 / 3.0, 1e4 + 1e-9, -7.0e8 / 3.0, (1_u64 << 40) as f64 + 1.0] {
            let (high, low) = halves(value);
            let sum = f64::from(high) + f64::from(low);
            assert!((sum - value).abs() <= value.abs() * 2.0_f64.powi(-48), "{value}");
        }
        assert_eq!(halves(f64::INFINITY), (f32::INFINITY, 0.0));
        assert!(halves(f64::NAN).0.is_nan());
    }

    #[test]
    fn a_channel_comes_back_as_it_was_put() {
        let mut numbers = Vec::new();
        Channel { first: -1.0 / 3.0, second: 1e-9, exponent: -109 }.put(&mut numbers);
        let channel = Channel::from(&numbers[..]);
        assert!((channel.first + 1.0 / 3.0).abs() < 1e-14);
        assert!((channel.second - 1e-9).abs() < 1e-22);
        assert_eq!(channel.exponent, -109);
    }

    #[test]
    fn numbers_near_one_need_no_exponent() {
        let of = |mean, var| exponent_for(Batch { count: 2.0, mean, var });
        assert_eq!([of(0.0, 0.0), of(1e4, 1.0), of(0.0, 1e-20)], [0, 0, 0]);
        assert_eq!([of(0.0, 1e-88), of(0.0, 1e-40), of(1e30, 1e60)], [-109, -60, 80]);
        assert_eq!(of(f64::NAN, 1.0), 0);
    }
}
