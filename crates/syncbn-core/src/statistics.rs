//! The formulas of one channel, in `f64`, written once for all backends.
//!
//! Backends on the host call these functions. Kernels on a device restate them in their own language, and the laws of `syncbn-testkit`
//! test that they compute the same.
//!
//! ```
//! use syncbn_core::statistics::{Batch, Moments};
//!
//! let rank = |x: &[f64]| {
//!     let one = |&x: &f64| Moments { count: 1.0, mean: x, m2: 0.0 };
//!     x.iter().map(one).fold(Moments::default(), Moments::merge)
//! };
//! // Two ranks, summed as a message is.
//! let (a, b) = (rank(&[1.0, 2.0]).to_sums::<4>(), rank(&[3.0, 4.0, 5.0]).to_sums::<4>());
//! let sums: [f64; 4] = std::array::from_fn(|i| a[i] + b[i]);
//! let batch = Batch::from_sums(5.0, sums);
//! assert_eq!((batch.mean, batch.var), (3.0, 2.0));
//! ```
//!
//! Sources:
//!
//! - merging of moments: T. Chan, G. Golub, R. `LeVeque`, "Algorithms for computing the sample variance", 1983;
//! - batch normalisation and its gradient: S. Ioffe, C. Szegedy, "Batch Normalization", 2015, algorithm 1.

use crate::double::{Double, two_product};
use crate::scalar::Param;

/// The count, mean and sum of squared deviations (M2) of a set of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// How many numbers, m: an exact integer up to 2^53.
    pub count: f64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// sum (x - mean)^2.
    pub m2: f64,
}

impl Moments {
    /// The moments of the two sets together (Chan, Golub and `LeVeque` 1983).
    #[must_use]
    #[inline]
    pub fn merge(self, other: Self) -> Self {
        if other.count == 0.0 {
            return self;
        }
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        let share = other.count / count;
        Self {
            count,
            mean: self.mean + delta * share,
            m2: self.m2 + other.m2 + delta * delta * (self.count * share),
        }
    }

    /// The numbers of a forward message: K/2 parts of `m mean`, then K/2 parts of `M2 + m mean^2`. [`Batch::from_sums`] takes their
    /// sums over the ranks.
    ///
    /// If each of the two were one number, it would be rounded, and `var = S2/M - mean^2` would lose the digits below that rounding. So
    /// the leading bits of `mean` and `mean^2` are sent separately, [`HEAD_BITS`] in each part. Products of such parts with the count,
    /// and their sums over the ranks, are exact up to 2^29 elements per channel. Only the last part of each half is rounded.
    #[must_use]
    pub fn to_sums<const K: usize>(self) -> [f64; K] {
        let (square, square_rest) = two_product(self.mean, self.mean);
        let mut sums = [0.0; K];
        let (first, second) = sums.split_at_mut(K / 2);
        let mean_rest = heads(self.mean, self.count, first);
        let rest = heads(square, self.count, second) + square_rest;
        if let ([.., first], [.., second]) = (first, second) {
            *first = self.count * mean_rest;
            *second = self.count.mul_add(rest, self.m2);
        }
        sums
    }

    /// The batch statistics of this set alone: `var = M2/m`, without cancellation. Zeros if the set is empty. An infinite M2 becomes NaN, as
    /// in [`Batch::from_sums`]: its `invstd` would be 0, and y finite.
    #[must_use]
    pub fn batch(self) -> Batch {
        if self.count == 0.0 {
            return Batch::default();
        }
        let var = if self.m2.is_infinite() { f64::NAN } else { self.m2 / self.count };
        Batch { count: self.count, mean: self.mean, var }
    }
}

/// How many leading bits of a value one part of a forward message has. Its product with a count below 2^29 is exact in `f64`, and so is the
/// sum over ranks whose values have about the same exponent. If their exponents differ, the variance is large, and nothing cancels.
pub const HEAD_BITS: u32 = 24;

/// Writes `count` times the leading parts of `value` to all numbers but the last, and returns the remainder of the value.
fn heads(value: f64, count: f64, numbers: &mut [f64]) -> f64 {
    let mut above = 0.0;
    let last = numbers.len() - 1;
    for (number, heads) in numbers[..last].iter_mut().zip(1..) {
        let leading =
            f64::from_bits(value.to_bits() & (u64::MAX << (f64::MANTISSA_DIGITS - heads * HEAD_BITS)));
        *number = count * (leading - above);
        above = leading;
    }
    value - above
}

/// The mean and biased variance that a batch is normalised with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch {
    /// How many numbers, M.
    pub count: f64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// Their variance, M2/M: never negative, NaN if a number was not finite; 0 if there are none.
    pub var: f64,
}

impl Batch {
    /// Mean and variance from the group's sums of [`Moments::to_sums`]: `mean = S1/M`, `var = S2/M - mean^2`, in twice the precision of
    /// `f64`. NaN and infinity become NaN. So does the variance where the square of the mean overflows (above 2^511), and the mean
    /// above 2^995.
    #[must_use]
    #[inline]
    pub fn from_sums<const K: usize>(count: f64, sums: [f64; K]) -> Self {
        if count == 0.0 {
            return Self::default();
        }
        let (first, second) = sums.split_at(K / 2);
        let total = first.iter().fold(Double::default(), |sum, &part| sum.plus(part));
        let pivot = total.value() / count;
        // S1 = M pivot + rest, so S2 - S1^2/M = S2 - pivot S1 - pivot rest, but for rest^2/M, which is too small to matter.
        let rest = total.plus_product(-count, pivot).value();
        let squares = second.iter().fold(Double::default(), |sum, &part| sum.plus(part));
        let m2 = first.iter().fold(squares, |sum, &part| sum.plus_product(-pivot, part));
        let var = m2.plus_product(-pivot, rest).value() / count;
        // False for NaN, which thereby stays NaN.
        let rounded_below = var < 0.0;
        Self { count, mean: pivot + rest / count, var: if rounded_below { 0.0 } else { var } }
    }

    /// `1 / sqrt(var + eps)` of a batch; 0 if it has no numbers. Frozen statistics have a count of 0: for them use the function
    /// [`invstd`](fn@invstd).
    #[must_use]
    pub fn invstd(self, eps: f64) -> f64 {
        if self.count == 0.0 { 0.0 } else { invstd(self.var, eps) }
    }
}

/// `1 / sqrt(var + eps)`, whatever the count: for frozen statistics.
#[must_use]
pub fn invstd(var: f64, eps: f64) -> f64 {
    (var + eps).sqrt().recip()
}

/// The update of running statistics by a batch.
///
/// With `a = momentum`, or `1 / num_batches_tracked` for the cumulative average, and `num_batches_tracked` increased
/// first: `mean <- (1-a) mean + a batch.mean` and `var <- (1-a) var + a batch.var M/(M-1)`. A batch of one number updates
/// the mean only. A batch without numbers updates nothing, and is not counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    /// How many batches there have been, including this one.
    pub num_batches_tracked: i64,
    /// The batch's weight, a.
    weight: f64,
    non_finite: NonFinite,
}

/// What happens to the running statistics of a channel whose batch mean or variance is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NonFinite {
    /// They become NaN, as in every framework.
    #[default]
    Propagate,
    /// They are unchanged, for trainers with loss scaling, whose first batches may overflow; also where it is the type of the running
    /// statistics that cannot hold what they would become. The batch is counted.
    Skip,
}

impl Running {
    /// The update for a batch of `count` numbers per channel after `num_batches_tracked` others; `None` if it has none.
    #[must_use]
    pub fn next(
        count: f64,
        num_batches_tracked: i64,
        momentum: Option<f64>,
        non_finite: NonFinite,
    ) -> Option<Self> {
        if count == 0.0 {
            return None;
        }
        let num_batches_tracked = num_batches_tracked.saturating_add(1);
        let weight = momentum.unwrap_or_else(|| (num_batches_tracked as f64).recip());
        Some(Self { num_batches_tracked, weight, non_finite })
    }

    /// The running mean after the batch.
    #[must_use]
    pub fn mean(self, mean: f64, batch: Batch) -> f64 {
        if self.skips(batch) { mean } else { self.blend(mean, batch.mean) }
    }

    /// The running variance after the batch: unbiased, so the batch's is scaled by M/(M-1).
    #[must_use]
    pub fn var(self, var: f64, batch: Batch) -> f64 {
        if self.skips(batch) {
            return var;
        }
        if batch.count <= 1.0 {
            return if batch.var.is_finite() { var } else { f64::NAN };
        }
        self.blend(var, batch.var * (batch.count / (batch.count - 1.0)))
    }

    /// The running mean and variance after the batch, in the type that holds them.
    #[must_use]
    pub fn moved<P: Param>(self, [mean, var]: [P; 2], batch: Batch) -> [P; 2] {
        let moved = [self.mean(mean.to_f64(), batch), self.var(var.to_f64(), batch)].map(P::from_f64);
        let finite = moved.iter().all(|value| value.to_f64().is_finite());
        if finite || self.non_finite == NonFinite::Propagate { moved } else { [mean, var] }
    }

    fn skips(self, batch: Batch) -> bool {
        self.non_finite == NonFinite::Skip && !(batch.mean.is_finite() && batch.var.is_finite())
    }

    fn blend(self, old: f64, new: f64) -> f64 {
        (1.0 - self.weight) * old + self.weight * new
    }
}

/// The numbers of one channel from which dx follows: `dx = scale (dy - mean_dy - (x - mean) slope)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradTerms {
    /// `weight invstd`.
    pub scale: f64,
    /// `sum_dy / M`.
    pub mean_dy: f64,
    /// `invstd^2 sum_dy_xmu / M`.
    pub slope: f64,
}

impl GradTerms {
    /// The terms from the group's sums; `sums` is `(sum_dy, sum_dy_xmu)`, or `None` for frozen statistics.
    #[must_use]
    pub fn new(weight: f64, invstd: f64, count: f64, sums: Option<(f64, f64)>) -> Self {
        let scale = weight * invstd;
        match sums {
            Some((sum_dy, sum_dy_xmu)) if count > 0.0 => {
                // In this order: the square of invstd may be infinite where the slope is not.
                Self { scale, mean_dy: sum_dy / count, slope: invstd * (invstd * (sum_dy_xmu / count)) }
            }
            _ => Self { scale, mean_dy: 0.0, slope: 0.0 },
        }
    }
}
