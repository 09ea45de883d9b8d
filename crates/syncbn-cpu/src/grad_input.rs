//! `dx = weight invstd (dy - sum_dy / M - (x - mean) invstd^2 sum_dy_xmu / M)`: one pass over x, dy and dx; with frozen
//! statistics `dx = weight invstd dy`, and x is not looked at.

use syncbn_core::Element;
use syncbn_core::backend::{Grad, GradInputArgs, GradSource};
use syncbn_core::host_memory::saved_channel;
use syncbn_core::statistics::{self, GradTerms};

use crate::device::Cpu;
use crate::error::CpuError;
use crate::map::{Coefficients, Formula, Input, map};
use crate::number::Number;
use crate::plan::Dims;
use crate::vector::Vector;

pub(crate) fn grad_input<T: Number>(args: GradInputArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let GradInputArgs { x, mut grad, saved, source, weight } = args;
    let dims = Dims::from(x.geometry());
    let (dy, dx) = match &mut grad {
        Grad::OutOfPlace { dy, dx } => (Input::Apart(dy.mem()), dx.mem_mut()),
        Grad::InPlace(dy) => (Input::Output, dy.mem_mut()),
    };
    let weight = |channel: usize| weight.map_or(1.0, |weight| weight[channel].to_f64());
    let workspace = match source {
        GradSource::Batch { workspace } => workspace,
        GradSource::Frozen => {
            let scale = |channel| [weight(channel) * saved_channel(saved, channel).1];
            let coefficients = Coefficients::new(dims, scale)?;
            return map(dims, &coefficients, [dy], dx, Frozen);
        }
    };
    let coefficients = Coefficients::new(dims, |channel| {
        Batch::coefficients(weight(channel), saved_channel(saved, channel), workspace.sums_of(channel))
    })?;
    let inputs = [Input::Apart(x.mem()), dy];
    map(dims, &coefficients, inputs, dx, Batch)
}

/// `scale dy`: the statistics were given.
#[derive(Clone, Copy)]
struct Frozen;

impl Formula<1, 1> for Frozen {
    #[inline(always)]
    fn of<V: Vector>(self, [dy]: [V; 1], [scale]: [V; 1]) -> V {
        scale * dy
    }
}

/// `scale (dy - mean_dy - (x - mean) slope)`: the statistics are the batch's.
#[derive(Clone, Copy)]
pub(crate) struct Batch;

impl Batch {
    pub(crate) fn coefficients(
        weight: f64,
        (batch, invstd): (statistics::Batch, f64),
        sums: (f64, f64),
    ) -> [f64; 4] {
        let GradTerms { scale, mean_dy, slope } = GradTerms::new(weight, invstd, batch.count, Some(sums));
        [batch.mean, scale, mean_dy, slope]
    }
}

impl Formula<2, 4> for Batch {
    #[inline(always)]
    fn of<V: Vector>(self, [x, dy]: [V; 2], [mean, scale, mean_dy, slope]: [V; 4]) -> V {
        scale * (dy - mean_dy - (x - mean) * slope)
    }
}
