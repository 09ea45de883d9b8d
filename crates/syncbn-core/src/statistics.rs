//! The formulas per channel, in `f64`: what every backend computes, written once.
//!
//! Backends that run on the host call these; device kernels restate them in their own language, and the laws hold the
//! two together.
//!
//! - merging of moments: T. Chan, G. Golub, R. `LeVeque`, "Algorithms for computing the sample variance", 1983;
//! - batch normalisation and its gradient: S. Ioffe, C. Szegedy, "Batch Normalization", 2015, algorithm 1.
//!
//! Deliberately not here: tensors. Everything in this file concerns one channel.

/// The largest `var / (S2/M)` that cannot be told from 0 once mean and variance have travelled as sums: 2^-48. Below
/// it, data of `f32` and narrower types do not resolve the variance either (|mean|/std of 1.7e7).
const UNRESOLVED: f64 = 1.0 / (1_u64 << 48) as f64;

/// The count, mean and sum of squared deviations of a set of numbers.
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

    /// `(m mean, M2 + m mean^2)`: the two numbers of the message whose sums over the ranks [`Batch::from_sums`] takes apart.
    #[must_use]
    pub fn to_sums(self) -> (f64, f64) {
        let sum = self.count * self.mean;
        (sum, sum.mul_add(self.mean, self.m2))
    }

    /// The batch statistics of this set alone: `var = M2/m`, without cancellation; zeros where it is empty.
    #[must_use]
    pub fn batch(self) -> Batch {
        if self.count == 0.0 {
            return Batch::default();
        }
        Batch { count: self.count, mean: self.mean, var: self.m2 / self.count }
    }
}

/// The mean and (biased) variance that a batch is normalised with.
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
    /// Takes apart the group's sums: `mean = S1/M`, `var = S2/M - mean^2`, which is 0 where rounding has left nothing of
    /// it. NaN and infinity come through as NaN.
    #[must_use]
    pub fn from_sums(count: f64, sum: f64, sum_of_squares: f64) -> Self {
        if count == 0.0 {
            return Self::default();
        }
        let mean = sum / count;
        let square = sum_of_squares / count;
        // sum = count mean + rest, exactly: the rounding of the mean then costs the variance nothing, only that of the sums.
        let rest = mean.mul_add(-count, sum);
        let var = (sum.mul_add(-mean, sum_of_squares) - mean * rest) / count;
        // False for NaN, which thereby stays NaN.
        let unresolved = var <= UNRESOLVED * square;
        Self { count, mean, var: if unresolved { 0.0 } else { var } }
    }

    /// `1 / sqrt(var + eps)`; 0 if there are no numbers.
    #[must_use]
    pub fn invstd(self, eps: f64) -> f64 {
        if self.count == 0.0 { 0.0 } else { invstd(self.var, eps) }
    }
}

/// `1 / sqrt(var + eps)`.
#[must_use]
pub fn invstd(var: f64, eps: f64) -> f64 {
    (var + eps).sqrt().recip()
}

/// The rule by which running statistics move towards a batch's.
///
/// With `a = momentum`, or `1 / num_batches_tracked` for the cumulative average, and `num_batches_tracked` increased
/// first: `mean <- (1-a) mean + a batch.mean` and `var <- (1-a) var + a batch.var M/(M-1)`. A batch of one number moves
/// the mean only; one without numbers moves nothing, and is not counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    /// How many batches there have been, the one in hand included.
    pub num_batches_tracked: i64,
    /// The batch's weight, a.
    weight: f64,
}

impl Running {
    /// The update for a batch of `count` numbers per channel after `num_batches_tracked` others; `None` if it has none.
    #[must_use]
    pub fn next(count: f64, num_batches_tracked: i64, momentum: Option<f64>) -> Option<Self> {
        if count == 0.0 {
            return None;
        }
        let num_batches_tracked = num_batches_tracked.saturating_add(1);
        let weight = momentum.unwrap_or_else(|| (num_batches_tracked as f64).recip());
        Some(Self { num_batches_tracked, weight })
    }

    /// The running mean after the batch.
    #[must_use]
    pub fn mean(self, mean: f64, batch: Batch) -> f64 {
        self.blend(mean, batch.mean)
    }

    /// The running variance after the batch: unbiased, so the batch's is scaled by M/(M-1).
    #[must_use]
    pub fn var(self, var: f64, batch: Batch) -> f64 {
        if batch.count <= 1.0 {
            return if batch.var.is_finite() { var } else { f64::NAN };
        }
        self.blend(var, batch.var * (batch.count / (batch.count - 1.0)))
    }

    fn blend(self, old: f64, new: f64) -> f64 {
        (1.0 - self.weight) * old + self.weight * new
    }
}

/// What turns `dy` into `dx` for one channel: `dx = scale (dy - mean_dy - (x - mean) slope)`.
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
                Self { scale, mean_dy: sum_dy / count, slope: invstd * invstd * (sum_dy_xmu / count) }
            }
            _ => Self { scale, mean_dy: 0.0, slope: 0.0 },
        }
    }
}
