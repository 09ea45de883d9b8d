//! Ranks that train together are one process with the whole batch.

use crate::common::{difference, drawn, ranks};
use crate::place::{available, device};
use candle_core::{DType, ModuleT, Result, Tensor};
use candle_nn::{Linear, Module, Optimizer, SGD, VarBuilder, VarMap, linear, linear_no_bias, loss};
use syncbn_candle::{
    Group, Reduction, SyncBatchNorm, all_reduce_gradients, broadcast_state, sorted_vars, sync_batch_norm,
};

const STEPS: usize = 200;
const BATCH: usize = 32;
const RATE: f64 = 0.1;

struct Network {
    hidden: [(Linear, SyncBatchNorm); 2],
    last: Linear,
}

impl Network {
    fn new(vb: &VarBuilder<'_>, group: &Group) -> Result<Self> {
        let hidden = |name: &str, inputs, outputs| -> Result<_> {
            let vb = vb.pp(name);
            let norm = sync_batch_norm(outputs, 1e-5, vb.pp("bn"), group)?;
            // The batch norm takes away what a bias adds.
            Ok((linear_no_bias(inputs, outputs, vb.pp("linear"))?, norm))
        };
        Ok(Self {
            hidden: [hidden("one", 64, 32)?, hidden("two", 32, 16)?],
            last: linear(16, 10, vb.pp("last"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self
            .hidden
            .iter()
            .try_fold(x.clone(), |x, (linear, norm)| norm.forward_t(&linear.forward(&x)?, true)?.relu())?;
        self.last.forward(&hidden)
    }
}

/// Images of 8 x 8 numbers from 0 to 1, and their classes.
fn digits() -> (Tensor, Tensor) {
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for line in include_str!("../../../../examples/data/optdigits.csv").lines() {
        let numbers: Vec<u32> = line.split(',').map(|number| number.trim().parse().unwrap()).collect();
        let (class, image) = numbers.split_last().unwrap();
        pixels.extend(image.iter().map(|&pixel| f64::from(pixel) / 16.0));
        classes.push(*class);
    }
    let samples = classes.len();
    (
        Tensor::from_vec(pixels, (samples, 64), &device()).unwrap(),
        Tensor::from_vec(classes, samples, &device()).unwrap(),
    )
}

/// Every variable after the last step, by name; `share` are this rank's samples of a batch.
fn train(group: &Group, (first, samples): (usize, usize)) -> Result<Vec<Tensor>> {
    let vars = VarMap::new();
    let network = Network::new(&VarBuilder::from_varmap(&vars, DType::F64, &device()), group)?;
    // Candle's own start is another one in every run.
    for (at, name) in ["one.linear.weight", "two.linear.weight", "last.weight"].into_iter().enumerate() {
        let shape = vars.data().lock().unwrap()[name].dims().to_vec();
        // Ranks but the first begin elsewhere, and are brought in line below.
        let start = (drawn(&shape, DType::F64, (at + 10 * group.rank()) as u64) / 10.0)?;
        vars.clone().set_one(name, start)?;
    }
    vars.clone().set_one("last.bias", Tensor::zeros(10, DType::F64, &device())?)?;
    broadcast_state(&vars, group)?;
    let trained = sorted_vars(&vars);
    let mut sgd = SGD::new(trained.clone(), RATE)?;
    let (images, classes) = digits();
    for step in 0..STEPS {
        group.set_step(step as u64);
        let from = step * BATCH % (images.dim(0)? - BATCH) + first;
        let logits = network.forward(&images.narrow(0, from, samples)?)?;
        // Its share of the whole batch's mean.
        let mean = loss::cross_entropy(&logits, &classes.narrow(0, from, samples)?)?;
        let mut grads = (mean * (samples as f64 / BATCH as f64))?.backward()?;
        all_reduce_gradients(&mut grads, &trained, group, Reduction::Sum)?;
        sgd.step(&grads)?;
    }
    Ok(trained.iter().map(candle_core::Var::as_detached_tensor).collect())
}

#[test]
fn after_200_steps_two_ranks_of_20_and_12_samples_are_one_process_with_32() {
    if !available() {
        return;
    }
    let whole = train(&Group::single_rank(), (0, BATCH)).unwrap();
    let parts = ranks(2, |group| train(group, [(0, 20), (20, 12)][group.rank()]));
    assert_eq!(whole.len(), 14);
    for part in parts {
        for (got, expected) in part.iter().zip(&whole) {
            let far = match got.dtype() {
                DType::I64 => f64::from(u8::from(got.to_scalar::<i64>().unwrap() != STEPS as i64)),
                _ => difference(got, expected),
            };
            assert!(far <= 1e-12, "{:?}: {far:e}", got.shape());
        }
    }
}
