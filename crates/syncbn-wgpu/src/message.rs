//! Messages: the sums of a layer, from the device's form to that of the group and back.
//!
//! Messages are `f64` and take form on the host, since WGSL has no `f64`: the device gives mean and M2, or the gradients' sums, as
//! pairs of `f32` times a power of two, and takes the group's mean and variance the same way.

use syncbn_core::Pass;
use syncbn_core::statistics::{Batch, Moments};

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::params::{HIGH_EXPONENT, HIGH_FROM, LOW_BELOW, LOW_EXPONENT, LOWEST_BELOW, LOWEST_EXPONENT};
use crate::queue::Queue;
use crate::statistics;
use crate::workspace::{Sums, halves};

impl Sums {
    pub(crate) fn read(
        &self,
        gpu: &Gpu,
        queue: &Queue,
        pass: Pass,
        message: &mut [f64],
    ) -> Result<(), WgpuError> {
        let count = match pass {
            Pass::Forward => {
                let parts = self.parts.ok_or(WgpuError::OutOfOrder { what: "a rank's moments" })?;
                statistics::merge(gpu, queue, self, self.channels, parts)?;
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
