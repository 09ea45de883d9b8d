//! What networks are made of. Activations are matrices: a row for each sample, or for each pixel of each sample; a column
//! for each channel.
//!
//! A 1x1 convolution looks at one pixel at a time, so over the pixels of channels-last images it is a [`Linear`] layer, and
//! batch norm takes its statistics over the rows in either case.
//!
//! Products are formed in f64 and rounded once, so that how a batch is cut does not show. Parameters and activations are f32.

use ndarray::{Array1, Array2};
use syncbn_core::{
    Config, Gradients, ParamGradients, SavedStatistics, State, Storage, SyncBatchNorm, View, ViewMut,
};

use crate::Result;
use crate::world::Seat;

/// One step of a network.
pub trait Layer {
    /// The layer's output for `x`.
    fn forward(&mut self, x: Array2<f32>) -> Result<Array2<f32>>;

    /// The loss's gradient by the last forward's input, from that by its output.
    fn backward(&mut self, dy: Array2<f32>) -> Result<Array2<f32>>;

    /// The loss's gradient by the parameters, of the last backward; empty where there are none.
    fn gradient(&self) -> Vec<f64> {
        Vec::new()
    }

    /// Takes `step`, which has an entry for each entry of the gradient, off the parameters.
    fn descend(&mut self, step: &[f64]) -> Result<()> {
        let _ = step;
        Ok(())
    }

    /// Tells a batch norm which statistics to use.
    fn set_training(&mut self, training: bool) {
        let _ = training;
    }

    /// A batch norm's parameters and running statistics.
    fn state(&mut self) -> Result<Option<State<f32>>> {
        Ok(None)
    }
}

/// The products of a row with the columns of a weight matrix, without bias.
pub struct Linear {
    weight: Array2<f32>,
    x: Array2<f64>,
    gradient: Array2<f64>,
}

impl Linear {
    /// Weights drawn evenly from -1/sqrt(inputs) to 1/sqrt(inputs).
    #[must_use]
    pub fn new(inputs: usize, outputs: usize, random: &mut fastrand::Rng) -> Self {
        let bound = 1.0 / (inputs as f32).sqrt();
        let weight = Array2::from_shape_simple_fn((inputs, outputs), || bound * (2.0 * random.f32() - 1.0));
        let gradient = Array2::zeros(weight.dim());
        Self { weight, x: Array2::default((0, inputs)), gradient }
    }
}

impl Layer for Linear {
    fn forward(&mut self, x: Array2<f32>) -> Result<Array2<f32>> {
        self.x = wide(&x);
        Ok(narrow(&self.x.dot(&wide(&self.weight))))
    }

    fn backward(&mut self, dy: Array2<f32>) -> Result<Array2<f32>> {
        let dy = wide(&dy);
        self.gradient = self.x.t().dot(&dy);
        Ok(narrow(&dy.dot(&wide(&self.weight).t())))
    }

    fn gradient(&self) -> Vec<f64> {
        self.gradient.iter().copied().collect()
    }

    fn descend(&mut self, step: &[f64]) -> Result<()> {
        descend(self.weight.iter_mut(), step);
        Ok(())
    }
}

/// The larger of each number and 0.
#[derive(Default)]
pub struct Relu {
    passes: Array2<bool>,
}

impl Layer for Relu {
    fn forward(&mut self, x: Array2<f32>) -> Result<Array2<f32>> {
        self.passes = x.mapv(|x| x > 0.0);
        Ok(x.mapv_into(|x| x.max(0.0)))
    }

    fn backward(&mut self, mut dy: Array2<f32>) -> Result<Array2<f32>> {
        dy.zip_mut_with(&self.passes, |dy, &passes| *dy = if passes { *dy } else { 0.0 });
        Ok(dy)
    }
}

/// Batch norm on the seat's device: activations are copied there and back.
pub struct BatchNorm<'a, B: Storage> {
    seat: &'a Seat<B>,
    norm: SyncBatchNorm<B, f32>,
    live: Option<Live<B>>,
    weight: Array1<f32>,
    bias: Array1<f32>,
    gradient: Vec<f64>,
}

/// What a forward keeps for its backward.
struct Live<B: Storage> {
    x: B::Buffer<f32>,
    saved: SavedStatistics<B>,
}

impl<'a, B: Storage> BatchNorm<'a, B> {
    /// A layer of the seat's group with the default settings.
    pub fn new(name: &str, channels: usize, seat: &'a Seat<B>) -> Result<Self> {
        let Seat { backend, queue, norms, .. } = seat;
        let config = Config::new(channels);
        let norm = SyncBatchNorm::new(name, config, backend.clone(), queue, norms.clone())?;
        let (weight, bias) = (Array1::ones(channels), Array1::zeros(channels));
        Ok(Self { seat, norm, live: None, weight, bias, gradient: vec![0.0; 2 * channels] })
    }
}

impl<B: Storage + syncbn_core::Kernels<f32>> Layer for BatchNorm<'_, B> {
    fn forward(&mut self, x: Array2<f32>) -> Result<Array2<f32>> {
        let Seat { backend, queue, .. } = self.seat;
        let shape = [x.nrows(), x.ncols()];
        let x = backend.upload(queue, &row_major(&x))?;
        let mut y = backend.upload(queue, &vec![0_f32; shape[0] * shape[1]])?;
        let input = View::channels_last(B::mem(&x), &shape);
        let output = ViewMut::channels_last(B::mem_mut(&mut y), &shape);
        let saved = self.norm.forward(queue, input, output)?;
        self.live = Some(Live { x, saved });
        Ok(Array2::from_shape_vec(shape, self.seat.values(&y)?)?)
    }

    fn backward(&mut self, dy: Array2<f32>) -> Result<Array2<f32>> {
        let Seat { backend, queue, .. } = self.seat;
        let Live { x, saved } = self.live.take().ok_or("backward without a forward")?;
        let shape = [dy.nrows(), dy.ncols()];
        let mut dy = backend.upload(queue, &row_major(&dy))?;
        let mut d_weight = backend.upload(queue, &vec![0_f32; shape[1]])?;
        let mut d_bias = backend.upload(queue, &vec![0_f32; shape[1]])?;
        let parameters =
            ParamGradients { weight: Some(B::mem_mut(&mut d_weight)), bias: Some(B::mem_mut(&mut d_bias)) };
        let input = View::channels_last(B::mem(&x), &shape);
        let gradient = ViewMut::channels_last(B::mem_mut(&mut dy), &shape);
        self.norm.backward(queue, &saved, input, Gradients::in_place(gradient), parameters)?;
        let parameters = [self.seat.values(&d_weight)?, self.seat.values(&d_bias)?];
        self.gradient = parameters.concat().into_iter().map(f64::from).collect();
        Ok(Array2::from_shape_vec(shape, self.seat.values(&dy)?)?)
    }

    fn gradient(&self) -> Vec<f64> {
        self.gradient.clone()
    }

    fn descend(&mut self, step: &[f64]) -> Result<()> {
        let Seat { backend, queue, .. } = self.seat;
        descend(self.weight.iter_mut().chain(&mut self.bias), step);
        if let Some(weight) = self.norm.weight_mut() {
            backend.write(queue, B::mem_mut(weight), &self.weight.to_vec())?;
        }
        if let Some(bias) = self.norm.bias_mut() {
            backend.write(queue, B::mem_mut(bias), &self.bias.to_vec())?;
        }
        Ok(())
    }

    fn set_training(&mut self, training: bool) {
        self.norm.set_training(training);
    }

    fn state(&mut self) -> Result<Option<State<f32>>> {
        Ok(Some(self.norm.state(&self.seat.queue)?))
    }
}

fn descend<'a>(parameters: impl Iterator<Item = &'a mut f32>, step: &[f64]) {
    parameters.zip(step).for_each(|(parameter, step)| *parameter = (f64::from(*parameter) - step) as f32);
}

fn wide(values: &Array2<f32>) -> Array2<f64> {
    values.mapv(f64::from)
}

fn narrow(values: &Array2<f64>) -> Array2<f32> {
    values.mapv(|value| value as f32)
}

fn row_major(values: &Array2<f32>) -> Vec<f32> {
    values.iter().copied().collect()
}
