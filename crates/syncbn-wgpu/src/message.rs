//! Messages: this rank's sums from the device's form to core's, and the group's sums back.
//!
//! WGSL has no `f64`, so messages are made on the host. The device has mean and M2, and the gradients' sums, as pairs of `f32` times a
//! power of two, and gets the group's mean and variance in the same form.

use syncbn_core::statistics::{Batch, Moments};
use syncbn_core::{Dtype, Pass};

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::pairs::halves;
use crate::params::{HIGH_EXPONENT, HIGH_FROM, LOW_BELOW, LOW_EXPONENT, LOWEST_BELOW, LOWEST_EXPONENT};
use crate::queue::Queue;
use crate::statistics;
use crate::workspace::Workspace;

/// Waits for the queue, and writes this rank's sums as a message.
pub(crate) fn read(
    gpu: &Gpu,
    queue: &Queue,
    pass: Pass,
    workspace: &mut Workspace,
    message: &mut [f64],
) -> Result<(), WgpuError> {
    check(gpu, pass, workspace, message.len())?;
    let count = match pass {
        Pass::Forward => {
            let parts = workspace.parts.ok_or(WgpuError::OutOfOrder { what: "a rank's moments" })?;
            statistics::merge(gpu, queue, workspace, parts)?;
            parts.count as f64
        }
        Pass::Backward => 0.0,
    };
    let numbers = queue.read(workspace.merged(), &workspace.staging, |bytes| {
        bytes.chunks_exact(4).map(|b| b.try_into().map_or(0.0, f32::from_le_bytes)).collect::<Vec<f32>>()
    })?;
    let channels = numbers[4..].chunks_exact(8).map(Channel::from).take(workspace.channels);
    match (pass, workspace.params) {
        (Pass::Forward, Dtype::F64) => forward_message::<6>(count, channels, message),
        (Pass::Forward, _) => forward_message::<4>(count, channels, message),
        (Pass::Backward, _) => {
            workspace.exponents.clear();
            let (sum_dy, sum_dy_xmu) = message.split_at_mut(workspace.channels);
            for ((channel, dy), dy_xmu) in channels.zip(sum_dy).zip(sum_dy_xmu) {
                workspace.exponents.push(channel.exponent);
                (*dy, *dy_xmu) = (channel.first, channel.second * power(channel.exponent));
            }
        }
    }
    Ok(())
}

fn forward_message<const K: usize>(
    count: f64,
    channels: impl ExactSizeIterator<Item = Channel>,
    message: &mut [f64],
) {
    let width = channels.len();
    message[0] = count;
    for (c, channel) in channels.enumerate() {
        let unit = power(channel.exponent);
        let moments = Moments { count, mean: channel.first * unit, m2: channel.second * unit * unit };
        // Without elements there is no mean, and the sums are 0.
        let parts = if count == 0.0 { [0.0; K] } else { moments.to_sums::<K>() };
        for (k, part) in parts.into_iter().enumerate() {
            message[1 + k * width + c] = part;
        }
    }
}

/// Writes the group's sums to the device.
pub(crate) fn write(
    gpu: &Gpu,
    queue: &Queue,
    pass: Pass,
    workspace: &mut Workspace,
    message: &[f64],
) -> Result<(), WgpuError> {
    check(gpu, pass, workspace, message.len())?;
    let width = workspace.channels;
    workspace.exponents.resize(width, 0);
    let count = if pass == Pass::Forward { message[0] } else { 0.0 };
    let (high, low) = halves(count);
    let mut numbers = Vec::with_capacity(4 + 8 * width);
    numbers.extend([high, low, 0.0, 0.0]);
    for (c, &exponent) in workspace.exponents.iter().enumerate() {
        let channel = match (pass, workspace.params) {
            (Pass::Forward, Dtype::F64) => Channel::of(batch_of::<6>(width, c, message)),
            (Pass::Forward, _) => Channel::of(batch_of::<4>(width, c, message)),
            (Pass::Backward, _) => {
                Channel { first: message[c], second: message[width + c] * power(-exponent), exponent }
            }
        };
        channel.put(&mut numbers);
    }
    queue.write(workspace.merged(), bytemuck::cast_slice(&numbers))?;
    workspace.terms_missing = true;
    Ok(())
}

fn batch_of<const K: usize>(channels: usize, channel: usize, message: &[f64]) -> Batch {
    Batch::from_sums::<K>(message[0], std::array::from_fn(|k| message[1 + k * channels + channel]))
}

fn check(gpu: &Gpu, pass: Pass, workspace: &Workspace, got: usize) -> Result<(), WgpuError> {
    workspace.check(gpu, workspace.channels)?;
    let expected = pass.message_len(workspace.channels, workspace.params);
    if got == expected { Ok(()) } else { Err(WgpuError::Length { expected, got }) }
}

/// The numbers of a channel in the device's form.
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
    /// A batch, scaled by the power of two that its size needs.
    fn of(batch: Batch) -> Self {
        let exponent = exponent_for(batch);
        let unit = power(-exponent);
        Self { first: batch.mean * unit, second: batch.var * unit * unit, exponent }
    }

    fn put(&self, numbers: &mut Vec<f32>) {
        let (a, b) = (halves(self.first), halves(self.second));
        numbers.extend([a.0, a.1, b.0, b.1, self.exponent as f32, 0.0, 0.0, 0.0]);
    }
}

fn power(exponent: i32) -> f64 {
    2.0_f64.powi(exponent)
}

/// The power of two by which the device divides the numbers of such a channel: `exponent_for` in merge.wgsl.
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
