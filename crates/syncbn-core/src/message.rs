//! Messages: the numbers that the ranks sum in a pass.
//!
//! A forward message is `[m | part 0 of every channel | part 1 of every channel | ...]`. The parts are those of
//! [`Moments::to_sums`](crate::statistics::Moments::to_sums): 4 if parameters are `f32`, 6 if they are `f64`, whose smaller variances
//! need more bits. A backward message is `[sum_dy of every channel | sum_dy_xmu of every channel]`.

use std::fmt;

use crate::scalar::Dtype;

/// The pass that a message belongs to.
///
/// | pass | message | numbers |
/// |---|---|---|
/// | forward | `[m \| part 0 of every channel \| part 1 of every channel \| ...]`, [`Moments::to_sums`](crate::statistics::Moments::to_sums) | 4 C + 1, or 6 C + 1 if parameters are `f64` |
/// | backward | `[sum_dy of every channel \| sum_dy_xmu of every channel]` | 2 C |
///
/// ```
/// use syncbn_core::{Dtype, Pass};
///
/// assert_eq!(Pass::Forward.message_len(64, Dtype::F32), 257);
/// assert_eq!(Pass::Backward.message_len(64, Dtype::F32), 128);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The message has the count and the sums of x and x^2, in parts.
    Forward,
    /// The message has `sum_dy` and `sum_dy_xmu`.
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

    /// The number of `f64` values of a message. It saturates at `usize::MAX`.
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
