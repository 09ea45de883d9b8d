//! Real data: hand-written digits, a small network, ranks of 2 samples each, in the three ways.
//!
//! The network: 64 -> 32, batch norm, rectifier, 32 -> 16, batch norm, rectifier, 16 -> 10, and cross-entropy. Its layers have one
//! element per sample and channel, so that a rank on its own takes its statistics over two numbers: the case that
//! synchronisation is for.

use std::num::NonZeroUsize;
use std::ops::Range;

use ndarray::{Array2, Axis, s};
use syncbn_core::{Backend, Kernels, Storage};

use crate::Result;
use crate::device::Device;
use crate::difference::largest;
use crate::layers::{BatchNorm, Linear, Relu};
use crate::network::{Loss, Network};
use crate::world::{Seat, Way, run};

const EPOCHS: usize = 3;
const RATE: f64 = 0.1;
const TRAINING: usize = 1347;
const PIXELS: usize = 64;
const CLASSES: usize = 10;

/// Samples of every rank but the last, which has what is left of a batch.
pub const SAMPLES: usize = 2;

/// Samples of a step, over all ranks: two for each, and at least 8, since the statistics of fewer are noise on one process, too,
/// so that training multiplies every rounding.
#[must_use]
pub fn batch(ranks: NonZeroUsize) -> usize {
    (SAMPLES * ranks.get()).max(8)
}

/// The steps of one training.
#[must_use]
pub fn steps(ranks: NonZeroUsize) -> usize {
    TRAINING / batch(ranks) * EPOCHS
}

/// A rank's part of a batch of so many samples.
fn share<B: Backend>(seat: &Seat<B>, batch: usize) -> Range<usize> {
    let first = SAMPLES * seat.rank;
    first..if seat.rank + 1 == seat.world_size { batch } else { first + SAMPLES }
}

/// Images, a row each, and their classes.
struct Samples {
    images: Array2<f32>,
    classes: Vec<usize>,
}

/// What one way of training came to.
pub struct Outcome {
    /// The whole batch's mean loss at every step.
    pub curve: Vec<f64>,
    /// The part of the test images that rank 0's network classifies rightly, with its running statistics.
    pub accuracy: f64,
}

/// The outcomes of the three ways, in the order of [`Way::ALL`]. `tick` is called at every step of rank 0.
pub fn compare(
    device: &impl Device,
    ranks: NonZeroUsize,
    seed: u64,
    tick: impl Fn() + Sync,
) -> Result<[Outcome; 3]> {
    let all = parse(include_str!("../data/optdigits.csv"))?;
    let (training, test) = all.split(TRAINING);
    let order = draw_order(batch(ranks), &mut fastrand::Rng::with_seed(seed));
    let train = |way| -> Result<Outcome> {
        let outcomes = run(device, way, ranks, |seat| train(seat, seed, &training, &order, &test, &tick))?;
        outcomes.into_iter().next().ok_or_else(|| "no rank trained".into())
    };
    Ok([train(Way::Single)?, train(Way::Local)?, train(Way::Synchronised)?])
}

/// The largest difference of two curves at any step.
#[must_use]
pub fn gap(one: &[f64], other: &[f64]) -> f64 {
    largest(one.iter().zip(other).map(|(one, other)| (one - other).abs()))
}

/// Which samples each step takes; an epoch takes each once, in an order of its own, and drops the last incomplete batch.
fn draw_order(batch: usize, random: &mut fastrand::Rng) -> Vec<Vec<usize>> {
    let mut epoch = || {
        let mut order: Vec<_> = (0..TRAINING).collect();
        random.shuffle(&mut order);
        order.chunks_exact(batch).map(<[usize]>::to_vec).collect::<Vec<_>>()
    };
    (0..EPOCHS).flat_map(|_| epoch()).collect()
}

fn train<B: Storage + Kernels<f32>>(
    seat: &Seat<B>,
    seed: u64,
    training: &Samples,
    order: &[Vec<usize>],
    test: &Samples,
    tick: &impl Fn(),
) -> Result<Outcome> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let mut network = Network::new(vec![
        Box::new(Linear::new(PIXELS, 32, random)),
        Box::new(BatchNorm::new("norm1", 32, seat)?),
        Box::new(Relu::default()),
        Box::new(Linear::new(32, 16, random)),
        Box::new(BatchNorm::new("norm2", 16, seat)?),
        Box::new(Relu::default()),
        Box::new(Linear::new(16, CLASSES, random)),
    ]);
    let mut curve = Vec::with_capacity(order.len());
    for (step, batch) in order.iter().enumerate() {
        seat.all.set_step(step as u64);
        let Samples { images, classes } = training.select(&batch[share(seat, batch.len())]);
        let loss = |y: &Array2<f32>| cross_entropy(y, &classes, batch.len());
        curve.push(network.train(images, loss, RATE, seat)?);
        if seat.rank == 0 {
            tick(); // once a step, whatever the number of ranks
        }
    }
    network.set_training(false);
    let scores = network.forward(test.images.clone())?;
    let right = scores.rows().into_iter().zip(&test.classes).filter(|(row, class)| best(row) == **class);
    Ok(Outcome { curve, accuracy: right.count() as f64 / test.classes.len() as f64 })
}

/// This rank's part of the mean over `batch` samples of the cross-entropy of their scores.
fn cross_entropy(scores: &Array2<f32>, classes: &[usize], batch: usize) -> Loss {
    let mut gradient = Array2::zeros(scores.dim());
    let mut value = 0.0;
    for ((row, mut gradient), &class) in scores.rows().into_iter().zip(gradient.rows_mut()).zip(classes) {
        let row = row.mapv(f64::from);
        let top = row.fold(f64::NEG_INFINITY, |top, &score| top.max(score));
        let log_sum = row.mapv(|score| (score - top).exp()).sum().ln() + top;
        value += (log_sum - row[class]) / batch as f64;
        for (c, gradient) in gradient.iter_mut().enumerate() {
            let target = if c == class { 1.0 } else { 0.0 };
            *gradient = (((row[c] - log_sum).exp() - target) / batch as f64) as f32;
        }
    }
    Loss { value, gradient }
}

/// The class with the highest score.
fn best(scores: &ndarray::ArrayView1<'_, f32>) -> usize {
    let higher = |best: usize, class: usize| if scores[class] > scores[best] { class } else { best };
    (1..scores.len()).fold(0, higher)
}

/// Lines of 64 brightnesses 0..16, which become 0..1, and a class.
fn parse(text: &str) -> Result<Samples> {
    let mut classes = Vec::new();
    let mut pixels = Vec::new();
    for line in text.lines() {
        let mut numbers =
            line.split(',').map(str::parse::<u8>).collect::<std::result::Result<Vec<_>, _>>()?;
        let class = numbers.pop().ok_or("an empty line")?;
        classes.push(usize::from(class));
        pixels.extend(numbers.into_iter().map(|pixel| f32::from(pixel) / 16.0));
    }
    Ok(Samples { images: Array2::from_shape_vec((classes.len(), PIXELS), pixels)?, classes })
}

impl Samples {
    /// The samples at these places.
    fn select(&self, places: &[usize]) -> Self {
        Self {
            images: self.images.select(Axis(0), places),
            classes: places.iter().map(|&place| self.classes[place]).collect(),
        }
    }

    /// The first `count` samples, and the others.
    fn split(&self, count: usize) -> (Self, Self) {
        let (first, others) = self.classes.split_at(count);
        let (first_images, other_images) =
            (self.images.slice(s![..count, ..]), self.images.slice(s![count.., ..]));
        (
            Self { images: first_images.to_owned(), classes: first.to_vec() },
            Self { images: other_images.to_owned(), classes: others.to_vec() },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Host;

    #[test]
    fn the_data_are_what_their_readme_says() {
        let (training, test) = parse(include_str!("../data/optdigits.csv")).unwrap().split(TRAINING);
        assert_eq!((training.images.dim(), test.images.dim()), ((1347, 64), (450, 64)));
        assert!(training.images.iter().all(|pixel| (0.0..=1.0).contains(pixel)));
        assert!((0..10).all(|class| test.classes.contains(&class)));
    }

    #[test]
    fn an_epoch_takes_no_sample_twice_and_drops_the_incomplete_batch() {
        let order = draw_order(16, &mut fastrand::Rng::with_seed(0));
        assert_eq!((order.len(), steps(NonZeroUsize::new(8).unwrap())), (252, 252));
        let mut epoch: Vec<_> = order[..84].concat();
        epoch.sort_unstable();
        epoch.dedup();
        assert_eq!(epoch.len(), 84 * 16);
    }

    #[test]
    fn the_loss_has_the_gradient_that_finite_differences_have() {
        let scores = ndarray::array![[0.5, -1.0, 2.0], [1.0, 1.0, -3.0]];
        let loss = |scores: &Array2<f32>| cross_entropy(scores, &[2, 0], 5);
        let step = 1e-2;
        for index in ndarray::indices(scores.dim()) {
            let (mut up, mut down) = (scores.clone(), scores.clone());
            up[index] += step;
            down[index] -= step;
            let slope = (loss(&up).value - loss(&down).value) / f64::from(2.0 * step);
            assert!((slope - f64::from(loss(&scores).gradient[index])).abs() < 1e-5);
        }
    }

    #[test]
    fn few_ranks_tell_local_from_synchronised_too() {
        for ranks in [2, 3] {
            let ranks = NonZeroUsize::new(ranks).unwrap();
            let [single, local, sync] = compare(&Host, ranks, 1, || ()).unwrap();
            assert!(gap(&single.curve, &sync.curve) <= 1e-3);
            assert!(sync.accuracy - local.accuracy >= 0.02, "{} and {}", sync.accuracy, local.accuracy);
        }
    }
}
