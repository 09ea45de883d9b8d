//! `sum_dy` and `sum_dy_xmu = sum dy (x - mean)` per channel, and this rank's gradients of weight and bias: one pass over
//! x and dy.
//!
//! Deliberately not here: the loops, and which element belongs to which tile.

use syncbn_core::Element;
use syncbn_core::backend::GradSumsArgs;
use syncbn_core::host_memory::saved_channel;

use crate::memory::{Workspace, scratch};
use crate::number::Number;
use crate::partition::Tiles;
use crate::reduce::{self, Terms};
use crate::vector::Vector;
use crate::{Cpu, CpuError};

pub(crate) fn grad_sums<T: Number>(args: GradSumsArgs<'_, Cpu, T>) -> Result<(), CpuError> {
    let GradSumsArgs { x, dy, saved, d_weight, d_bias, workspace } = args;
    let geometry = x.geometry();
    let channels = geometry.channels();
    let tiles = Tiles::new(geometry);
    let Workspace { sums, partials, .. } = workspace;
    let partials = scratch(partials, tiles.splits() * channels, "sums of tiles")?;
    let inputs: [&[T]; 2] = [x.mem(), dy.mem()];
    tiles.for_each(partials, |tile, partials| {
        partials.fill([0.0; 2]);
        let mean = |channel: usize| saved_channel(saved, channel).0.mean;
        reduce::tile(geometry, tile, inputs, mean, partials, Products);
    })?;

    let (sum_dy, sum_dy_xmu) = sums.split_at_mut(channels);
    sum_dy.fill(0.0);
    sum_dy_xmu.fill(0.0);
    for partials in partials.chunks(channels) {
        for ((partial, sum_dy), sum_dy_xmu) in partials.iter().zip(&mut *sum_dy).zip(&mut *sum_dy_xmu) {
            *sum_dy += partial[0];
            *sum_dy_xmu += partial[1];
        }
    }
    if let Some(d_bias) = d_bias {
        for (d_bias, sum_dy) in d_bias.iter_mut().zip(sum_dy) {
            *d_bias = T::Param::from_f64(*sum_dy);
        }
    }
    if let Some(d_weight) = d_weight {
        for (channel, (d_weight, sum_dy_xmu)) in d_weight.iter_mut().zip(sum_dy_xmu).enumerate() {
            let (_, invstd) = saved_channel(saved, channel);
            *d_weight = T::Param::from_f64(*sum_dy_xmu * invstd);
        }
    }
    Ok(())
}

/// `dy` and `dy (x - mean)`.
#[derive(Clone, Copy)]
struct Products;

impl Terms<2> for Products {
    #[inline(always)]
    fn of<V: Vector>(self, [x, dy]: [V; 2], mean: V) -> [V; 2] {
        [dy, dy * (x - mean)]
    }
}
