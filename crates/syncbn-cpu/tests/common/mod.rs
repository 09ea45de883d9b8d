//! What the tests of this crate share: numbers that look random, a training step, and what the kit's oracle says of it.

#![allow(dead_code, unreachable_pub)] // each test file uses some of it
#![allow(clippy::unwrap_used)] // tests panic

use syncbn_core::{
    Config, Element, Gradients, Kernels, Layout, ParamGradients, Scalar, ShapeError, SyncBatchNorm, View,
    ViewMut,
};
use syncbn_cpu::Cpu;
use syncbn_testkit::oracle::{self, Affine};
use syncbn_testkit::tensor::Tensor;

/// Numbers in -1..1, the same on every run (an `xorshift` generator).
pub fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

pub fn typed<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&value| T::from_f64(value)).collect()
}

/// A tensor's sizes (N, C, spatial) and layout.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub samples: usize,
    pub channels: usize,
    pub spatial: usize,
    pub layout: Layout,
}

impl Case {
    pub fn len(&self) -> usize {
        self.samples * self.channels * self.spatial
    }

    pub fn view<'a, T: Element>(&self, memory: &'a [T]) -> Result<View<'a, Cpu, T>, ShapeError> {
        match self.layout {
            Layout::ChannelsFirst => {
                View::channels_first(memory, &[self.samples, self.channels, self.spatial])
            }
            Layout::ChannelsLast => View::channels_last(memory, &[self.samples, self.spatial, self.channels]),
        }
    }

    pub fn view_mut<'a, T: Element>(&self, memory: &'a mut [T]) -> Result<ViewMut<'a, Cpu, T>, ShapeError> {
        match self.layout {
            Layout::ChannelsFirst => {
                ViewMut::channels_first(memory, &[self.samples, self.channels, self.spatial])
            }
            Layout::ChannelsLast => {
                ViewMut::channels_last(memory, &[self.samples, self.spatial, self.channels])
            }
        }
    }

    /// The sample, channel and position of the element at this offset.
    fn index(&self, offset: usize) -> [usize; 3] {
        let [sample, rest] =
            [offset / (self.channels * self.spatial), offset % (self.channels * self.spatial)];
        match self.layout {
            Layout::ChannelsFirst => [sample, rest / self.spatial, rest % self.spatial],
            Layout::ChannelsLast => [sample, rest % self.channels, rest / self.channels],
        }
    }

    /// The channel of the element at this offset.
    pub fn channel(&self, offset: usize) -> usize {
        self.index(offset)[1]
    }

    /// The kit's tensor of what lies in this memory.
    fn tensor<T: Copy>(&self, memory: &[T]) -> Tensor<T> {
        Tensor::from_fn(self.samples, self.channels, &[self.spatial], |n, c, s| match self.layout {
            Layout::ChannelsFirst => memory[(n * self.channels + c) * self.spatial + s],
            Layout::ChannelsLast => memory[(n * self.spatial + s) * self.channels + c],
        })
    }

    /// A tensor's values in the order of this memory.
    fn memory<T: Copy>(&self, tensor: &Tensor<T>) -> Vec<T> {
        let value = |offset| {
            let [n, c, s] = self.index(offset);
            tensor.at(n, c, s)
        };
        (0..self.len()).map(value).collect()
    }
}

/// Everything that a forward and a backward pass write.
#[derive(Clone, Debug)]
pub struct Written<T: Element> {
    pub y: Vec<T>,
    pub dx: Vec<T>,
    pub d_weight: Vec<T::Param>,
    pub d_bias: Vec<T::Param>,
    pub running_mean: Vec<T::Param>,
    pub running_var: Vec<T::Param>,
    pub saved: Vec<f64>,
}

impl<T: Element> Written<T> {
    /// All bits, for comparisons in which NaN equals NaN.
    pub fn bits(&self) -> Vec<u8> {
        [
            bits(&self.y),
            bits(&self.dx),
            bits(&self.d_weight),
            bits(&self.d_bias),
            bits(&self.running_mean),
            bits(&self.running_var),
            bits(&self.saved),
        ]
        .concat()
    }
}

fn bits<S: Scalar>(values: &[S]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes().as_ref().to_vec()).collect()
}

/// One training step of a local layer whose weight and bias differ from channel to channel.
pub fn step<T: Element>(case: Case, x: &[T], dy: &[T], in_place: bool) -> Written<T>
where
    Cpu: Kernels<T>,
{
    let mut layer =
        SyncBatchNorm::<Cpu, T::Param>::local("test", Config::new(case.channels), Cpu, &()).unwrap();
    for (channel, weight) in layer.weight_mut().unwrap().iter_mut().enumerate() {
        *weight = T::Param::from_f64(weight_of(channel));
    }
    for (channel, bias) in layer.bias_mut().unwrap().iter_mut().enumerate() {
        *bias = T::Param::from_f64(bias_of(channel));
    }
    let mut y = vec![T::default(); case.len()];
    let saved = layer.forward(&(), case.view(x), case.view_mut(&mut y)).unwrap();

    let mut dx = dy.to_vec();
    let mut d_weight = vec![T::Param::default(); case.channels];
    let mut d_bias = d_weight.clone();
    let parameters = ParamGradients { weight: Some(&mut d_weight[..]), bias: Some(&mut d_bias[..]) };
    let gradients = if in_place {
        Gradients::in_place(case.view_mut(&mut dx))
    } else {
        Gradients::out_of_place(case.view(dy), case.view_mut(&mut dx))
    };
    layer.backward(&(), &saved, case.view(x), gradients, parameters).unwrap();
    let state = layer.state(&()).unwrap();
    Written {
        y,
        dx,
        d_weight,
        d_bias,
        running_mean: state.running_mean.unwrap(),
        running_var: state.running_var.unwrap(),
        saved: saved.mem().to_vec(),
    }
}

pub fn weight_of(channel: usize) -> f64 {
    0.5 + (channel % 7) as f64 / 8.0
}

pub fn bias_of(channel: usize) -> f64 {
    (channel % 5) as f64 / 4.0 - 0.5
}

/// What the kit's oracle gives for the same step, and the size of the terms that were added for it; tensors in the order of memory.
pub struct Oracle {
    pub y: Vec<f64>,
    pub y_size: Vec<f64>,
    pub dx: Vec<f64>,
    pub dx_size: Vec<f64>,
    pub d_weight: Vec<f64>,
    pub d_weight_size: Vec<f64>,
    pub d_bias: Vec<f64>,
    pub d_bias_size: Vec<f64>,
    pub running_mean: Vec<f64>,
    pub running_var: Vec<f64>,
}

pub fn oracle<T: Element>(case: Case, x: &[T], dy: &[T]) -> Oracle {
    const EPS: f64 = 1e-5;
    let (x, dy) = (case.tensor(x), case.tensor(dy));
    let channels = 0..case.channels;
    let affine =
        Affine { weight: channels.clone().map(weight_of).collect(), bias: channels.map(bias_of).collect() };
    let sizes =
        Affine { weight: affine.weight.clone(), bias: affine.bias.iter().map(|bias| bias.abs()).collect() };
    let statistics = oracle::statistics(&x);
    let xhat = oracle::xhat(&x, &statistics, EPS);
    let sums = oracle::grad_sums(&xhat, &dy);
    let dx = oracle::dx(&xhat, &dy, &statistics, Some(&sums), &affine, EPS);
    Oracle {
        y: case.memory(&oracle::y(&xhat, &affine)),
        y_size: case.memory(&oracle::y(&xhat.map(f64::abs), &sizes)),
        dx: case.memory(&dx.map(|(dx, _)| dx)),
        dx_size: case.memory(&dx.map(|(_, size)| size)),
        d_weight: sums.iter().map(|sums| sums.dy_xhat).collect(),
        d_weight_size: sums.iter().map(|sums| sums.dy_xhat_abs).collect(),
        d_bias: sums.iter().map(|sums| sums.dy).collect(),
        d_bias_size: sums.iter().map(|sums| sums.dy_abs).collect(),
        running_mean: statistics.iter().map(|channel| 0.1 * channel.mean).collect(),
        running_var: statistics.iter().map(|channel| 0.9 + 0.1 * channel.unbiased()).collect(),
    }
}

/// Per channel, the sum over its elements.
fn sum(case: Case, of: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut sums = vec![0.0; case.channels];
    (0..case.len()).for_each(|i| sums[case.channel(i)] += of(i));
    sums
}

/// Fails if, per channel, `||got - expected|| > bar ||size||`.
pub fn close<T: Element>(what: &str, case: Case, bar: f64, got: &[T], expected: &[f64], size: &[f64]) {
    let error = sum(case, |i| (got[i].to_f64() - expected[i]).powi(2));
    let scale = sum(case, |i| size[i].powi(2));
    for (channel, (error, scale)) in error.iter().zip(&scale).enumerate() {
        let (error, allowed) = (error.sqrt(), bar * scale.sqrt());
        assert!(
            error <= allowed,
            "{what} of channel {channel} of {case:?}: off by {error:e}, allowed {allowed:e}"
        );
    }
}

/// The same for one value per channel.
pub fn close_parameters<P: Element>(what: &str, bar: f64, got: &[P], expected: &[f64], size: &[f64]) {
    for (channel, ((got, expected), size)) in got.iter().zip(expected).zip(size).enumerate() {
        let error = (got.to_f64() - expected).abs();
        assert!(
            error <= bar * size.abs(),
            "{what} of channel {channel}: {got:?}, expected {expected}, size {size}"
        );
    }
}

/// Every kind of inner loop and cut: rows and planes, tails of each, one channel, pieces that end within a plane or row,
/// and tensors large enough for several threads.
pub fn cases() -> Vec<Case> {
    let sizes = [
        (2, 1, 1),
        (1, 1, 2),
        (3, 5, 1),
        (7, 19, 1),
        (5, 3, 4),
        (2, 67, 13),
        (4, 3, 31),
        (4, 3, 32),
        (3, 4, 49),
        (2, 3, 1025),
        (2, 2100, 3),
        (3, 1100, 2),
        (40, 70, 20),
        (3, 5, 3001),
        (1, 1, 70_000),
        (2, 2, 66_000),
        (300, 129, 1),
    ];
    let layouts = [Layout::ChannelsFirst, Layout::ChannelsLast];
    let case =
        |(samples, channels, spatial)| layouts.map(|layout| Case { samples, channels, spatial, layout });
    sizes.into_iter().flat_map(case).collect()
}
