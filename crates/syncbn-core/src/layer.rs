//! The layer that owns its parameters and running statistics: what most users use.
//!
//! It is thin: this file holds the memory and the modes; `passes` chooses the statistics and calls
//! [`FunctionalBatchNorm`], which does the work; `restore` takes and loads snapshots, and knows when the state can no longer be
//! believed.
//!
//! Deliberately not here: autograd and optimisers. Gradients go to memory that the caller gives, and the parameters can be
//! borrowed for an update.

mod passes;
mod restore;

use std::fmt;

use crate::backend::Storage;
use crate::communicator::Communicator;
use crate::config::{Config, ConfigError};
use crate::error::{Error, ErrorKind, Operation, Stage};
use crate::functional::FunctionalBatchNorm;
use crate::group::Group;
use crate::host::SingleRank;
use crate::scalar::Param;

pub use passes::ParamGradients;
use restore::Trust;

/// Batch normalisation over all ranks of a group: the drop-in replacement of a batch norm layer.
///
/// `P` is the type of the parameters and running statistics: `f64` for `f64` activations, `f32` for all others.
///
/// In training mode, which it starts in, [`forward`](Self::forward) and [`backward`](Self::backward) are collective: every
/// rank of the group calls them, in the same order, with any batch size, 0 included. In evaluation mode, and while frozen,
/// no other rank is asked for anything.
///
/// An optimiser may change [`weight_mut`](Self::weight_mut) and [`bias_mut`](Self::bias_mut) after the last backward pass of a
/// step and before the next forward pass. What was saved before is refused afterwards, since its gradient, or the bits of its
/// recomputation, would be others.
pub struct SyncBatchNorm<B: Storage, P: Param> {
    inner: FunctionalBatchNorm<B, P>,
    affine: Option<Affine<B, P>>,
    tracked: Option<Tracked<B, P>>,
    mode: Mode,
    trust: Trust,
    /// How often weight or bias were lent to be changed.
    parameters: u64,
}

#[derive(Clone, Copy)]
struct Mode {
    training: bool,
    frozen: bool,
    updates_running: bool,
}

struct Affine<B: Storage, P: Param> {
    weight: B::Buffer<P>,
    bias: B::Buffer<P>,
}

struct Tracked<B: Storage, P: Param> {
    mean: B::Buffer<P>,
    var: B::Buffer<P>,
    count: B::Buffer<i64>,
}

impl<B: Storage, P: Param> SyncBatchNorm<B, P> {
    /// A layer in training mode with weight 1, bias 0, `running_mean` 0 and `running_var` 1, as far as `config` wants them.
    ///
    /// `name` is what errors call it, and what ranks compare. `group` is a [`Group`], which layers of one model share, or a
    /// communicator, which becomes a group of this layer alone.
    pub fn new(
        name: &str,
        config: Config,
        backend: B,
        queue: &B::Queue,
        group: impl Communicator<B> + 'static,
    ) -> Result<Self, Error> {
        let inner = FunctionalBatchNorm::new(name, config, backend, queue, group)?;
        let context = inner.context(Operation::Construct);
        let backend = inner.backend();
        let constant = |value: f64| {
            let values = filled(P::from_f64(value), config.channels).map_err(|e| context.error(e))?;
            context.device(Stage::Allocation, backend.upload(queue, &values))
        };
        let affine =
            if config.affine { Some(Affine { weight: constant(1.0)?, bias: constant(0.0)? }) } else { None };
        let tracked = if config.track_running_stats {
            let count = context.device(Stage::Allocation, backend.upload(queue, &[0_i64]))?;
            Some(Tracked { mean: constant(0.0)?, var: constant(1.0)?, count })
        } else {
            None
        };
        let mode = Mode { training: true, frozen: false, updates_running: true };
        Ok(Self { inner, affine, tracked, mode, trust: Trust::Clean, parameters: 0 })
    }

    /// A layer on its own: plain batch norm.
    pub fn local(name: &str, config: Config, backend: B, queue: &B::Queue) -> Result<Self, Error> {
        Self::new(name, config, backend, queue, SingleRank)
    }

    /// Training mode (the start) or evaluation mode.
    pub fn set_training(&mut self, training: bool) {
        self.mode.training = training;
    }

    /// Whether the layer is in training mode.
    #[must_use]
    pub fn is_training(&self) -> bool {
        self.mode.training
    }

    /// Freezes the running statistics, or thaws them: a frozen layer normalises with them even in training mode, as in
    /// fine-tuning. Its weight and bias still get gradients.
    pub fn set_frozen(&mut self, frozen: bool) -> Result<(), Error> {
        if frozen && self.tracked.is_none() {
            return Err(self.inner.context(Operation::SetMode).error(ErrorKind::NothingToFreeze));
        }
        self.mode.frozen = frozen;
        Ok(())
    }

    /// Whether the running statistics are frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.mode.frozen
    }

    /// Whether training passes update the running statistics (the start) or leave them and their counter untouched.
    pub fn set_updates_running_stats(&mut self, updates: bool) {
        self.mode.updates_running = updates;
    }

    /// Another weight of the newest batch in the running statistics: 0 to 1, or `None` for the cumulative average. Every rank
    /// sets the same.
    pub fn set_momentum(&mut self, momentum: Option<f64>) -> Result<(), Error> {
        self.inner.set_momentum(momentum)
    }

    /// Puts the layer into another group: after a failure, or when the number of ranks changes. Its uses count from 0 again and it
    /// gets a place in the new group's order, so every rank of the new group does this, or makes a new layer, in the same order.
    ///
    /// What was saved in the old group is refused from then on.
    pub fn set_group(&mut self, group: impl Communicator<B> + 'static) {
        if self.failed_since().is_some() {
            self.trust = Trust::Lost;
        }
        self.inner.set_group(group);
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &Group<B> {
        self.inner.group()
    }

    /// The name that errors show.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        self.inner.config()
    }

    /// The scale, one value per channel, if the layer is affine.
    #[must_use]
    pub fn weight(&self) -> Option<&B::Buffer<P>> {
        self.affine.as_ref().map(|affine| &affine.weight)
    }

    /// The shift, one value per channel, if the layer is affine.
    #[must_use]
    pub fn bias(&self) -> Option<&B::Buffer<P>> {
        self.affine.as_ref().map(|affine| &affine.bias)
    }

    /// The scale, to be changed by an optimiser. From here on, what earlier forward passes saved is refused.
    pub fn weight_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.parameters += 1;
        self.affine.as_mut().map(|affine| &mut affine.weight)
    }

    /// The shift, to be changed by an optimiser. From here on, what earlier forward passes saved is refused.
    pub fn bias_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.parameters += 1;
        self.affine.as_mut().map(|affine| &mut affine.bias)
    }

    /// The running mean, one value per channel, if the layer tracks statistics.
    #[must_use]
    pub fn running_mean(&self) -> Option<&B::Buffer<P>> {
        self.tracked.as_ref().map(|tracked| &tracked.mean)
    }

    /// The running unbiased variance, one value per channel, if the layer tracks statistics.
    #[must_use]
    pub fn running_var(&self) -> Option<&B::Buffer<P>> {
        self.tracked.as_ref().map(|tracked| &tracked.var)
    }

    /// How many batches were seen, one value, if the layer tracks statistics.
    #[must_use]
    pub fn num_batches_tracked(&self) -> Option<&B::Buffer<i64>> {
        self.tracked.as_ref().map(|tracked| &tracked.count)
    }
}

impl<B: Storage, P: Param> fmt::Debug for SyncBatchNorm<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncBatchNorm")
            .field("name", &self.name())
            .field("config", &self.config())
            .field("training", &self.mode.training)
            .field("frozen", &self.mode.frozen)
            .finish_non_exhaustive()
    }
}

/// As many copies of the value; a number of channels that no memory holds is an error, not an abort.
fn filled<P: Param>(value: P, channels: usize) -> Result<Vec<P>, ConfigError> {
    let mut values = Vec::new();
    values.try_reserve_exact(channels).map_err(|_| ConfigError::TooManyChannels(channels))?;
    values.resize(channels, value);
    Ok(values)
}
