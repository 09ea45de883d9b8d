//! `dx = weight invstd (dy - sum_dy / M - (x - mean) invstd^2 sum_dy_xmu / M)`: one pass over x, dy and dx; with frozen
//! statistics `dx = weight invstd dy`, and x is not looked at.

use syncbn_core::Element;
use syncbn_core::backend::{Grad, GradInputArgs};
use syncbn_core::statistics::GradTerms;

use crate::map::{Coefficients, Formula, Input, map};
use crate::number::{Number, Real};
use crate::{Cpu, CpuError};

pub(crate) fn grad_input<T: Number>(args: GradInputArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let GradInputArgs { x, mut grad, saved, sums, weight, .. } = args;
    let geometry = *x.geometry();
    let (dy, dx) = match &mut grad {
        Grad::Apart { dy, dx } => (Input::Apart(dy.mem()), dx.mem_mut()),
        Grad::InPlace(dy) => (Input::Output, dy.mem_mut()),
    };
    let terms = |channel: usize| {
        let weight = weight.map_or(1.0, |weight| weight[channel].to_f64());
        let sums = sums.map(|sums| sums.backward(channel));
        GradTerms::new(weight, saved.invstd[channel], saved.count, sums)
    };
    if sums.is_none() {
        let coefficients = Coefficients::new(&geometry, |channel, _| [terms(channel).scale])?;
        map(&geometry, &coefficients, [dy], dx, &Scaled);
        return Ok(());
    }
    let coefficients = Coefficients::new(&geometry, |channel, rest| {
        let GradTerms { scale, mean_dy, slope } = terms(channel);
        let mean = saved.mean[channel];
        [mean, scale, mean_dy - rest(mean) * slope, slope]
    })?;
    let inputs = [Input::Apart(x.mem()), dy];
    map(&geometry, &coefficients, inputs, dx, &Centred);
    Ok(())
}

/// dx of given statistics.
struct Scaled;

impl Formula<1, 1> for Scaled {
    #[inline(always)]
    fn of<A: Real>(&self, [dy]: [A; 1], [scale]: [A; 1]) -> A {
        scale * dy
    }
}

/// dx of a batch's.
struct Centred;

impl Formula<2, 4> for Centred {
    #[inline(always)]
    fn of<A: Real>(&self, [x, dy]: [A; 2], [mean, scale, mean_dy, slope]: [A; 4]) -> A {
        scale * ((dy - mean_dy) - (x - mean) * slope)
    }
}
