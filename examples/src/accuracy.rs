//! How exact y, dx and the running variance are over any number of ranks, against a two-pass truth over the whole batch.
//!
//! The batch has mean/std of a given size. The truth is taken from the differences to each channel's first element, which are exact,
//! so that it does not suffer from the mean.

use std::num::NonZeroUsize;

use serde::Serialize;
use syncbn_core::{
    Config, Element, Gradients, Kernels, ParamGradients, Storage, SyncBatchNorm, View, ViewMut,
};

use crate::Result;
use crate::device::Device;
use crate::world::{Seat, Way, run};

/// (N, C, L) of the whole batch: 197 samples, so that no number of ranks but 1 divides it.
const SAMPLES: usize = 197;
const CHANNELS: usize = 4;
const LENGTH: usize = 16;
const EPS: f64 = 1e-5;

/// The relative errors, in the Euclidean norm, of one batch.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What computed.
    pub backend: String,
    /// The type of the activations.
    pub dtype: String,
    /// The size of the mean beside the standard deviation, which is 1.
    pub mean_over_std: f64,
    /// The number of ranks.
    pub ranks: usize,
    /// Of y.
    pub y: f64,
    /// Of dx.
    pub dx: f64,
    /// Of the running variance, after a batch with momentum 1.
    pub running_var: f64,
}

/// The errors for every size of the mean, over 1, 2, 7 and 64 ranks, or over as many as the device's groups have.
pub fn measure<D: Device, T: Element>(device: &D, backend: &str, sizes: &[f64]) -> Result<Vec<Row>>
where
    D::Backend: Kernels<T>,
{
    let all = [1, 2, 7, 64].map(NonZeroUsize::new);
    let worlds = device.world_size().map_or_else(|| all.to_vec(), |size| vec![Some(size)]);
    let mut rows = Vec::new();
    for &mean_over_std in sizes {
        let batch = Batch::<T>::draw(mean_over_std);
        for world in worlds.iter().copied().flatten() {
            let errors = run(device, Way::Synchronised, world, |seat| errors(seat, &batch))?;
            let [y, dx, running_var] = errors.into_iter().next().ok_or("no rank measured")?;
            let (backend, dtype) = (backend.to_owned(), T::DTYPE.to_string());
            rows.push(Row { backend, dtype, mean_over_std, ranks: world.get(), y, dx, running_var });
        }
    }
    Ok(rows)
}

/// A batch, and what is true of it.
struct Batch<T: Element> {
    x: Vec<T>,
    dy: Vec<T>,
    y: Vec<f64>,
    dx: Vec<f64>,
    /// Unbiased, by channel.
    var: Vec<f64>,
}

impl<T: Element> Batch<T> {
    fn draw(mean_over_std: f64) -> Self {
        let mut random = fastrand::Rng::with_seed(1);
        // The sum of 12 even numbers from -1/2 to 1/2: mean 0, variance 1.
        let mut normal = || (0..12).map(|_| random.f64() - 0.5).sum::<f64>();
        let len = SAMPLES * CHANNELS * LENGTH;
        let mean = |i: usize| mean_over_std * (1.0 + channel(i) as f64 / 7.0);
        let x: Vec<T> = (0..len).map(|i| T::from_f64(mean(i) + normal())).collect();
        let dy: Vec<T> = (0..len).map(|_| T::from_f64(normal())).collect();
        let (mut y, mut dx, mut var) = (vec![0.0; len], vec![0.0; len], Vec::new());
        for c in 0..CHANNELS {
            let at: Vec<usize> = (0..len).filter(|&i| channel(i) == c).collect();
            let first = x[at[0]].to_f64();
            let average =
                |of: &dyn Fn(usize) -> f64| at.iter().map(|&i| of(i)).sum::<f64>() / at.len() as f64;
            let difference = |i: usize| x[i].to_f64() - first;
            let mean = average(&difference);
            let biased = average(&|i| (difference(i) - mean).powi(2));
            let invstd = 1.0 / (biased + EPS).sqrt();
            let xhat = |i: usize| (difference(i) - mean) * invstd;
            let mean_dy = average(&|i| dy[i].to_f64());
            let slope = average(&|i| dy[i].to_f64() * xhat(i));
            for &i in &at {
                y[i] = xhat(i);
                dx[i] = invstd * (dy[i].to_f64() - mean_dy - xhat(i) * slope);
            }
            var.push(biased * at.len() as f64 / (at.len() - 1) as f64);
        }
        Self { x, dy, y, dx, var }
    }
}

fn channel(element: usize) -> usize {
    element / LENGTH % CHANNELS
}

/// The errors of y, dx and the running variance, over all ranks.
fn errors<B: Storage + Kernels<T>, T: Element>(seat: &Seat<B>, batch: &Batch<T>) -> Result<[f64; 3]> {
    let Seat { backend, queue, norms, .. } = seat;
    let samples = seat.share(SAMPLES);
    let shape = [samples.len(), CHANNELS, LENGTH];
    let part = samples.start * CHANNELS * LENGTH..samples.end * CHANNELS * LENGTH;
    let config = Config::new(CHANNELS).with_eps(EPS).with_momentum(Some(1.0));
    let mut norm =
        SyncBatchNorm::<B, T::Param>::new("accuracy", config, backend.clone(), queue, norms.clone())?;

    let x = backend.upload(queue, &batch.x[part.clone()])?;
    let dy = backend.upload(queue, &batch.dy[part.clone()])?;
    let mut y = backend.upload(queue, &vec![T::default(); part.len()])?;
    let mut dx = backend.upload(queue, &vec![T::default(); part.len()])?;
    let view = || View::channels_first(B::mem(&x), &shape);
    let saved = norm.forward(queue, view(), ViewMut::channels_first(B::mem_mut(&mut y), &shape))?;
    let gradients = Gradients::out_of_place(
        View::channels_first(B::mem(&dy), &shape),
        ViewMut::channels_first(B::mem_mut(&mut dx), &shape),
    );
    norm.backward(queue, &saved, view(), gradients, ParamGradients::default())?;

    let (y, dx) = (seat.values(&y)?, seat.values(&dx)?);
    let mut squares = [squares(&y, &batch.y[part.clone()]), squares(&dx, &batch.dx[part])].concat();
    seat.all_reduce("squares", &mut squares)?;
    let var = norm.state(queue)?.running_var.unwrap_or_default();
    let var = self::squares(&var, &batch.var);
    let relative = |of: &[f64]| (of[0] / of[1]).sqrt();
    Ok([relative(&squares[..2]), relative(&squares[2..]), relative(&var)])
}

/// The sums of the squares of the errors, and of the true values.
fn squares<T: Element>(got: &[T], expected: &[f64]) -> [f64; 2] {
    let pairs = || got.iter().map(|value| value.to_f64()).zip(expected);
    [pairs().map(|(got, expected)| (got - expected).powi(2)).sum(), expected.iter().map(|e| e * e).sum()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Host;

    #[test]
    fn many_ranks_are_as_exact_as_one() {
        let sizes = [1.0, 1e4, 1e8, 1e12];
        let rows = measure::<_, f64>(&Host, "cpu", &sizes).unwrap();
        assert_eq!(rows.len(), 4 * sizes.len());
        for of_size in rows.chunks(4) {
            let one = &of_size[0];
            for many in of_size {
                // What one rounding of the mean costs, and of the numbers themselves.
                let least = 1e-15 + f64::EPSILON * one.mean_over_std;
                for (many, one) in [(many.y, one.y), (many.dx, one.dx), (many.running_var, one.running_var)] {
                    assert!(many <= 4.0 * one.max(least), "{of_size:?}");
                }
            }
        }
    }
}
