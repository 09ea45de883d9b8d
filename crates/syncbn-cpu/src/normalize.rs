//! `y = (x - mean) invstd weight + bias`: finalises the statistics, then one pass over x and y.

use syncbn_core::backend::{NormalizeArgs, RunningMut, Source};
use syncbn_core::host_memory::{save_channel, saved_channel, update_running};
use syncbn_core::statistics::{Batch, invstd};
use syncbn_core::{Element, Param};

use crate::device::Cpu;
use crate::error::CpuError;
use crate::map::{Coefficients, Formula, Input, map};
use crate::number::Number;
use crate::plan::Dims;
use crate::vector::Vector;

pub(crate) fn normalize<T: Number>(args: NormalizeArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let NormalizeArgs { x, mut y, source, weight, bias, eps } = args;
    let dims = Dims::from(x.geometry());
    let affine = Affine::<T> { weight, bias };
    let mut write = |coefficients: &Coefficients<3>| {
        map(dims, coefficients, [Input::Apart(x.mem())], y.mem_mut(), Normalized)
    };
    // The statistics are written last, after everything that can fail.
    match source {
        Source::Batch { workspace, group, saved, running } => {
            let batch = |channel: usize| {
                if group { workspace.group[channel] } else { workspace.moments[channel].batch() }
            };
            write(&Coefficients::new(dims, |channel| {
                let batch = batch(channel);
                affine.coefficients(channel, batch.mean, batch.invstd(eps))
            })?)?;
            finish((0..dims.channels).map(batch), eps, saved, running);
        }
        Source::Frozen { mean, var, saved } => {
            let frozen = |channel: usize| {
                let batch = Batch { count: 0.0, mean: mean[channel].to_f64(), var: var[channel].to_f64() };
                (batch, invstd(batch.var, eps))
            };
            write(&Coefficients::new(dims, |channel| {
                let (batch, invstd) = frozen(channel);
                affine.coefficients(channel, batch.mean, invstd)
            })?)?;
            for channel in 0..dims.channels {
                let (batch, invstd) = frozen(channel);
                save_channel(saved, channel, batch, invstd);
            }
        }
        Source::Saved { saved, running } => {
            write(&Coefficients::new(dims, |channel| {
                let (batch, invstd) = saved_channel(saved, channel);
                affine.coefficients(channel, batch.mean, invstd)
            })?)?;
            update(running, (0..dims.channels).map(|channel| saved_channel(saved, channel).0));
        }
    }
    Ok(())
}

/// What else a forward pass writes: what is saved, and the running statistics.
pub(crate) fn finish<P: Param>(
    batches: impl Iterator<Item = Batch> + Clone,
    eps: f64,
    saved: &mut [f64],
    running: Option<RunningMut<'_, Cpu, P>>,
) {
    for (channel, batch) in batches.clone().enumerate() {
        save_channel(saved, channel, batch, batch.invstd(eps));
    }
    update(running, batches);
}

fn update<P: Param>(running: Option<RunningMut<'_, Cpu, P>>, batches: impl Iterator<Item = Batch>) {
    if let Some(RunningMut { mean, var, num_batches_tracked, momentum, non_finite }) = running {
        update_running([mean, var], num_batches_tracked, (momentum, non_finite), batches);
    }
}

/// `(x - mean) scale + bias`.
#[derive(Clone, Copy)]
pub(crate) struct Normalized;

impl Formula<1, 3> for Normalized {
    #[inline(always)]
    fn of<V: Vector>(self, [x]: [V; 1], [mean, scale, bias]: [V; 3]) -> V {
        (x - mean) * scale + bias
    }
}

/// The scale and shift per channel, 1 and 0 where absent.
pub(crate) struct Affine<'a, T: Element> {
    pub(crate) weight: Option<&'a [T::Param]>,
    pub(crate) bias: Option<&'a [T::Param]>,
}

impl<T: Element> Affine<'_, T> {
    pub(crate) fn coefficients(&self, channel: usize, mean: f64, invstd: f64) -> [f64; 3] {
        let weight = self.weight.map_or(1.0, |weight| weight[channel].to_f64());
        let bias = self.bias.map_or(0.0, |bias| bias[channel].to_f64());
        [mean, invstd * weight, bias]
    }
}
