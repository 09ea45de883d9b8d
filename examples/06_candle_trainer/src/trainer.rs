//! The training loop of one rank.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::{D, DType, ModuleT};
use candle_nn::{VarMap, loss::cross_entropy};
use syncbn_candle::{Group, Reduction, all_reduce_gradients, broadcast_state, check_state, sorted_vars};

use crate::data::{Data, Samples};
use crate::resnet::{Norms, ResNet, Size};
use crate::sgd::{Sgd, rate};
use crate::world::{Place, World};
use crate::{Result, checkpoint};

/// Whose samples a batch norm's statistics are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// One process has the whole batch.
    Single,
    /// Each rank's own.
    Local,
    /// Each rank's own, by candle's layer.
    Candle,
    /// All ranks'.
    Sync,
}

/// A run's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose samples a batch norm's statistics are of.
    pub way: Way,
    /// The ranks; with [`Way::Single`] their batch is one process's.
    pub world: World,
    /// Samples of a rank in a step.
    pub samples: usize,
    /// The number of passes over the samples.
    pub epochs: usize,
    /// The network's size.
    pub size: Size,
    /// The highest learning rate.
    pub rate: f64,
    /// What variables and orders are drawn from.
    pub seed: u64,
    /// The type of everything.
    pub dtype: DType,
    /// Written after every epoch.
    pub checkpoint: Option<PathBuf>,
    /// Where to go on from.
    pub resume: Option<PathBuf>,
    /// Ends after so many epochs, as if it were interrupted.
    pub stop_after: Option<usize>,
}

/// What a rank tells while it trains.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// The step, from 0, and how many there are.
    pub step: (usize, usize),
    /// The loss of rank 0's samples.
    pub loss: f64,
}

/// What came out.
pub struct Outcome {
    /// The loss of every step, over the samples of this process.
    pub losses: Vec<f64>,
    /// The part of the test samples that is classified rightly, after every epoch.
    pub accuracies: Vec<f64>,
    /// Images of all ranks in a second of training, from the second step on.
    pub images_per_second: f64,
    /// This process's first rank's variables.
    pub vars: VarMap,
}

/// Trains the ranks of this process. `tell` is called by rank 0 after every step.
pub fn train(settings: &Settings, data: &Data, tell: impl Fn(Progress) + Sync) -> Result<Outcome> {
    let world = if settings.way == Way::Single { settings.world.alone()? } else { settings.world.clone() };
    let mut outcomes = world.run(|place| train_rank(settings, data, place, &tell))?.into_iter();
    let mut all = outcomes.next().ok_or("no rank trained")?;
    let ranks = 1 + outcomes.len();
    for other in outcomes {
        all.losses.iter_mut().zip(other.losses).for_each(|(sum, loss)| *sum += loss);
    }
    all.losses.iter_mut().for_each(|loss| *loss /= ranks as f64);
    Ok(all)
}

fn train_rank(
    settings: &Settings,
    data: &Data,
    Place { device, group }: &Place,
    tell: &impl Fn(Progress),
) -> Result<Outcome> {
    let norms = match settings.way {
        Way::Sync | Way::Single => Norms::Of(group.clone()),
        Way::Local => Norms::Of(Group::single_rank()),
        Way::Candle => Norms::Candle,
    };
    let (training, test) = (data.training.to_device(device)?, data.test.to_device(device)?);
    let forms = (training.images.dim(1)?, data.classes);
    let (mut vars, network) =
        ResNet::new(settings.size, forms, (settings.dtype, device), &norms, settings.seed)?;
    let trained = sorted_vars(&vars);
    let mut sgd = Sgd::new(trained.clone())?;
    let first = match &settings.resume {
        Some(path) => checkpoint::load(path, &mut vars, &mut sgd)?,
        None => 0,
    };
    let is_local = matches!(settings.way, Way::Local | Way::Candle);
    if is_local && first > 0 {
        return Err("local running statistics are each rank's own, and the file has rank 0's".into());
    }
    broadcast_state(&vars, group)?;

    let ranks = settings.world.size().get();
    let batch = settings.samples.checked_mul(ranks).filter(|&batch| batch > 0);
    let batch =
        batch.ok_or_else(|| format!("{} samples on each of {ranks} ranks are no batch", settings.samples))?;
    let share = batch / group.world_size().get();
    let steps_per_epoch = training.count()? / batch;
    if steps_per_epoch == 0 {
        return Err(format!("{} training samples are less than a batch of {batch}", training.count()?).into());
    }
    let steps = settings.epochs.saturating_mul(steps_per_epoch);
    let (mut losses, mut accuracies) = (Vec::new(), Vec::new());
    let mut clock = Clock::default();
    for epoch in first..settings.stop_after.unwrap_or(settings.epochs) {
        let order = order(training.count()?, settings.seed, epoch);
        for (at, places) in order.chunks_exact(batch).enumerate() {
            let (step, start) = (epoch * steps_per_epoch + at, Instant::now());
            group.set_step(step as u64);
            let part = training.select(&places[share * group.rank()..][..share])?;
            let loss = cross_entropy(&network.forward_t(&part.images, true)?, &part.classes)?;
            let mut grads = loss.backward()?;
            all_reduce_gradients(&mut grads, &trained, group, Reduction::Mean)?;
            sgd.step(&grads, rate(settings.rate, step, steps))?;
            let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            losses.push(loss);
            clock.step(start);
            if group.rank() == 0 {
                tell(Progress { step: (step, steps), loss });
            }
        }
        if !is_local {
            check_state(&vars, group)?;
        }
        if group.rank() == 0 {
            accuracies.push(accuracy(&network, &test)?);
            if let Some(path) = &settings.checkpoint {
                checkpoint::save(path, &vars, &sgd, epoch + 1)?;
            }
        }
    }
    let images_per_second = batch as f64 * clock.steps_per_second();
    Ok(Outcome { losses, accuracies, images_per_second, vars })
}

/// The time of all steps but the first, which compiles kernels and fills caches.
#[derive(Default)]
struct Clock {
    steps: usize,
    seconds: f64,
}

impl Clock {
    fn step(&mut self, start: Instant) {
        if self.steps > 0 {
            self.seconds += start.elapsed().as_secs_f64();
        }
        self.steps += 1;
    }

    fn steps_per_second(&self) -> f64 {
        self.steps.saturating_sub(1) as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// The order of an epoch's samples: it depends on nothing but seed and epoch, so that a run can be continued.
fn order(count: usize, seed: u64, epoch: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(count).collect();
    fastrand::Rng::with_seed(seed.wrapping_add(1000 * (epoch as u64 + 1))).shuffle(&mut order);
    order
}

/// The part of the samples that is classified rightly, by the running statistics.
fn accuracy(network: &ResNet, test: &Samples) -> Result<f64> {
    const PIECE: usize = 512;
    let (mut right, count) = (0.0, test.count()?);
    for from in (0..count).step_by(PIECE) {
        let piece = test.range(from, PIECE.min(count - from))?;
        let best = network.forward_t(&piece.images, false)?.argmax(D::Minus1)?;
        right += best.eq(&piece.classes)?.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
    }
    Ok(f64::from(right) / count as f64)
}
