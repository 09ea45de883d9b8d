//! The layer that owns its parameters and running statistics: what most users use.
//!
//! [`FunctionalBatchNorm`] does the work. This file holds parameters, running statistics and modes; `passes` has the forward and backward
//! passes; `restore` saves and loads the state, and refuses use after failures that may have spoilt it.
//!
//! Deliberately not here: autograd and optimisers. Gradients are written to memory that the caller gives, and an optimiser changes the
//! parameters through [`SyncBatchNorm::weight_mut`] and [`SyncBatchNorm::bias_mut`].

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

/// Batch normalisation over all ranks of a group: a batch norm layer with parameters and running statistics.
///
/// `B` is the backend. `P` is the type of the parameters and running statistics: `f64` for `f64` activations, `f32` for all others.
///
/// A new layer is in training mode: [`forward`](Self::forward) and [`backward`](Self::backward) are collective, so every rank of the
/// group calls them, in the same order, with any batch size, 0 included. In evaluation mode, and while the layer is frozen, no
/// other rank is asked.
///
/// An optimiser changes [`weight_mut`](Self::weight_mut) and [`bias_mut`](Self::bias_mut) after the last backward pass of a step and
/// before the next forward pass. From then on, statistics that earlier forward passes saved are refused, since their gradients would
/// be wrong.
///
/// ```
/// use example_backend::Plain; // as syncbn_cpu::Cpu, memory is a slice
/// use syncbn_core::{Config, Gradients, ParamGradients, SingleRank, SyncBatchNorm, View, ViewMut};
///
/// let mut norm = SyncBatchNorm::new("norm", Config::new(1), Plain, &(), SingleRank)?;
/// let (shape, x, dy) = ([4, 1], [0.0_f32, 2.0, 4.0, 6.0], [1.0, 0.0, 0.0, 0.0]);
/// let (mut y, mut dx, mut d_bias) = ([0.0; 4], [0.0; 4], [0.0]);
/// let view = View::channels_first(&x[..], &shape);
/// let saved = norm.forward::<f32>(&(), view, ViewMut::channels_first(&mut y[..], &shape))?;
/// assert!((y[0] + 1.3416).abs() < 1e-4);
///
/// let gradients =
///     Gradients::out_of_place(View::channels_first(&dy[..], &shape), ViewMut::channels_first(&mut dx[..], &shape));
/// let parameters = ParamGradients { weight: None, bias: Some(&mut d_bias[..]) };
/// norm.backward::<f32>(&(), &saved, View::channels_first(&x[..], &shape), gradients, parameters)?;
/// assert_eq!(d_bias, [1.0]);
///
/// norm.set_training(false); // with running_mean 0.1 * 3 now
/// norm.forward::<f32>(&(), View::channels_first(&x[..], &shape), ViewMut::channels_first(&mut y[..], &shape))?;
/// assert!((y[0] + 0.2397).abs() < 1e-3);
/// # Ok::<(), syncbn_core::Error>(())
/// ```
pub struct SyncBatchNorm<B: Storage, P: Param> {
    inner: FunctionalBatchNorm<B, P>,
    affine: Option<Affine<B, P>>,
    tracked: Option<Tracked<B, P>>,
    mode: Mode,
    trust: Trust,
    /// How often weight or bias were borrowed to be changed.
    parameters: u64,
}

#[derive(Clone, Copy)]
struct Mode {
    training: bool,
    frozen: bool,
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
    /// A layer in training mode, with weight 1, bias 0, `running_mean` 0 and `running_var` 1 where `config` has them.
    ///
    /// `name` appears in errors, and ranks compare it. `group` is a [`Group`] that the layers of a model share, or a communicator,
    /// which becomes a group of this layer alone. The ranks of a group make their layers in the same order.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a setting is out of range, [`ErrorKind::Backend`] if the device fails. No rank is asked.
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
        let mode = Mode { training: true, frozen: false };
        Ok(Self { inner, affine, tracked, mode, trust: Trust::Clean, parameters: 0 })
    }

    /// A layer of a single rank: local batch norm. [`set_group`](Self::set_group) puts it into a group later.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
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

    /// Sets whether the layer normalises with its running statistics even in training mode, as in fine-tuning. Weight and bias of a frozen
    /// layer still have gradients.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NothingToFreeze`] if the layer has no running statistics; its mode is unchanged.
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

    /// Sets whether training passes update the running statistics and their counter, which they do in a new layer. Every rank sets the same
    /// before its next forward pass: ranks compare it, or their running statistics would drift apart.
    pub fn set_updates_running_stats(&mut self, updates: bool) {
        self.inner.updates_running = updates;
    }

    /// Changes the momentum: the weight of the newest batch in the running statistics, 0 to 1, or `None` for the cumulative average. Every
    /// rank sets the same before its next pass.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is not a number from 0 to 1; the momentum is then unchanged.
    pub fn set_momentum(&mut self, momentum: Option<f64>) -> Result<(), Error> {
        self.inner.set_momentum(momentum)
    }

    /// Moves the layer to another group: after a failure, or when the number of ranks changes. Parameters and running statistics stay.
    ///
    /// The layer counts its passes from 0 again and gets the next number in the new group's order of construction. So every rank of the
    /// new group calls this, or makes a new layer, in the same order. Statistics that were saved in the old group are refused from now
    /// on ([`ErrorKind::OtherGroup`]). No rank is asked. If the old group has failed late
    /// ([`CommError::late`](crate::CommError::late)), the layer refuses use until [`load_state`](Self::load_state).
    ///
    /// ```
    /// # use example_backend::Plain;
    /// use syncbn_core::{Config, Group, SingleRank, SyncBatchNorm};
    ///
    /// let mut layers = ["norm1", "norm2"]
    ///     .map(|name| SyncBatchNorm::<Plain, f32>::local(name, Config::new(8), Plain, &()))
    ///     .into_iter()
    ///     .collect::<Result<Vec<_>, _>>()?;
    /// let group = Group::new(SingleRank); // or Group::new(ViaHost(communicator))
    /// layers.iter_mut().for_each(|layer| layer.set_group(group.clone()));
    /// # Ok::<(), syncbn_core::Error>(())
    /// ```
    pub fn set_group(&mut self, group: impl Communicator<B> + 'static) {
        if self.failed_since().is_some() {
            self.trust = Trust::Lost;
        }
        self.inner.set_group(group);
    }

    /// The layer's group.
    #[must_use]
    pub fn group(&self) -> &Group<B> {
        self.inner.group()
    }

    /// The layer's name.
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

    /// The scale, for an optimiser to change. Statistics that earlier forward passes saved are refused from now on
    /// ([`ErrorKind::ParametersChanged`]).
    pub fn weight_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.affine_mut().map(|affine| &mut affine.weight)
    }

    /// The shift, for an optimiser to change. Statistics that earlier forward passes saved are refused from now on
    /// ([`ErrorKind::ParametersChanged`]).
    pub fn bias_mut(&mut self) -> Option<&mut B::Buffer<P>> {
        self.affine_mut().map(|affine| &mut affine.bias)
    }

    fn affine_mut(&mut self) -> Option<&mut Affine<B, P>> {
        let affine = self.affine.as_mut()?;
        self.parameters += 1;
        Some(affine)
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
