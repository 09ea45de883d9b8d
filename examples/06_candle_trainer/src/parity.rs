//! How far two ranks with unequal parts of a batch are from one process with the whole, after 200 steps in `f64`.

use std::num::NonZeroUsize;
use std::time::Duration;

use candle_core::{DType, Device, ModuleT, Tensor};
use candle_nn::loss::cross_entropy;
use syncbn_candle::{Group, Reduction, all_reduce_gradients, sorted_vars};
use syncbn_comm::threads;

use crate::Result;
use crate::data::{Samples, digits};
use crate::resnet::{Norms, ResNet, Size};
use crate::sgd::Sgd;

const STEPS: usize = 200;
const PARTS: [usize; 2] = [20, 12];
const SIZE: Size = Size { width: 4, blocks: 1 };
const RATE: f64 = 0.01;

/// The largest difference of any variable, relative to that variable's largest value.
pub fn largest_difference() -> Result<f64> {
    let training = digits(DType::F64)?.training;
    let whole = train(&training, &Group::single_rank(), 0, PARTS.iter().sum())?;
    let parts =
        threads::run(NonZeroUsize::new(PARTS.len()).ok_or("no ranks")?, Duration::from_secs(600), |comm| {
            let group = Group::via_host(comm);
            let rank = group.rank();
            train(&training, &group, PARTS[..rank].iter().sum(), PARTS[rank])
        })?;
    let mut largest = 0.0_f64;
    for part in parts {
        for (got, expected) in part?.iter().zip(&whole) {
            let max = |tensor: Tensor| -> Result<f64> {
                Ok(tensor.to_dtype(DType::F64)?.abs()?.flatten_all()?.max(0)?.to_scalar()?)
            };
            let (got, expected) = (got.to_dtype(DType::F64)?, expected.to_dtype(DType::F64)?);
            let far = max((got - &expected)?)? / max(expected)?.max(f64::MIN_POSITIVE);
            // A NaN is as far as can be.
            largest = if far <= largest { largest } else { far };
        }
    }
    Ok(largest)
}

/// Every variable after the last step; this rank has `count` samples of each batch from `first` on.
fn train(training: &Samples, group: &Group, first: usize, count: usize) -> Result<Vec<Tensor>> {
    let batch: usize = PARTS.iter().sum();
    let (vars, network) =
        ResNet::new(SIZE, (1, 10), (DType::F64, &Device::Cpu), &Norms::Of(group.clone()), 1)?;
    let trained = sorted_vars(&vars);
    let mut sgd = Sgd::new(trained.clone())?;
    for step in 0..STEPS {
        group.set_step(step as u64);
        let from = step * batch % (training.count()? - batch) + first;
        let places: Vec<u32> = (0..).skip(from).take(count).collect();
        let part = training.select(&places)?;
        let mean = cross_entropy(&network.forward_t(&part.images, true)?, &part.classes)?;
        let mut grads = (mean * (count as f64 / batch as f64))?.backward()?;
        all_reduce_gradients(&mut grads, &trained, group, Reduction::Sum)?;
        sgd.step(&grads, RATE)?;
    }
    Ok(trained.iter().map(candle_core::Var::as_detached_tensor).collect())
}
