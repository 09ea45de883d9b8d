//! What a layer has to compute, the slow and plain way: pass after pass, in `f64`, over the whole batch at once, one loop after another.
//!
//! It shares no code with `syncbn-core` or any backend, or it would share their mistakes. It knows nothing of ranks: what they
//! compute together is held against the whole batch.

use syncbn_core::Element;

use crate::tensor::Tensor;

/// One channel of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Channel {
    /// The number of elements, M.
    pub count: f64,
    /// The mean, rounded; 0 without elements.
    pub mean: f64,
    /// What the rounding left of the mean: data may lie 1e12 deviations from 0, where it is no small part of one.
    pub mean_rest: f64,
    /// The biased variance; 0 without elements.
    pub var: f64,
    /// sum |x| / M: the size of the terms that the mean is made of.
    pub mean_abs: f64,
}

/// The statistics of every channel.
pub fn statistics<T: Element>(x: &Tensor<T>) -> Vec<Channel> {
    (0..x.channels).map(|c| channel(&x.channel(c))).collect()
}

fn channel<T: Element>(values: &[T]) -> Channel {
    if values.is_empty() {
        return Channel::default();
    }
    let count = values.len() as f64;
    let mut sum = 0.0;
    let mut sum_abs = 0.0;
    for x in values {
        sum += x.to_f64();
        sum_abs += x.to_f64().abs();
    }
    // Differences from a number near the mean are exact where the data lie far from 0, and so small that their own mean has all
    // digits that are wanted.
    let rough = sum / count;
    let mut left = 0.0;
    for x in values {
        left += x.to_f64() - rough;
    }
    let mean = rough + left / count;
    let mut channel = Channel {
        count,
        mean,
        mean_rest: (rough - mean) + left / count,
        var: 0.0,
        mean_abs: sum_abs / count,
    };
    let mut squares = 0.0;
    for x in values {
        let deviation = channel.deviation(x.to_f64());
        squares += deviation * deviation;
    }
    channel.var = squares / count;
    channel
}

impl Channel {
    /// `x - mean`.
    #[must_use]
    pub fn deviation(&self, x: f64) -> f64 {
        (x - self.mean) - self.mean_rest
    }

    /// `1 / sqrt(var + eps)`; 0 without elements.
    #[must_use]
    pub fn invstd(&self, eps: f64) -> f64 {
        if self.count == 0.0 { 0.0 } else { 1.0 / (self.var + eps).sqrt() }
    }

    /// `var M / (M - 1)`.
    #[must_use]
    pub fn unbiased(&self) -> f64 {
        self.var * self.count / (self.count - 1.0)
    }
}

/// The parameters of a layer, in `f64`; 1 and 0 where it has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine {
    /// The scale per channel.
    pub weight: Vec<f64>,
    /// The shift per channel.
    pub bias: Vec<f64>,
}

impl Affine {
    /// From a layer's parameters.
    pub fn new<P: Element>(channels: usize, weight: Option<&Vec<P>>, bias: Option<&Vec<P>>) -> Self {
        let wide = |values: Option<&Vec<P>>, default: f64| match values {
            Some(values) => values.iter().map(|v| v.to_f64()).collect(),
            None => vec![default; channels],
        };
        Self { weight: wide(weight, 1.0), bias: wide(bias, 0.0) }
    }
}

/// `xhat = (x - mean) invstd`, in the tensor's order.
pub fn xhat<T: Element>(x: &Tensor<T>, statistics: &[Channel], eps: f64) -> Tensor<f64> {
    Tensor::from_fn(x.samples, x.channels, &x.spatial, |n, c, s| {
        statistics[c].deviation(x.at(n, c, s).to_f64()) * statistics[c].invstd(eps)
    })
}

/// `y = xhat weight + bias`.
#[must_use]
pub fn y(xhat: &Tensor<f64>, affine: &Affine) -> Tensor<f64> {
    Tensor::from_fn(xhat.samples, xhat.channels, &xhat.spatial, |n, c, s| {
        xhat.at(n, c, s) * affine.weight[c] + affine.bias[c]
    })
}

/// One channel's sums over the elements of a tensor of gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GradSums {
    /// sum dy, which is `d_bias`.
    pub dy: f64,
    /// sum dy xhat, which is `d_weight`.
    pub dy_xhat: f64,
    /// sum |dy|.
    pub dy_abs: f64,
    /// sum |dy xhat|.
    pub dy_xhat_abs: f64,
}

/// The sums of every channel.
pub fn grad_sums<T: Element>(xhat: &Tensor<f64>, dy: &Tensor<T>) -> Vec<GradSums> {
    let mut sums = vec![GradSums::default(); dy.channels];
    for (c, sum) in sums.iter_mut().enumerate() {
        for (xhat, dy) in xhat.channel(c).iter().zip(dy.channel(c)) {
            let dy = dy.to_f64();
            sum.dy += dy;
            sum.dy_xhat += dy * xhat;
            sum.dy_abs += dy.abs();
            sum.dy_xhat_abs += (dy * xhat).abs();
        }
    }
    sums
}

/// The gradient of x, and beside it the size of its terms: `weight invstd (|dy| + |sum_dy/M| + |xhat sum_dy_xhat/M|)`.
/// `sums` are the whole batch's; `None` where the statistics are fixed and have no gradient.
pub fn dx<T: Element>(
    xhat: &Tensor<f64>,
    dy: &Tensor<T>,
    statistics: &[Channel],
    sums: Option<&[GradSums]>,
    affine: &Affine,
    eps: f64,
) -> Tensor<(f64, f64)> {
    Tensor::from_fn(dy.samples, dy.channels, &dy.spatial, |n, c, s| {
        let scale = affine.weight[c] * statistics[c].invstd(eps);
        let dy = dy.at(n, c, s).to_f64();
        let (mean_dy, along_xhat) = match sums {
            Some(sums) => {
                let m = statistics[c].count;
                (sums[c].dy / m, xhat.at(n, c, s) * sums[c].dy_xhat / m)
            }
            None => (0.0, 0.0),
        };
        (scale * (dy - mean_dy - along_xhat), scale.abs() * (dy.abs() + mean_dy.abs() + along_xhat.abs()))
    })
}
