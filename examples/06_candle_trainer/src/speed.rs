//! Time of a forward and a backward pass: candle's own layer, ours in candle, and ours on slices without candle, in turn.

use std::time::Instant;

use candle_core::{DType, Device, ModuleT, Tensor, Var};
use candle_nn::{VarBuilder, VarMap, batch_norm};
use serde::Serialize;
use syncbn_candle::{Group, sync_batch_norm};
use syncbn_core::{Config, Gradients, ParamGradients, SingleRank, SyncBatchNorm, View, ViewMut};
use syncbn_cpu::Cpu;

use crate::Result;

/// The shapes that are measured.
pub const SHAPES: [[usize; 4]; 2] = [[8, 64, 56, 56], [8, 64, 112, 112]];

/// The shortest times of one shape, in milliseconds: forward and backward.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// The shape of x, of `f32`.
    pub shape: [usize; 4],
    /// `candle_nn::BatchNorm`.
    pub candle: [f64; 2],
    /// `syncbn_candle::SyncBatchNorm`, one rank.
    pub ours: [f64; 2],
    /// `syncbn_core::SyncBatchNorm` on slices that are there already.
    pub slices: [f64; 2],
}

impl Times {
    /// candle's time over ours, forward and backward.
    #[must_use]
    pub fn ratios(&self) -> [f64; 2] {
        [self.candle[0] / self.ours[0], self.candle[1] / self.ours[1]]
    }

    /// What candle adds to our own time, as a part of it.
    #[must_use]
    pub fn added(&self) -> [f64; 2] {
        [self.ours[0] / self.slices[0] - 1.0, self.ours[1] / self.slices[1] - 1.0]
    }
}

/// Measures one shape, each layer `rounds` times in turn; the first round is not counted.
pub fn measure(shape: [usize; 4], rounds: usize) -> Result<Times> {
    let group = Group::single_rank();
    let vb = |vars: &VarMap| VarBuilder::from_varmap(vars, DType::F32, &Device::Cpu);
    let theirs = batch_norm(shape[1], 1e-5, vb(&VarMap::new()))?;
    let ours = sync_batch_norm(shape[1], 1e-5, vb(&VarMap::new()), &group)?;
    let mut slices = Slices::new(shape)?;
    let x = Var::from_tensor(&Tensor::randn(0.5_f32, 2.0, &shape, &Device::Cpu)?)?;
    let mut times = Times { shape, candle: [f64::MAX; 2], ours: [f64::MAX; 2], slices: [f64::MAX; 2] };
    for round in 0..=rounds {
        let measured = [in_candle(&theirs, &x)?, in_candle(&ours, &x)?, slices.run()?];
        let all = [&mut times.candle, &mut times.ours, &mut times.slices];
        for (shortest, measured) in all.into_iter().zip(measured).filter(|_| round > 0) {
            shortest.iter_mut().zip(measured).for_each(|(shortest, time)| *shortest = shortest.min(time));
        }
    }
    Ok(times)
}

fn in_candle(layer: &impl ModuleT, x: &Var) -> Result<[f64; 2]> {
    let start = Instant::now();
    let y = layer.forward_t(x, true)?;
    let forward = milliseconds(start);
    let start = Instant::now();
    let grads = y.backward()?;
    let backward = milliseconds(start);
    grads.get(x).ok_or("x has no gradient")?;
    Ok([forward, backward])
}

fn milliseconds(start: Instant) -> f64 {
    1e3 * start.elapsed().as_secs_f64()
}

struct Slices {
    layer: SyncBatchNorm<Cpu, f32>,
    shape: [usize; 4],
    x: Vec<f32>,
    y: Vec<f32>,
    dx: Vec<f32>,
}

impl Slices {
    fn new(shape: [usize; 4]) -> Result<Self> {
        let len = shape.iter().product();
        let mut random = fastrand::Rng::with_seed(1);
        let x = (0..len).map(|_| random.f32()).collect();
        let layer = SyncBatchNorm::new("slices", Config::new(shape[1]), Cpu, &(), SingleRank)?;
        Ok(Self { layer, shape, x, y: vec![1.0; len], dx: vec![1.0; len] })
    }

    fn run(&mut self) -> Result<[f64; 2]> {
        let Self { layer, shape, x, y, dx } = self;
        let x = || View::channels_first(&x[..], &shape[..]);
        let start = Instant::now();
        let saved = layer.forward::<f32>(&(), x(), ViewMut::channels_first(&mut y[..], &shape[..]))?;
        let forward = milliseconds(start);
        let (mut d_weight, mut d_bias) = (vec![0.0; shape[1]], vec![0.0; shape[1]]);
        let start = Instant::now();
        let dy = View::channels_first(&y[..], &shape[..]);
        let gradients = Gradients::out_of_place(dy, ViewMut::channels_first(&mut dx[..], &shape[..]));
        let params = ParamGradients { weight: Some(&mut d_weight[..]), bias: Some(&mut d_bias[..]) };
        layer.backward::<f32>(&(), &saved, x(), gradients, params)?;
        Ok([forward, milliseconds(start)])
    }
}
