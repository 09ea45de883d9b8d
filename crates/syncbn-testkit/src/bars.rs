//! The error bars: how far a backend may be from the oracle.
//!
//! Where terms cancel, the relative error is not small, so errors are measured against the size of the terms, per channel. For
//! ill-conditioned data a bar grows only by what a few roundings of the mean do to the result, for any number of ranks.

use syncbn_core::{Dtype, Element};

use crate::ensure;
use crate::oracle::{Channel, GradSums};
use crate::outcome::Outcome;
use crate::tensor::Tensor;

/// Half of the distance between 1 and the next `f64`.
const UNIT: f64 = f64::EPSILON / 2.0;

/// The relative bars of an activation's type.
#[derive(Clone, Copy, Debug)]
struct Bars {
    /// For y and dx, in the norm over a channel.
    activations: f64,
    /// For the parameters' gradients and the running statistics.
    parameters: f64,
    /// The distance of the smallest numbers of the type.
    smallest: f64,
}

fn bars<T: Element>() -> Bars {
    match T::DTYPE {
        Dtype::F64 => Bars { activations: 1e-12, parameters: 1e-12, smallest: 5e-324 },
        _ => Bars { activations: 5e-7, parameters: 1e-6, smallest: 1.5e-45 },
    }
}

fn is_half<T: Element>() -> bool {
    matches!(T::DTYPE, Dtype::F16 | Dtype::Bf16)
}

/// How many roundings the mean of a batch may have: four times those of one rank.
const ROUNDINGS: f64 = 4.0;

impl Channel {
    /// By how much the mean may be off.
    fn mean_error(&self) -> f64 {
        ROUNDINGS * UNIT * self.mean_abs
    }

    /// By how much the variance may be off, since the mean is; that of a constant may be 2^-90 of its square.
    fn var_error(&self) -> f64 {
        if self.var == 0.0 {
            return self.mean_abs * self.mean_abs * 2.0_f64.powi(-90);
        }
        self.mean_error() * (self.var.sqrt() + self.mean_error())
    }
}

/// What an inexact mean and variance do to one channel: to xhat in units of itself, and to xhat absolutely.
#[derive(Clone, Copy)]
struct Blur {
    relative: f64,
    absolute: f64,
}

fn blur(channel: &Channel, eps: f64) -> Blur {
    let invstd = channel.invstd(eps);
    Blur { relative: channel.var_error() * invstd * invstd / 2.0, absolute: channel.mean_error() * invstd }
}

/// y against the oracle's: `||y - y*|| <= 5e-7 (||xhat weight|| + ||bias||)` for `f32`, 1e-12 for `f64`; halves by the element.
pub fn check_y<T: Element>(
    got: &Tensor<T>,
    xhat: &Tensor<f64>,
    statistics: &[Channel],
    affine: &crate::oracle::Affine,
    eps: f64,
) -> Outcome {
    (0..got.channels).try_for_each(|c| {
        let channel = YChannel {
            got: got.channel(c),
            xhat: xhat.channel(c),
            weight: affine.weight[c],
            bias: affine.bias[c],
            blur: blur(&statistics[c], eps),
        };
        channel.check(c).map_err(|why| why.and(channel.whose_fault()))
    })
}

/// One channel of y, and what it is made of.
struct YChannel<T> {
    got: Vec<T>,
    xhat: Vec<f64>,
    weight: f64,
    bias: f64,
    blur: Blur,
}

impl<T: Element> YChannel<T> {
    fn expected(&self) -> Vec<f64> {
        self.xhat.iter().map(|xhat| xhat * self.weight + self.bias).collect()
    }

    fn check(&self, c: usize) -> Outcome {
        let (weight, bias, expected) = (self.weight.abs(), self.bias.abs(), self.expected());
        if is_half::<T>() {
            for (i, xhat) in self.xhat.iter().enumerate() {
                let along = xhat.abs() * weight;
                let slack = 1e-6 * along.max(bias) + self.blur.relative * along + self.blur.absolute * weight;
                check_half("y", c, i, self.got[i], expected[i], slack)?;
            }
            return Ok(());
        }
        check_norm("y", c, &self.got, &expected, self.allowed())
    }

    fn allowed(&self) -> f64 {
        let (bar, weight) = (bars::<T>(), self.weight.abs());
        let root = (self.xhat.len() as f64).sqrt();
        let along = weight * norm(self.xhat.iter().copied());
        bar.activations * (along + self.bias.abs() * root)
            + self.blur.relative * along
            + (self.blur.absolute * weight + bar.smallest) * root
    }

    /// Which error of mean and variance explains most of what is wrong: the line through the errors of xhat.
    fn whose_fault(&self) -> String {
        if self.weight == 0.0 {
            return "the weight is 0".into();
        }
        let n = self.xhat.len() as f64;
        let errors: Vec<f64> = (self.got.iter().zip(self.expected()))
            .map(|(got, expected)| (got.to_f64() - expected) / self.weight)
            .collect();
        let (mean_error, mean_xhat) = (errors.iter().sum::<f64>() / n, self.xhat.iter().sum::<f64>() / n);
        let around = |f: fn(f64, f64) -> f64| -> f64 {
            errors.iter().zip(&self.xhat).map(|(e, x)| f(e - mean_error, x - mean_xhat)).sum()
        };
        let (both, xhat) = (around(|e, x| e * x), around(|_, x| x * x));
        let slope = if xhat > 0.0 { both / xhat } else { 0.0 };
        let left = (around(|e, _| e * e) - slope * both).max(0.0).sqrt();
        format!(
            "it is as if the mean were off by {:e} deviations and the variance by {:e} of itself; {left:e} in norm is neither",
            -(mean_error - slope * mean_xhat),
            -2.0 * slope
        )
    }
}

/// How far one channel is from the oracle's, in norm, and how far it may be.
pub fn y_error<T: Element>(
    got: &[T],
    xhat: &[f64],
    statistics: &Channel,
    (weight, bias): (f64, f64),
    eps: f64,
) -> (f64, f64) {
    let blur = blur(statistics, eps);
    let channel = YChannel { got: got.to_vec(), xhat: xhat.to_vec(), weight, bias, blur };
    let errors = got.iter().zip(channel.expected()).map(|(got, expected)| got.to_f64() - expected);
    (norm(errors), channel.allowed())
}

/// dx against the oracle's, which comes with the size of the terms.
pub fn check_dx<T: Element>(
    got: &Tensor<T>,
    oracle: &Tensor<(f64, f64)>,
    statistics: &[Channel],
    eps: f64,
) -> Outcome {
    let bar = bars::<T>();
    for c in 0..got.channels {
        let blur = blur(&statistics[c], eps);
        // invstd enters dx up to three times, and (x - mean) twice.
        let blurred = 3.0 * blur.relative + 4.0 * blur.absolute;
        let (got, oracle) = (got.channel(c), oracle.channel(c));
        if is_half::<T>() {
            for (i, (expected, terms)) in oracle.iter().enumerate() {
                check_half("dx", c, i, got[i], *expected, (1e-6 + blurred) * terms)?;
            }
            continue;
        }
        let expected: Vec<f64> = oracle.iter().map(|o| o.0).collect();
        let size = norm(oracle.iter().map(|o| o.1));
        let allowed = (bar.activations + blurred) * size + bar.smallest * (oracle.len() as f64).sqrt();
        check_norm("dx", c, &got, &expected, allowed)?;
    }
    Ok(())
}

/// `d_weight` and `d_bias` against the oracle's sums: 1e-6 of the sum of the terms' absolute values, 1e-12 for `f64`.
pub fn check_parameter_gradients<T: Element>(
    d_weight: &[T::Param],
    d_bias: &[T::Param],
    sums: &[GradSums],
    statistics: &[Channel],
    eps: f64,
) -> Outcome {
    let bar = bars::<T>();
    ensure!(d_weight.len() == sums.len() && d_bias.len() == sums.len(), "gradients of another length");
    for (c, sum) in sums.iter().enumerate() {
        let blur = blur(&statistics[c], eps);
        let allowed = bar.parameters * sum.dy_xhat_abs
            + blur.relative * sum.dy_xhat_abs
            + blur.absolute * sum.dy_abs
            + bar.smallest;
        check_number("d_weight", c, d_weight[c].to_f64(), sum.dy_xhat, allowed)?;
        let allowed = bar.parameters * sum.dy_abs + bar.smallest;
        check_number("d_bias", c, d_bias[c].to_f64(), sum.dy, allowed)?;
    }
    Ok(())
}

/// Running statistics against the oracle's: 1e-6 relative to their terms, 1e-12 for `f64`.
pub fn check_running<P: Element>(
    got: (&[P], &[P]),
    before: (&[P], &[P]),
    statistics: &[Channel],
    weight_of_new: f64,
) -> Outcome {
    let bar = bars::<P>();
    let a = weight_of_new;
    for (c, channel) in statistics.iter().enumerate() {
        let old = before.0[c].to_f64();
        let expected = (1.0 - a) * old + a * channel.mean;
        let terms = (1.0 - a) * old.abs() + a * channel.mean_abs;
        let allowed = bar.parameters * terms + bar.smallest;
        check_number("running_mean", c, got.0[c].to_f64(), expected, allowed)?;

        let old = before.1[c].to_f64();
        let alone = channel.count <= 1.0;
        let expected = if alone { old } else { (1.0 - a) * old + a * channel.unbiased() };
        let loss = if alone { 0.0 } else { a * channel.var_error() * channel.count / (channel.count - 1.0) };
        let allowed = bar.parameters * expected + loss + bar.smallest;
        check_number("running_var", c, got.1[c].to_f64(), expected, allowed)?;
    }
    Ok(())
}

/// One number of a channel against what it should be. NaN is never near.
pub fn check_number(what: &str, c: usize, got: f64, expected: f64, allowed: f64) -> Outcome {
    let error = (got - expected).abs();
    ensure!(
        error <= allowed,
        "{what} of channel {c} is {got:e}, expected {expected:e}: off by {error:e}, allowed {allowed:e}"
    );
    Ok(())
}

fn check_norm<T: Element>(what: &str, c: usize, got: &[T], expected: &[f64], allowed: f64) -> Outcome {
    let error = norm(got.iter().zip(expected).map(|(got, expected)| got.to_f64() - expected));
    if error <= allowed {
        return Ok(());
    }
    let apart = |i: &usize| (got[*i].to_f64() - expected[*i]).abs();
    let worst = (0..got.len()).max_by(|i, j| apart(i).total_cmp(&apart(j))).unwrap_or(0);
    Err(crate::broken!(
        "{what} of channel {c} is off by {error:e} in norm, allowed {allowed:e}; worst at element {worst} of {}: {:?}, \
         expected {:e}",
        got.len(),
        got[worst],
        expected[worst]
    ))
}

/// Halves: 1 ulp from the oracle's value rounded, or within the slack.
fn check_half<T: Element>(what: &str, c: usize, i: usize, got: T, expected: f64, slack: f64) -> Outcome {
    let rounded = T::from_f64(expected);
    let near = (order(got) - order(rounded)).abs() <= 1 && !got.to_f64().is_nan();
    let error = (got.to_f64() - expected).abs();
    ensure!(
        near || error <= slack,
        "{what} of channel {c}, element {i}, is {got:?}, expected {rounded:?} ({expected:e}): more than 1 ulp, and {error:e} \
         is more than {slack:e}"
    );
    Ok(())
}

/// The place of a half in the order of all halves, so that neighbours differ by 1.
fn order<T: Element>(value: T) -> i32 {
    let bytes = value.to_le_bytes();
    let bits = bytes.as_ref().iter().rev().fold(0_i32, |bits, &byte| bits << 8 | i32::from(byte));
    if bits & 0x8000 == 0 { bits } else { -(bits & 0x7fff) }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}
