//! The training loop: of one rank, and of all as threads.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use candle_core::{D, DType, ModuleT};
use candle_nn::{VarMap, loss::cross_entropy};
use syncbn_candle::{Group, Reduction, all_reduce_gradients, broadcast_state, check_state, sorted_vars};
use syncbn_comm::threads;

use crate::data::Samples;
use crate::resnet::{ResNet, Size};
use crate::sgd::{Sgd, rate};
use crate::{Result, checkpoint};

/// How long a rank waits for the others: rank 0 evaluates and writes files while they wait.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Whose samples a batch norm's statistics are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// One process has the whole batch.
    Single,
    /// Each rank's own.
    Local,
    /// All ranks'.
    Sync,
}

/// A run's settings.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose samples a batch norm's statistics are of.
    pub way: Way,
    /// The number of ranks; with [`Way::Single`] their batch is one process's.
    pub ranks: NonZeroUsize,
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
    /// The loss of every step, over the whole batch.
    pub losses: Vec<f64>,
    /// The part of the test samples that is classified rightly, after every epoch.
    pub accuracies: Vec<f64>,
    /// Rank 0's variables.
    pub vars: VarMap,
}

/// Trains all ranks, each a thread. `tell` is called by rank 0 after every step.
pub fn train(
    settings: &Settings,
    data: (&Samples, &Samples),
    tell: impl Fn(Progress) + Sync,
) -> Result<Outcome> {
    let ranks = if settings.way == Way::Single { NonZeroUsize::MIN } else { settings.ranks };
    let outcomes =
        threads::run(ranks, TIMEOUT, |comm| train_rank(settings, data, &Group::via_host(comm), &tell))?;
    let mut outcomes = outcomes.into_iter().collect::<Result<Vec<_>>>()?.into_iter();
    let mut all = outcomes.next().ok_or("no rank trained")?;
    for other in outcomes {
        all.losses.iter_mut().zip(other.losses).for_each(|(sum, loss)| *sum += loss);
    }
    all.losses.iter_mut().for_each(|loss| *loss /= ranks.get() as f64);
    Ok(all)
}

fn train_rank(
    settings: &Settings,
    (training, test): (&Samples, &Samples),
    group: &Group,
    tell: &impl Fn(Progress),
) -> Result<Outcome> {
    let own = Group::single_rank();
    let norms = if settings.way == Way::Sync { group } else { &own };
    let (mut vars, network) = ResNet::new(settings.size, settings.dtype, norms, settings.seed)?;
    let trained = sorted_vars(&vars);
    let mut sgd = Sgd::new(trained.clone())?;
    let first = match &settings.resume {
        Some(path) => checkpoint::load(path, &mut vars, &mut sgd)?,
        None => 0,
    };
    if settings.way == Way::Local && first > 0 {
        return Err("local running statistics are each rank's own, and the file has rank 0's".into());
    }
    broadcast_state(&vars, group)?;

    let batch = settings.samples * settings.ranks.get();
    let share = batch / group.world_size().get();
    let steps_per_epoch = training.count()? / batch;
    let steps = settings.epochs * steps_per_epoch;
    let (mut losses, mut accuracies) = (Vec::new(), Vec::new());
    for epoch in first..settings.stop_after.unwrap_or(settings.epochs) {
        let order = order(training.count()?, settings.seed, epoch);
        for (at, places) in order.chunks_exact(batch).enumerate() {
            let step = epoch * steps_per_epoch + at;
            group.set_step(step as u64);
            let part = training.select(&places[share * group.rank()..][..share])?;
            let loss = cross_entropy(&network.forward_t(&part.images, true)?, &part.classes)?;
            let mut grads = loss.backward()?;
            all_reduce_gradients(&mut grads, &trained, group, Reduction::Mean)?;
            sgd.step(&grads, rate(settings.rate, step, steps))?;
            let loss = loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            losses.push(loss);
            if group.rank() == 0 {
                tell(Progress { step: (step, steps), loss });
            }
        }
        if settings.way != Way::Local {
            check_state(&vars, group)?;
        }
        if group.rank() == 0 {
            accuracies.push(accuracy(&network, test)?);
            if let Some(path) = &settings.checkpoint {
                checkpoint::save(path, &vars, &sgd, epoch + 1)?;
            }
        }
    }
    Ok(Outcome { losses, accuracies, vars })
}

/// The order of an epoch's samples: it depends on nothing but seed and epoch, so that a run can be continued.
fn order(count: usize, seed: u64, epoch: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..).take(count).collect();
    fastrand::Rng::with_seed(seed.wrapping_add(1000 * (epoch as u64 + 1))).shuffle(&mut order);
    order
}

/// The part of the samples that is classified rightly, by the running statistics.
fn accuracy(network: &ResNet, test: &Samples) -> Result<f64> {
    let best = network.forward_t(&test.images, false)?.argmax(D::Minus1)?;
    let right = best.eq(&test.classes)?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
    Ok(right / test.count()? as f64)
}
