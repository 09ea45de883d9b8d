//! How far a backend may be from the oracle: the bars of "How exact", and nothing looser.
//!
//! Results that cancel have no small relative error, so errors are measured against the size of the terms, per channel.
//! Where ranks exchange sums, the variance is known to within [`Channel::var_loss`] only, and the mean to a few roundings of
//! its terms; the bars of all types widen by what these two do to a result, which at a mean of 1e4 and a standard deviation of 1
//! is less than the bar itself for `f32`.
//!
//! Deliberately not here: the results that should have come.

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

/// What an inexact mean and variance do to one channel: to xhat in units of itself, and to xhat absolutely.
#[derive(Clone, Copy)]
struct Blur {
    relative: f64,
    absolute: f64,
}

fn blur(channel: &Channel, eps: f64) -> Blur {
    let invstd = channel.invstd(eps);
    Blur {
        relative: channel.var_loss * invstd * invstd / 2.0,
        absolute: 4.0 * UNIT * channel.mean_abs * invstd,
    }
}

/// y against the oracle's: `||y - y*|| <= 5e-7 (||xhat weight|| + ||bias||)` for `f32`, 1e-12 for `f64`; halves by the element.
pub fn check_y<T: Element>(
    got: &Tensor<T>,
    xhat: &Tensor<f64>,
    statistics: &[Channel],
    affine: &crate::oracle::Affine,
    eps: f64,
) -> Outcome {
    let bar = bars::<T>();
    let expected = crate::oracle::y(xhat, affine);
    for c in 0..got.channels {
        let (weight, bias) = (affine.weight[c].abs(), affine.bias[c].abs());
        let blur = blur(&statistics[c], eps);
        let terms: Vec<(f64, f64)> =
            xhat.channel(c).iter().map(|xhat| ((xhat * weight).abs(), bias)).collect();
        let (got, expected) = (got.channel(c), expected.channel(c));
        if is_half::<T>() {
            for (i, (a, b)) in terms.iter().enumerate() {
                let slack = 1e-6 * a.max(*b) + blur.relative * a + blur.absolute * weight;
                check_half("y", c, i, got[i], expected[i], slack)?;
            }
            continue;
        }
        let root = (terms.len() as f64).sqrt();
        let along = norm(terms.iter().map(|t| t.0));
        let allowed = bar.activations * (along + norm(terms.iter().map(|t| t.1)))
            + blur.relative * along
            + (blur.absolute * weight + bar.smallest) * root;
        check_norm("y", c, &got, &expected, allowed)?;
    }
    Ok(())
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
        let loss = if alone { 0.0 } else { a * channel.var_loss * channel.count / (channel.count - 1.0) };
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
