//! A layer's settings, with the defaults that every framework has.
//!
//! Deliberately not here: anything that a backend or communicator needs to know.

/// A layer's settings. Made by [`Config::new`]; the fields are public to be changed:
///
/// ```
/// let config = syncbn_core::Config { eps: 1e-3, momentum: None, ..syncbn_core::Config::new(64) };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
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
}

impl Config {
    /// The defaults, for this number of channels.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self { channels, eps: 1e-5, momentum: Some(0.1), affine: true, track_running_stats: true }
    }

    /// Checks that every setting is in range; making a layer does the same.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.channels == 0 {
            return Err(ConfigError::NoChannels);
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
    /// The parameters alone would not fit into memory.
    #[error("channels is {0}, more than memory can hold")]
    TooManyChannels(usize),
    /// eps keeps the root away from 0.
    #[error("eps is {0}, expected a finite number above 0")]
    Eps(f64),
    /// momentum is a weight.
    #[error("momentum is {0}, expected a number from 0 to 1, or none for the cumulative average")]
    Momentum(f64),
}
