//! `sum_dy` and `sum_dy_xmu = sum dy (x - mean)` per channel, and this rank's gradients of weight and bias: one pass over
//! x and dy.

use pulp::Simd;
use syncbn_core::backend::GradSumsArgs;
use syncbn_core::{Element, Geometry};

use crate::memory::{Sums, scratch};
use crate::number::Number;
use crate::partition::Cut;
use crate::sums::{Terms, reduce};
use crate::{Cpu, CpuError};

pub(crate) fn grad_sums<T: Number>(args: GradSumsArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, out, .. } = args;
    let geometry = x.geometry();
    let Sums { message, partials, .. } = out;
    let sums = &mut message[..2 * geometry.channels()];
    sums.fill(0.0);
    if !geometry.is_empty() {
        let cut = Cut::new(geometry);
        let partials = scratch(partials, cut.splits() * cut.columns(), "sums of tiles")?;
        let inputs: [&[T]; 2] = [x.mem(), dy.mem()];
        let centred = Centred { mean: &saved.mean };
        reduce(&cut, inputs, partials, &centred);
        add(&cut, geometry, inputs, &saved.mean, partials, sums);
    }
    let (sum_dy, sum_dy_xmu) = sums.split_at(geometry.channels());
    if let Some(d_bias) = d_bias {
        for (d_bias, sum_dy) in d_bias.iter_mut().zip(sum_dy) {
            *d_bias = T::Param::from_f64(*sum_dy);
        }
    }
    if let Some(d_weight) = d_weight {
        for ((d_weight, sum_dy_xmu), invstd) in d_weight.iter_mut().zip(sum_dy_xmu).zip(&saved.invstd) {
            *d_weight = T::Param::from_f64(*sum_dy_xmu * invstd);
        }
    }
    Ok(())
}

/// Sums of dy and dy (x - mean).
struct Centred<'a> {
    mean: &'a [f64],
}

impl Terms<2> for Centred<'_> {
    #[inline(always)]
    fn shift(&self, channel: usize, _: f64) -> f64 {
        self.mean[channel]
    }

    #[inline(always)]
    fn padding(&self, mean: f64) -> [f64; 2] {
        [mean, 0.0]
    }

    #[inline(always)]
    fn add<S: Simd>(
        &self,
        simd: S,
        sums: [S::f64s; 2],
        [x, dy]: [S::f64s; 2],
        mean: S::f64s,
    ) -> [S::f64s; 2] {
        [simd.add_f64s(sums[0], dy), simd.mul_add_e_f64s(dy, simd.sub_f64s(x, mean), sums[1])]
    }

    #[inline(always)]
    fn result(&self, sums: [f64; 2], _: f64, _: f64) -> [f64; 2] {
        sums
    }
}

/// Adds the splits column by column, then the columns and the rest channel by channel.
fn add<T: Number>(
    cut: &Cut,
    geometry: &Geometry,
    inputs: [&[T]; 2],
    mean: &[f64],
    partials: &mut [[f64; 2]],
    sums: &mut [f64],
) {
    let (columns, splits) = partials.split_at_mut(cut.columns());
    for more in splits.chunks(columns.len()) {
        for (column, more) in columns.iter_mut().zip(more) {
            *column = [column[0] + more[0], column[1] + more[1]];
        }
    }
    let (sum_dy, sum_dy_xmu) = sums.split_at_mut(geometry.channels());
    let mut add = |channel: usize, [dy, dy_xmu]: [f64; 2]| {
        sum_dy[channel] += dy;
        sum_dy_xmu[channel] += dy_xmu;
    };
    for (channel, &sums) in cut.channels().zip(&*columns) {
        add(channel, sums);
    }
    for (channel, i) in cut.channels().zip(cut.rest(geometry)) {
        let [x, dy] = inputs.map(|input| input[i].to_f64());
        add(channel, [dy, dy * (x - mean[channel])]);
    }
}
