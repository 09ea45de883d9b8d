//! The three comparisons: a toy model, trained for a hundred steps in the three ways from the same start on the same data.
//!
//! The model: 1x1 convolution 3 -> 3, batch norm, rectifier, 1x1 convolution 3 -> 3, batch norm. The loss: the mean over the batch
//! of (the mean of a sample's output - 1)^2. Each rank has one sample of 3x2x2.

use std::num::NonZeroUsize;

use ndarray::{Array2, Axis};
use syncbn_core::{Kernels, State, Storage};

use crate::Result;
use crate::device::Device;
use crate::difference::largest;
use crate::layers::{BatchNorm, Linear, Relu};
use crate::network::{Loss, Network};
use crate::table::Row;
use crate::world::{Seat, Way, run};

const STEPS: usize = 100;
const RATE: f64 = 1e-3;
const CHANNELS: usize = 3;
const PIXELS: usize = 2 * 2;

/// Both batch norms after training.
pub struct Parity {
    /// The numbers of rank 0, in the three ways.
    pub rows: Vec<Row>,
    /// The largest difference between single and any rank of synchronised.
    pub sync_vs_single: f64,
    /// The largest difference between single and rank 0 of local.
    pub local_vs_single: f64,
}

/// Trains in the three ways.
pub fn compare(device: &impl Device, ranks: NonZeroUsize, seed: u64) -> Result<Parity> {
    let batches = draw_batches(ranks.get(), &mut fastrand::Rng::with_seed(seed));
    let train = |way| run(device, way, ranks, |seat| train(seat, seed, &batches));
    let [single, local, synchronised] = [train(Way::Single)?, train(Way::Local)?, train(Way::Synchronised)?];
    let single = &single[0];
    Ok(Parity {
        rows: rows(single, &local[0], &synchronised[0]),
        sync_vs_single: largest(synchronised.iter().map(|rank| largest_difference(rank, single))),
        local_vs_single: largest_difference(&local[0], single),
    })
}

/// A batch for each step, of one sample for each rank: a row for each pixel.
fn draw_batches(samples: usize, random: &mut fastrand::Rng) -> Vec<Array2<f32>> {
    let mut draw = || Array2::from_shape_simple_fn((samples * PIXELS, CHANNELS), || 2.0 * random.f32() - 1.0);
    (0..STEPS).map(|_| draw()).collect()
}

/// The named numbers of both batch norms after training on one rank.
fn train<B: Storage + Kernels<f32>>(
    seat: &Seat<B>,
    seed: u64,
    batches: &[Array2<f32>],
) -> Result<Vec<(String, f32)>> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut network = Network::new(vec![
        Box::new(Linear::new(CHANNELS, CHANNELS, random)),
        Box::new(BatchNorm::new("norm1", CHANNELS, seat)?),
        Box::new(Relu::default()),
        Box::new(Linear::new(CHANNELS, CHANNELS, random)),
        Box::new(BatchNorm::new("norm2", CHANNELS, seat)?),
    ]);
    for (step, batch) in batches.iter().enumerate() {
        seat.all.set_step(step as u64);
        let samples = batch.nrows() / PIXELS;
        let share = seat.share(samples);
        let x = batch.slice(ndarray::s![share.start * PIXELS..share.end * PIXELS, ..]).to_owned();
        network.train(x, |y| squared_error(y, samples), RATE, seat)?;
    }
    Ok(network.states()?.iter().zip(1..).flat_map(|(state, layer)| name_numbers(layer, state)).collect())
}

/// This rank's part of the mean over `samples` of (the sample's mean - 1)^2.
fn squared_error(y: &Array2<f32>, samples: usize) -> Loss {
    let mut gradient = Array2::zeros(y.dim());
    let mut value = 0.0;
    let chunks = y.axis_chunks_iter(Axis(0), PIXELS).zip(gradient.axis_chunks_iter_mut(Axis(0), PIXELS));
    for (sample, mut gradient) in chunks {
        let size = sample.len() as f64;
        let error = sample.iter().copied().map(f64::from).sum::<f64>() / size - 1.0;
        value += error * error / samples as f64;
        gradient.fill((2.0 * error / size / samples as f64) as f32);
    }
    Loss { value, gradient }
}

fn name_numbers(layer: usize, state: &State<f32>) -> Vec<(String, f32)> {
    let tensors = [
        ("running_mean", &state.running_mean),
        ("running_var", &state.running_var),
        ("weight", &state.weight),
        ("bias", &state.bias),
    ];
    let named = |(tensor, values): (&str, &Option<Vec<f32>>)| {
        let values = values.clone().unwrap_or_default().into_iter().enumerate();
        values.map(|(c, value)| (format!("norm{layer}.{tensor}[{c}]"), value)).collect::<Vec<_>>()
    };
    tensors.into_iter().flat_map(named).collect()
}

fn rows(single: &[(String, f32)], local: &[(String, f32)], synchronised: &[(String, f32)]) -> Vec<Row> {
    let others = local.iter().zip(synchronised).map(|(local, synchronised)| (local.1, synchronised.1));
    let row = |((name, single), (local, synchronised)): (&(String, f32), _)| Row {
        name: name.clone(),
        values: [*single, local, synchronised],
    };
    single.iter().zip(others).map(row).collect()
}

fn largest_difference(one: &[(String, f32)], other: &[(String, f32)]) -> f64 {
    largest(one.iter().zip(other).map(|(one, other)| (f64::from(one.1) - f64::from(other.1)).abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_has_the_gradient_that_finite_differences_have() {
        let y = draw_batches(2, &mut fastrand::Rng::with_seed(1)).remove(0);
        let gradient = squared_error(&y, 3).gradient;
        let step = 1e-2;
        for index in ndarray::indices(y.dim()) {
            let (mut up, mut down) = (y.clone(), y.clone());
            up[index] += step;
            down[index] -= step;
            let slope = (squared_error(&up, 3).value - squared_error(&down, 3).value) / f64::from(2.0 * step);
            assert!((slope - f64::from(gradient[index])).abs() < 1e-6);
        }
    }
}
