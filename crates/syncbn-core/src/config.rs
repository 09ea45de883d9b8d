//! A layer's settings, with the defaults that every framework has.

use crate::backend::saved_len;
use crate::collective::fnv;
use crate::scalar::Dtype;
use crate::statistics::NonFinite;

/// A layer's settings: [`Config::new`] has the defaults of `PyTorch`, methods and fields change them. All ranks of a group use the same.
///
/// ```
/// let config = syncbn_core::Config::new(64).with_eps(1e-3).with_momentum(None);
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The number of channels, C; at least 1.
    pub channels: usize,
    /// Added to the variance under the root; finite and above 0. Default 1e-5.
    pub eps: f64,
    /// The weight of the newest batch in the running statistics, 0 to 1; `None` for the cumulative average. Default 0.1.
    pub momentum: Option<f64>,
    /// Whether there are a weight and a bias per channel. Default on: weight 1, bias 0.
    pub affine: bool,
    /// Whether running statistics are kept for evaluation. Default on: `running_mean` 0, `running_var` 1.
    pub track_running_stats: bool,
    /// What a batch whose mean or variance is not finite does to the running statistics of that channel. Default: they become NaN,
    /// as in every framework. [`NonFinite::Skip`] keeps them, for trainers that scale their loss.
    pub non_finite: NonFinite,
}

impl Config {
    /// The defaults, for this number of channels.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            eps: 1e-5,
            momentum: Some(0.1),
            affine: true,
            track_running_stats: true,
            non_finite: NonFinite::Propagate,
        }
    }

    /// With another eps.
    #[must_use]
    pub fn with_eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// With another momentum; `None` for the cumulative average.
    #[must_use]
    pub fn with_momentum(self, momentum: Option<f64>) -> Self {
        Self { momentum, ..self }
    }

    /// With or without weight and bias.
    #[must_use]
    pub fn with_affine(self, affine: bool) -> Self {
        Self { affine, ..self }
    }

    /// With or without running statistics.
    #[must_use]
    pub fn with_track_running_stats(self, track_running_stats: bool) -> Self {
        Self { track_running_stats, ..self }
    }

    /// With another treatment of batches whose statistics are not finite.
    #[must_use]
    pub fn with_non_finite(self, non_finite: NonFinite) -> Self {
        Self { non_finite, ..self }
    }

    /// The settings of a layer with such parameters as one number, the same on every rank and in every build: what ranks compare
    /// (FNV-1a of 64 bits).
    pub(crate) fn digest(&self, params: Dtype, updates_running_stats: bool) -> u64 {
        let Self { channels, eps, momentum, affine, track_running_stats, non_finite } = *self;
        // No momentum is NaN. The sum makes 0 of -0.
        let momentum = momentum.unwrap_or(f64::NAN) + 0.0;
        let words = [
            channels as u64,
            eps.to_bits(),
            momentum.to_bits(),
            u64::from(affine),
            u64::from(track_running_stats),
            u64::from(non_finite == NonFinite::Skip),
            u64::from(params == Dtype::F64),
            u64::from(updates_running_stats),
        ];
        fnv(words.into_iter().flat_map(u64::to_le_bytes))
    }

    /// Checks that every setting is in range. Layers do so when they are made.
    ///
    /// # Errors
    ///
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.channels == 0 {
            return Err(ConfigError::NoChannels);
        }
        if saved_len(self.channels) > isize::MAX as usize / size_of::<f64>() {
            return Err(ConfigError::TooManyChannels(self.channels));
        }
        check_eps(self.eps)?;
        check_momentum(self.momentum)
    }
}

pub(crate) fn check_eps(eps: f64) -> Result<(), ConfigError> {
    if eps.is_finite() && eps > 0.0 { Ok(()) } else { Err(ConfigError::Eps(eps)) }
}

pub(crate) fn check_momentum(momentum: Option<f64>) -> Result<(), ConfigError> {
    match momentum {
        Some(a) if !(0.0..=1.0).contains(&a) => Err(ConfigError::Momentum(a)),
        _ => Ok(()),
    }
}

/// A layer's settings are out of range.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A layer needs channels.
    #[error("channels is 0, expected at least 1")]
    NoChannels,
    /// Parameters, or what a forward pass saves, would not fit into memory.
    #[error("channels is {0}, more than memory can hold")]
    TooManyChannels(usize),
    /// eps keeps the root away from 0.
    #[error("eps is {0}, expected a finite number above 0")]
    Eps(f64),
    /// momentum is a weight.
    #[error("momentum is {0}, expected a number from 0 to 1, or none for the cumulative average")]
    Momentum(f64),
}
