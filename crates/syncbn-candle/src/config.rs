//! A layer's settings, as candle's users write them.

use candle_nn::BatchNormConfig;
use syncbn_core::{Config, NonFinite};

/// The settings of [`sync_batch_norm`](crate::sync_batch_norm). A number is an eps with all else as default, and a
/// [`BatchNormConfig`] of candle's is taken as it is.
///
/// ```
/// use syncbn_candle::SyncBatchNormConfig;
///
/// let config = SyncBatchNormConfig { momentum: None, ..1e-3.into() };
/// assert_eq!(config.eps, 1e-3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SyncBatchNormConfig {
    /// Added to the variance under the root; finite and above 0. Default 1e-5.
    pub eps: f64,
    /// The weight of the newest batch in the running statistics, 0 to 1; `None` for the cumulative average. Default 0.1.
    pub momentum: Option<f64>,
    /// Whether there are a weight and a bias per channel. Default on: weight 1, bias 0.
    pub affine: bool,
    /// Whether running statistics are kept for evaluation. Default on.
    pub track_running_stats: bool,
    /// What a batch whose statistics are not finite does to the running statistics. Default: they become NaN.
    pub non_finite: NonFinite,
    /// Candle's setting of this name, which has to be on, as it is by default: a batch norm subtracts the mean.
    pub remove_mean: bool,
}

impl Default for SyncBatchNormConfig {
    fn default() -> Self {
        let Config { eps, momentum, affine, track_running_stats, non_finite, .. } = Config::new(1);
        Self { eps, momentum, affine, track_running_stats, non_finite, remove_mean: true }
    }
}

impl From<f64> for SyncBatchNormConfig {
    fn from(eps: f64) -> Self {
        Self { eps, ..Self::default() }
    }
}

impl From<BatchNormConfig> for SyncBatchNormConfig {
    fn from(config: BatchNormConfig) -> Self {
        let BatchNormConfig { eps, remove_mean, affine, momentum } = config;
        Self { eps, momentum: Some(momentum), affine, remove_mean, ..Self::default() }
    }
}

impl SyncBatchNormConfig {
    pub(crate) fn to_core(self, channels: usize) -> Config {
        Config::new(channels)
            .with_eps(self.eps)
            .with_momentum(self.momentum)
            .with_affine(self.affine)
            .with_track_running_stats(self.track_running_stats)
            .with_non_finite(self.non_finite)
    }
}
