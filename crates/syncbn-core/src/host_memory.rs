//! Messages, saved statistics and running statistics as slices, for backends whose memory is the host's.
//!
//! A backend in host memory calls these functions from [`Backend::read_message`](crate::Backend::read_message),
//! [`Backend::write_message`](crate::Backend::write_message) and [`Kernels::normalize`](crate::Kernels::normalize).

use std::array;

use crate::message::Pass;
use crate::scalar::{Dtype, Param};
use crate::statistics::{Batch, Moments, NonFinite, Running};

/// Writes one rank's moments, one for each channel, as a forward message. `params` is the type of the parameters; `message` has
/// [`Pass::message_len`] numbers.
pub fn moments_to_message(moments: &[Moments], params: Dtype, message: &mut [f64]) {
    match Pass::Forward.per_channel(params) {
        6 => put_parts::<6>(moments, message),
        _ => put_parts::<4>(moments, message),
    }
}

fn put_parts<const K: usize>(moments: &[Moments], message: &mut [f64]) {
    let ([first, ..], [count, numbers @ ..]) = (moments, message) else { return };
    *count = first.count;
    for (c, of_channel) in moments.iter().enumerate() {
        let numbers = numbers.iter_mut().skip(c).step_by(moments.len());
        numbers.zip(of_channel.to_sums::<K>()).for_each(|(number, part)| *number = part);
    }
}

/// Reads the statistics of each channel from a forward message of the group. `params` is the type of the parameters; `message` has
/// [`Pass::message_len`] numbers; from a message of another length, all statistics become NaN.
pub fn message_to_batches(message: &[f64], params: Dtype, batches: &mut [Batch]) {
    match Pass::Forward.per_channel(params) {
        6 => take_parts::<6>(message, batches),
        _ => take_parts::<4>(message, batches),
    }
}

fn take_parts<const K: usize>(message: &[f64], batches: &mut [Batch]) {
    let ([count, numbers @ ..], channels) = (message, batches.len()) else { return };
    if numbers.len() != K * channels {
        return batches.fill(Batch { count: *count, mean: f64::NAN, var: f64::NAN });
    }
    let parts: [&[f64]; K] = array::from_fn(|k| &numbers[k * channels..][..channels]);
    for (c, batch) in batches.iter_mut().enumerate() {
        *batch = Batch::from_sums(*count, parts.map(|part| part[c]));
    }
}

/// Writes one channel of the saved statistics, `[mean | var | invstd | count]`, and the count, which all channels share. `saved` has
/// [`saved_len`](crate::saved_len) numbers.
pub fn save_channel(saved: &mut [f64], channel: usize, batch: Batch, invstd: f64) {
    let channels = saved.len() / 3;
    saved[3 * channels] = batch.count;
    for (k, word) in [batch.mean, batch.var, invstd].into_iter().enumerate() {
        saved[k * channels + channel] = word;
    }
}

/// One channel of the saved statistics, and its `invstd`.
#[must_use]
pub fn saved_channel(saved: &[f64], channel: usize) -> (Batch, f64) {
    let channels = saved.len() / 3;
    let [mean, var, invstd] = [0, 1, 2].map(|k| saved[k * channels + channel]);
    (Batch { count: saved[3 * channels], mean, var }, invstd)
}

/// Updates running statistics by a batch, one for each channel, as [`Running`] says. `num_batches_tracked` has one number.
pub fn update_running<P: Param>(
    [mean, var]: [&mut [P]; 2],
    num_batches_tracked: &mut [i64],
    (momentum, non_finite): (Option<f64>, NonFinite),
    batches: impl Iterator<Item = Batch>,
) {
    let mut batches = batches.peekable();
    let ([tracked], Some(first)) = (num_batches_tracked, batches.peek()) else { return };
    let Some(next) = Running::next(first.count, *tracked, momentum, non_finite) else { return };
    *tracked = next.num_batches_tracked;
    for (batch, (mean, var)) in batches.zip(mean.iter_mut().zip(var)) {
        [*mean, *var] = next.moved([*mean, *var], batch);
    }
}
