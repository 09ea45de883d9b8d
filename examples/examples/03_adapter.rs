//! An adapter to a framework that owns its tensors and parameters: batch norm as two functions over borrowed memory.
//!
//! What forward saves is a tensor like any other here, and a token of a few numbers, so that the framework's graph can keep it as data.

use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Duration;

use syncbn_comm::threads;
use syncbn_core::functional::{Backward, Forward, Statistics, UpdateRunning};
use syncbn_core::{
    Config, ErrorKind, FunctionalBatchNorm, Geometry, Gradients, Group, HostCommunicator as _, NonFinite,
    Operation, RunningMut, SavedRef, SavedToken, ViaHost, View, ViewMut, saved_len,
};
use syncbn_cpu::Cpu;

/// The framework's tensor: a shape (N, C, *spatial), strides in elements, and numbers.
#[derive(Clone, Debug)]
struct Tensor {
    shape: Vec<usize>,
    strides: Vec<isize>,
    values: Vec<f32>,
}

impl Tensor {
    /// Zeros of the shape and the memory order of this tensor.
    fn zeros_like(&self) -> Self {
        Self { values: vec![0.0; self.values.len()], ..self.clone() }
    }
}

/// What the framework's graph keeps between the two passes.
struct Context {
    x: Tensor,
    saved: Vec<f64>,
    token: [u64; SavedToken::WORDS],
}

/// The gradients of one backward pass.
struct Grads {
    dx: Tensor,
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The tensor's shape and memory order. One with gaps is an error here, with the layer's name; a framework would copy it.
fn geometry(
    norm: &FunctionalBatchNorm<Cpu, f32>,
    operation: Operation,
    role: syncbn_core::Tensor,
    tensor: &Tensor,
) -> Result<Geometry, syncbn_core::Error> {
    Geometry::strided(&tensor.shape, &tensor.strides, 1)
        .map_err(|source| norm.error(operation, ErrorKind::Shape { tensor: role, source }))
}

/// `y`, and what backward needs. It changes nothing: running statistics are moved apart, by [`update`].
fn forward(
    norm: &FunctionalBatchNorm<Cpu, f32>,
    x: &Tensor,
    weight: &[f32],
    bias: &[f32],
) -> Result<(Tensor, Context), Box<dyn Error>> {
    let geometry = geometry(norm, Operation::Forward, syncbn_core::Tensor::X, x)?;
    let mut y = x.zeros_like();
    let mut saved = vec![0.0; saved_len(norm.config().channels)];
    let args = Forward::new(
        View::<Cpu, f32>::new(&x.values, geometry)?,
        ViewMut::new(&mut y.values[..], geometry)?,
        Statistics::Group { running: None },
        &mut saved[..],
    );
    let token = norm.forward(&(), args.affine(Some(weight), Some(bias)))?.to_words();
    Ok((y, Context { x: x.clone(), saved, token }))
}

/// The gradients of x, weight and bias; the last two over this rank's elements.
fn backward(
    norm: &FunctionalBatchNorm<Cpu, f32>,
    context: &Context,
    weight: &[f32],
    dy: &Tensor,
) -> Result<Grads, Box<dyn Error>> {
    let x_geometry = geometry(norm, Operation::Backward, syncbn_core::Tensor::X, &context.x)?;
    let dy_geometry = geometry(norm, Operation::Backward, syncbn_core::Tensor::Dy, dy)?;
    let mut dx = context.x.zeros_like();
    let (mut d_weight, mut d_bias) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
    let gradients = Gradients::out_of_place(
        View::<Cpu, f32>::new(&dy.values, dy_geometry),
        ViewMut::new(&mut dx.values[..], x_geometry),
    )?;
    let x = View::new(&context.x.values[..], x_geometry)?;
    let args = Backward::new(saved_of(context)?, x, gradients)
        .weight(Some(weight))
        .parameters(Some(&mut d_weight), Some(&mut d_bias));
    norm.backward(&(), args)?;
    Ok(Grads { dx, weight: d_weight, bias: d_bias })
}

/// Moves running statistics by what a forward pass has saved.
fn update(
    norm: &FunctionalBatchNorm<Cpu, f32>,
    context: &Context,
    [mean, var]: [&mut [f32]; 2],
    count: &mut i64,
) -> Result<(), Box<dyn Error>> {
    let num_batches_tracked = std::slice::from_mut(count);
    let (momentum, non_finite) = (norm.config().momentum, NonFinite::Propagate);
    let running = RunningMut { mean, var, num_batches_tracked, momentum, non_finite };
    Ok(norm.update_running(&(), UpdateRunning::new(saved_of(context)?, running))?)
}

fn saved_of(context: &Context) -> Result<SavedRef<'_, Cpu>, Box<dyn Error>> {
    let token = SavedToken::from_words(context.token).ok_or("no token of a forward pass")?;
    Ok(SavedRef { token, mem: &context.saved })
}

fn main() -> Result<(), Box<dyn Error>> {
    let two = NonZeroUsize::new(2).ok_or("no ranks")?;
    let ranks = threads::run(two, Duration::from_secs(10), |comm| {
        let first = 6.0 * comm.rank() as f32;
        let run = || -> Result<_, Box<dyn Error>> {
            let group = Group::new(ViaHost(comm));
            let norm = FunctionalBatchNorm::<Cpu, f32>::new("norm", Config::new(2), Cpu, &(), group)?;
            let values = (0..6).map(|i| first + i as f32).collect();
            let x = Tensor { shape: vec![3, 2], strides: vec![2, 1], values };
            let (weight, bias) = ([1.0, 2.0], [0.0, 0.5]);
            let (y, context) = forward(&norm, &x, &weight, &bias)?;
            let grads = backward(&norm, &context, &weight, &y)?;
            let (mut mean, mut var, mut count) = ([0.0; 2], [1.0; 2], 0);
            update(&norm, &context, [&mut mean, &mut var], &mut count)?;
            Ok((grads, mean, count))
        };
        run().map_err(|error| error.to_string())
    })?;
    let ranks = ranks.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (_, mean, _) = ranks[0];
    assert!((mean[0] - 0.5).abs() < 1e-6 && (mean[1] - 0.6).abs() < 1e-6, "a tenth of 5 and 6: {mean:?}");
    let agree = |(_, running, count): &(Grads, [f32; 2], i64)| *running == mean && *count == 1;
    assert!(ranks.iter().all(agree), "ranks have the same running statistics");
    // The loss is sum(y^2) / 2: it does not change with x, and twice as much with a weight of 2.
    let total = |of: &dyn Fn(&Grads) -> f32| ranks.iter().map(|(grads, ..)| of(grads)).sum::<f32>();
    assert!(total(&|grads| grads.dx.values.iter().sum()).abs() < 1e-4, "over both ranks, dx has sum 0");
    assert!((total(&|grads| grads.weight[1]) - 12.0).abs() < 1e-3, "weight times the number of samples");
    assert!((total(&|grads| grads.bias[1]) - 3.0).abs() < 1e-3, "bias times the number of samples");
    Ok(())
}
