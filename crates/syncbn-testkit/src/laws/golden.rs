//! Vectors that others computed: `PyTorch` in `f64` on the CPU, and ONNX's own node tests. `golden/make.py` made the file.

use std::sync::LazyLock;

use serde::Deserialize;
use syncbn_core::{Config, Element, Kernels, Layout, State};

use crate::harness::Harness;
use crate::outcome::Outcome;
use crate::rank::{Rank, Step, ranks};
use crate::strategies::within;
use crate::tensor::{Placed, Tensor};
use crate::{broken, ensure};

#[derive(Deserialize)]
struct File {
    cases: Vec<Golden>,
}

/// One batch, and what it gave elsewhere. Tensors are in the order (n, c, s).
#[derive(Deserialize)]
struct Golden {
    name: String,
    channels: usize,
    spatial: Vec<usize>,
    /// The samples of each rank.
    splits: Vec<usize>,
    eps: f64,
    momentum: Option<f64>,
    #[serde(default = "yes")]
    training: bool,
    x: Vec<f64>,
    weight: Vec<f64>,
    bias: Vec<f64>,
    old_mean: Vec<f64>,
    old_var: Vec<f64>,
    y: Vec<f64>,
    new_mean: Option<Vec<f64>>,
    new_var: Option<Vec<f64>>,
    /// With the gradients, where the other side has any.
    dy: Option<Vec<f64>>,
    dx: Option<Vec<f64>>,
    d_weight: Option<Vec<f64>>,
    d_bias: Option<Vec<f64>>,
}

fn yes() -> bool {
    true
}

static FILE: LazyLock<Result<File, String>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../data/golden.json")).map_err(|error| error.to_string())
});

fn cases(prefix: &str) -> Outcome<Vec<&'static Golden>> {
    let file = FILE.as_ref().map_err(|why| broken!("golden.json: {why}"))?;
    let cases: Vec<_> = file.cases.iter().filter(|case| case.name.starts_with(prefix)).collect();
    ensure!(!cases.is_empty(), "no case of {prefix}");
    Ok(cases)
}

impl Golden {
    /// A rank's part of a tensor, or all of it.
    fn part<T: Element>(&self, values: &[f64], split: &[usize], rank: usize) -> Tensor<T> {
        let positions: usize = self.spatial.iter().product();
        let before: usize = split[..rank].iter().sum();
        Tensor::from_fn(split[rank], self.channels, &self.spatial, |n, c, s| {
            T::from_f64(values[((before + n) * self.channels + c) * positions + s])
        })
    }

    fn config(&self) -> Config {
        Config::new(self.channels).with_eps(self.eps).with_momentum(self.momentum)
    }

    fn state<P: syncbn_core::Param>(&self) -> State<P> {
        let narrow = |values: &[f64]| Some(values.iter().map(|&v| P::from_f64(v)).collect());
        State {
            weight: narrow(&self.weight),
            bias: narrow(&self.bias),
            running_mean: narrow(&self.old_mean),
            running_var: narrow(&self.old_var),
            num_batches_tracked: Some(0),
        }
    }

    fn check<H: Harness, T: Element>(&self, harness: &H, layout: Layout, bar: Bar) -> Outcome
    where
        H::Backend: Kernels<T>,
    {
        let split = within(&self.splits, harness.max_world_size());
        let steps = ranks(harness, split.len(), |rank: &Rank<H::Backend>| {
            let mut layer = rank.layer(self.config(), &self.state())?;
            layer.set_training(self.training);
            let x = self.part::<T>(&self.x, &split, rank.index);
            if let Some(dy) = &self.dy {
                return rank.train(&mut layer, &x, &self.part(dy, &split, rank.index), layout);
            }
            let (_, y) = rank.forward(&mut layer, &Placed::new(rank, &x, layout)?, &x)?;
            let none = crate::rank::Written { dx: y.clone(), d_weight: vec![], d_bias: vec![] };
            Ok(Step { y, gradients: none, state: layer.state(&rank.queue)? })
        })?;
        let whole = |of: fn(&Step<T>) -> &Tensor<T>| {
            let parts: Vec<_> = steps.iter().map(|step| of(step).clone()).collect();
            wide(&Tensor::concat(&parts).values)
        };
        let sum = |of: fn(&Step<T>) -> &Vec<T::Param>| {
            (0..self.channels).map(|c| steps.iter().map(|step| of(step)[c].to_f64()).sum()).collect()
        };
        compare("y", &whole(|step| &step.y), Some(&self.y), bar.activations)?;
        if self.dy.is_some() {
            compare("dx", &whole(|step| &step.gradients.dx), self.dx.as_ref(), bar.activations)?;
            let d_weight: Vec<f64> = sum(|step| &step.gradients.d_weight);
            compare("d_weight", &d_weight, self.d_weight.as_ref(), bar.parameters)?;
            let d_bias: Vec<f64> = sum(|step| &step.gradients.d_bias);
            compare("d_bias", &d_bias, self.d_bias.as_ref(), bar.parameters)?;
        }
        for step in &steps {
            let mean = wide(step.state.running_mean.as_deref().unwrap_or_default());
            let var = wide(step.state.running_var.as_deref().unwrap_or_default());
            let (old_mean, old_var) = (Some(&self.old_mean), Some(&self.old_var));
            compare("running_mean", &mean, self.new_mean.as_ref().or(old_mean), bar.parameters)?;
            compare("running_var", &var, self.new_var.as_ref().or(old_var), bar.parameters)?;
        }
        Ok(())
    }
}

fn wide<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.to_f64()).collect()
}

/// Relative to the tensor's largest number.
#[derive(Clone, Copy)]
struct Bar {
    activations: f64,
    parameters: f64,
}

fn compare(what: &str, got: &[f64], expected: Option<&Vec<f64>>, bar: f64) -> Outcome {
    let expected = expected.ok_or_else(|| broken!("no {what} in the file"))?;
    ensure!(got.len() == expected.len(), "{what} has {} numbers, expected {}", got.len(), expected.len());
    let largest = expected.iter().fold(0.0_f64, |largest, v| largest.max(v.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (got - expected).abs();
        ensure!(error <= bar * largest, "{what}[{i}] is {got:e}, expected {expected:e}: off by {error:e}");
    }
    Ok(())
}

/// `PyTorch`'s batch norm on whole batches, split over ranks here: y, all gradients and the running statistics.
pub fn pytorch_computes_the_same<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    let bar = match T::DTYPE {
        syncbn_core::Dtype::F64 => Bar { activations: 1e-12, parameters: 1e-12 },
        syncbn_core::Dtype::F32 => Bar { activations: 5e-7, parameters: 1e-6 },
        // Rounding a result to 11 and to 8 bits.
        syncbn_core::Dtype::F16 => Bar { activations: 2.0_f64.powi(-11), parameters: 1e-6 },
        _ => Bar { activations: 2.0_f64.powi(-8), parameters: 1e-6 },
    };
    for case in cases("torch_")? {
        for layout in [Layout::ChannelsFirst, Layout::ChannelsLast] {
            case.check::<H, T>(harness, layout, bar).map_err(|why| why.at(&case.name))?;
        }
    }
    Ok(())
}

/// ONNX's node tests of `BatchNormalization`, in both of its modes; they were computed in `f32`, which halves do not hold.
pub fn onnx_node_tests_pass<H: Harness, T: Element>(harness: &H) -> Outcome
where
    H::Backend: Kernels<T>,
{
    for case in cases("onnx_")? {
        let bar = Bar { activations: 5e-6, parameters: 5e-6 };
        case.check::<H, T>(harness, Layout::ChannelsFirst, bar).map_err(|why| why.at(&case.name))?;
    }
    Ok(())
}
