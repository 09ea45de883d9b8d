//! The layer that owns its parameters and running statistics: what most users use.
//!
//! It is thin: this file holds the memory and the modes; `passes` chooses the statistics and calls
//! [`forward`](mod@crate::forward) and [`backward`](mod@crate::backward), which do the work; `restore` takes and loads
//! snapshots, and knows when the state can no longer be believed.
//!
//! Deliberately not here: autograd and optimisers. Gradients go to memory that the caller gives, and the parameters can be
//! borrowed for an update.

mod passes;
mod restore;

use std::fmt;
use std::sync::Arc;

use crate::backend::{Backend, Storage};
use crate::communicator::{Communicator, Solo};
use crate::config::{Config, ConfigError};
use crate::error::{Error, ErrorKind, Operation, Stage};
use crate::scalar::Param;
use crate::site::{LayerTag, Site, Sums};

pub use passes::ParamGradients;
use restore::Trust;

/// Batch normalisation over all ranks of a group: the drop-in replacement of a batch norm layer.
///
/// `P` is the type of the parameters and running statistics: `f64` for `f64` activations, `f32` for all others.
///
/// In training mode, which it starts in, [`forward`](Self::forward) and [`backward`](Self::backward) are collective: every
/// rank of the group calls them, in the same order, with any batch size, 0 included. In evaluation mode, and while frozen,
/// no other rank is asked for anything.
pub struct SyncBatchNorm<B: Storage, P: Param> {
    place: Place<B>,
    config: Config,
    affine: Option<Affine<B, P>>,
    tracked: Option<Tracked<B, P>>,
    sums: Sums<B>,
    training: bool,
    frozen: bool,
    trust: Trust,
}

/// Everything that a [`Site`] needs besides the queue.
struct Place<B: Backend> {
    tag: LayerTag,
    backend: B,
    communicator: Arc<dyn Communicator<B>>,
}

impl<B: Backend> Place<B> {
    fn site<'a>(&'a self, queue: &'a B::Queue) -> Site<'a, B> {
        Site { layer: &self.tag, backend: &self.backend, queue, communicator: &*self.communicator }
    }
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
    /// `name` is what errors call it. Without a need for other ranks, the communicator is [`Solo`].
    pub fn new(
        name: &str,
        config: Config,
        backend: B,
        queue: &B::Queue,
        communicator: Arc<dyn Communicator<B>>,
    ) -> Result<Self, Error> {
        let place = Place { tag: LayerTag::new(name), backend, communicator };
        let step = place.site(queue).during(Operation::Construct);
        config.validate().map_err(|e| step.error(e))?;

        let constant = |value: f64| {
            let values = filled(P::from_f64(value), config.channels).map_err(|e| step.error(e))?;
            step.device(Stage::Allocation, place.backend.upload(queue, &values))
        };
        let affine =
            if config.affine { Some(Affine { weight: constant(1.0)?, bias: constant(0.0)? }) } else { None };
        let tracked = if config.track_running_stats {
            let count = step.device(Stage::Allocation, place.backend.upload(queue, &[0_i64]))?;
            Some(Tracked { mean: constant(0.0)?, var: constant(1.0)?, count })
        } else {
            None
        };
        let sums = step.device(Stage::Allocation, Sums::new(&place.backend, queue, config.channels))?;
        Ok(Self { place, config, affine, tracked, sums, training: true, frozen: false, trust: Trust::Clean })
    }

    /// A layer on its own: plain batch norm.
    pub fn local(name: &str, config: Config, backend: B, queue: &B::Queue) -> Result<Self, Error> {
        Self::new(name, config, backend, queue, Arc::new(Solo))
    }

    /// Training mode (the start) or evaluation mode.
    pub fn set_training(&mut self, training: bool) {
        self.training = training;
    }

    /// Whether the layer is in training mode.
    #[must_use]
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Freezes the running statistics, or thaws them: a frozen layer normalises with them even in training mode, as in
    /// fine-tuning. Its weight and bias still get gradients.
    pub fn set_frozen(&mut self, queue: &B::Queue, frozen: bool) -> Result<(), Error> {
        if frozen && self.tracked.is_none() {
            let step = self.place.site(queue).during(Operation::SetMode);
            return Err(step.error(ErrorKind::NothingToFreeze));
        }
        self.frozen = frozen;
        Ok(())
    }

    /// Whether the running statistics are frozen.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Puts the layer into another group: after a failure, or when the number of ranks changes. Its uses count from 0 again
    /// ([`Call::sequence`](crate::Call::sequence)), so every rank of the new group does this, or makes a new layer.
    pub fn set_communicator(&mut self, communicator: Arc<dyn Communicator<B>>) {
        if self.failed_since().is_some() {
            self.trust = Trust::Lost;
        }
        self.sums.restart();
        self.place.communicator = communicator;
    }

    /// The name that errors show.
    #[must_use]
    pub fn name(&self) -> &str {
        self.place.tag.name()
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
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

    /// The scale, to be changed by an optimiser.
    pub fn weight_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.affine.as_mut().map(|affine| &mut affine.weight)
    }

    /// The shift, to be changed by an optimiser.
    pub fn bias_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.affine.as_mut().map(|affine| &mut affine.bias)
    }
}

impl<B: Storage, P: Param> fmt::Debug for SyncBatchNorm<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncBatchNorm")
            .field("name", &self.name())
            .field("config", &self.config)
            .field("training", &self.training)
            .field("frozen", &self.frozen)
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
