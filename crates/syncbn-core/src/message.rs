//! What the ranks sum: which pass it belongs to, and how many numbers it has.
//!
//! A forward message is `[m | part 0 of every channel | part 1 of every channel | ...]`, with the parts that
//! [`Moments::to_sums`](crate::statistics::Moments::to_sums) makes: 4 where parameters are `f32`, 6 where they are `f64`, which
//! resolves smaller variances. A backward message is `[sum_dy of every channel | sum_dy_xmu of every channel]`.

use std::fmt;

use crate::scalar::Dtype;

/// Which half of a step a message belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The message holds counts, means and variances.
    Forward,
    /// The message holds `sum_dy` and `sum_dy_xmu`.
    Backward,
}

impl Pass {
    /// The numbers of a message per channel; `params` is the type of the layer's parameters.
    #[must_use]
    pub const fn per_channel(self, params: Dtype) -> usize {
        match (self, params) {
            (Self::Backward, _) => 2,
            (Self::Forward, Dtype::F64) => 6,
            (Self::Forward, _) => 4,
        }
    }

    /// The number of `f64` values that are summed over the ranks. It saturates, so that no message has the length that an
    /// impossible number of channels asks for.
    #[must_use]
    pub const fn message_len(self, channels: usize, params: Dtype) -> usize {
        let numbers = channels.saturating_mul(self.per_channel(params));
        match self {
            Self::Forward => numbers.saturating_add(1),
            Self::Backward => numbers,
        }
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        })
    }
}
