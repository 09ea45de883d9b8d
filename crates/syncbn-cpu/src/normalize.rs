//! `y = (x - mean) invstd weight + bias`: finalises the statistics, then one pass over x and y.
//!
//! Deliberately not here: the loops.

use syncbn_core::backend::{NormalizeArgs, Source};
use syncbn_core::statistics::{Batch, Running, invstd};
use syncbn_core::{Element, RunningMut};

use crate::map::{Coefficients, Formula, Input, map};
use crate::memory::{Saved, Sums};
use crate::number::Number;
use crate::vector::Vector;
use crate::{Cpu, CpuError};

pub(crate) fn normalize<T: Number>(args: NormalizeArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let NormalizeArgs { x, mut y, source, weight, bias, eps, .. } = args;
    let geometry = *x.geometry();
    let affine = Affine::<T> { weight, bias };
    let mut write = |coefficients: &Coefficients<3>| {
        map(&geometry, coefficients, [Input::Apart(x.mem())], y.mem_mut(), Normalized)
    };
    match source {
        Source::Batch { sums, group, saved, running } => {
            let batch = |channel| of_batch(sums, group, channel);
            write(&Coefficients::new(&geometry, |channel| {
                let batch = batch(channel);
                affine.coefficients(channel, batch.mean, batch.invstd(eps))
            })?)?;
            // Nothing can fail from here on.
            let batches = (0..geometry.channels()).map(batch);
            save(saved, batches.clone(), eps);
            if let Some(running) = running {
                update(running, saved.count, batches);
            }
            Ok(())
        }
        Source::Frozen { mean, var, saved } => {
            let of = |channel: usize| (mean[channel].to_f64(), invstd(var[channel].to_f64(), eps));
            saved.count = 0.0;
            write(&Coefficients::new(&geometry, |channel| {
                let (mean, invstd) = of(channel);
                (saved.mean[channel], saved.invstd[channel]) = (mean, invstd);
                affine.coefficients(channel, mean, invstd)
            })?)
        }
        Source::Saved(saved) => write(&Coefficients::new(&geometry, |channel| {
            affine.coefficients(channel, saved.mean[channel], saved.invstd[channel])
        })?),
        _ => Err(CpuError::UnknownSource),
    }
}

/// `(x - mean) scale + bias`.
#[derive(Clone, Copy)]
struct Normalized;

impl Formula<1, 3> for Normalized {
    #[inline(always)]
    fn of<V: Vector>(self, [x]: [V; 1], [mean, scale, bias]: [V; 3]) -> V {
        (x - mean) * scale + bias
    }
}

/// The scale and shift per channel, 1 and 0 where absent.
struct Affine<'a, T: Element> {
    weight: Option<&'a [T::Param]>,
    bias: Option<&'a [T::Param]>,
}

impl<T: Element> Affine<'_, T> {
    fn coefficients(&self, channel: usize, mean: f64, invstd: f64) -> [f64; 3] {
        let weight = self.weight.map_or(1.0, |weight| weight[channel].to_f64());
        let bias = self.bias.map_or(0.0, |bias| bias[channel].to_f64());
        [mean, invstd * weight, bias]
    }
}

/// The statistics of one channel: the group's, or this rank's alone, which have suffered no cancellation.
fn of_batch(sums: &Sums, group: bool, channel: usize) -> Batch {
    if group {
        let (count, sum, sum_of_squares) = sums.forward(channel);
        Batch::from_sums(count, sum, sum_of_squares)
    } else {
        sums.local[channel].batch()
    }
}

fn save(saved: &mut Saved, batches: impl Iterator<Item = Batch>, eps: f64) {
    let channels = saved.mean.iter_mut().zip(&mut saved.invstd);
    for (batch, (mean, invstd)) in batches.zip(channels) {
        saved.count = batch.count;
        (*mean, *invstd) = (batch.mean, batch.invstd(eps));
    }
}

fn update<P: Element>(running: RunningMut<'_, Cpu, P>, count: f64, batches: impl Iterator<Item = Batch>) {
    let RunningMut { mean, var, num_batches_tracked, momentum } = running;
    let [tracked] = num_batches_tracked else {
        return;
    };
    let Some(next) = Running::next(count, *tracked, momentum) else {
        return;
    };
    *tracked = next.num_batches_tracked;
    for (batch, (mean, var)) in batches.zip(mean.iter_mut().zip(var)) {
        *mean = P::from_f64(next.mean(mean.to_f64(), batch));
        *var = P::from_f64(next.var(var.to_f64(), batch));
    }
}
