//! The layer that owns its parameters and running statistics: what most users use.
//!
//! It is thin: it chooses the statistics, holds the memory, and calls [`forward`](mod@crate::forward) and
//! [`backward`](mod@crate::backward), which do the work.
//!
//! Deliberately not here: autograd and optimisers. Gradients go to memory that the caller gives, and the parameters can be
//! borrowed for an update.

use std::sync::Arc;

use crate::backend::{Kernels, Storage};
use crate::backward::{Backward, Gradients, backward};
use crate::communicator::{Communicator, Solo};
use crate::config::Config;
use crate::error::{ConfigError, Error, ErrorKind, Operation, Stage, Tensor};
use crate::forward::{Forward, Recompute, Running, Saved, Statistics, forward, recompute};
use crate::geometry::Geometry;
use crate::scalar::{Element, Param};
use crate::site::{LayerTag, Site, Step, Sums};
use crate::state::State;
use crate::view::{IntoView, IntoViewMut, View, shorter_mut};

/// Batch normalisation over all ranks of a group: the drop-in replacement of a batch norm layer.
///
/// `P` is the type of the parameters and running statistics: `f64` for `f64` activations, `f32` for all others.
///
/// In training mode, which it starts in, [`forward`](Self::forward) and [`backward`](Self::backward) are collective: every
/// rank of the group calls them, in the same order, with any batch size, 0 included. In evaluation mode, and while frozen,
/// no other rank is asked for anything.
pub struct SyncBatchNorm<B: Storage, P: Param> {
    tag: LayerTag,
    config: Config,
    backend: B,
    communicator: Arc<dyn Communicator<B>>,
    affine: Option<Affine<B, P>>,
    tracked: Option<Tracked<B, P>>,
    sums: Sums<B>,
    training: bool,
    frozen: bool,
    trust: Trust,
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

/// Whether the state can be believed, given collectives whose failure shows only later.
#[derive(Clone, Copy, PartialEq)]
enum Trust {
    /// No collective has touched the state since it was made or loaded.
    Clean,
    /// Collectives have; the communicator's status tells whether they went well.
    Exposed,
    /// One failed: the state has to be loaded again.
    Lost,
}

/// Where the parameters' gradients of a backward pass are written: one value per channel, over this rank's elements.
/// What is `None` is not computed.
pub struct ParamGradients<'a, B: Storage, P: Param> {
    /// The gradient of the weight.
    pub weight: Option<B::MemMut<'a, P>>,
    /// The gradient of the bias.
    pub bias: Option<B::MemMut<'a, P>>,
}

impl<B: Storage, P: Param> Default for ParamGradients<'_, B, P> {
    fn default() -> Self {
        Self { weight: None, bias: None }
    }
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
        let tag = LayerTag::new(name);
        let site = Site { layer: &tag, backend: &backend, queue, communicator: &*communicator };
        let step = site.during(Operation::Construct);
        config.validate().map_err(|e| step.error(e))?;

        let constant = |value: f64| {
            let values = filled(P::from_f64(value), config.channels).map_err(|e| step.error(e))?;
            step.device(Stage::Allocation, backend.upload(queue, &values))
        };
        let affine =
            if config.affine { Some(Affine { weight: constant(1.0)?, bias: constant(0.0)? }) } else { None };
        let tracked = if config.track_running_stats {
            let count = step.device(Stage::Allocation, backend.upload(queue, &[0_i64]))?;
            Some(Tracked { mean: constant(0.0)?, var: constant(1.0)?, count })
        } else {
            None
        };
        let sums = step.device(Stage::Allocation, Sums::new(&backend, queue, config.channels))?;
        Ok(Self {
            tag,
            config,
            backend,
            communicator,
            affine,
            tracked,
            sums,
            training: true,
            frozen: false,
            trust: Trust::Clean,
        })
    }

    /// A layer on its own: plain batch norm.
    pub fn local(name: &str, config: Config, backend: B, queue: &B::Queue) -> Result<Self, Error> {
        Self::new(name, config, backend, queue, Arc::new(Solo))
    }

    /// Lets the backend compile and allocate whatever activations `T` of this geometry need.
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let step = self.site(queue).during(Operation::Prepare);
        step.device(Stage::Preparation, self.backend.prepare(queue, geometry))
    }

    /// Normalises `x` into `y`, of the same shape and layout.
    ///
    /// In training mode: with the group's batch statistics, which also move the running ones. In evaluation mode or frozen:
    /// with the running statistics; with this rank's batch statistics if the layer tracks none.
    ///
    /// What it returns is for the backward pass; drop it if there is none.
    pub fn forward<'x, 'y, T>(
        &mut self,
        queue: &B::Queue,
        x: impl IntoView<'x, B, T>,
        y: impl IntoViewMut<'y, B, T>,
    ) -> Result<Saved<B>, Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.check_trust(queue, Operation::Forward)?;
        let group = self.training && !self.frozen;
        let site =
            Site { layer: &self.tag, backend: &self.backend, queue, communicator: &*self.communicator };
        let step = site.during(Operation::Forward);
        let mut y = step.view_mut(Tensor::Y, y)?;
        let x = step.view(Tensor::X, x)?;
        check_channels(&step, self.config.channels, &x)?;

        let momentum = self.config.momentum;
        let statistics = match &mut self.tracked {
            Some(tracked) if group => Statistics::Group {
                running: Some(Running {
                    mean: B::mem_mut(&mut tracked.mean),
                    var: B::mem_mut(&mut tracked.var),
                    num_batches_tracked: B::mem_mut(&mut tracked.count),
                    momentum,
                }),
            },
            None if group => Statistics::Group { running: None },
            Some(tracked) => Statistics::Frozen { mean: B::mem(&tracked.mean), var: B::mem(&tracked.var) },
            None => Statistics::Local,
        };
        let args = Forward {
            x: x.reborrow(),
            y: y.reborrow(),
            statistics,
            weight: self.affine.as_ref().map(|affine| B::mem(&affine.weight)),
            bias: self.affine.as_ref().map(|affine| B::mem(&affine.bias)),
            eps: self.config.eps,
        };
        let result = forward(&site, &mut self.sums, args);
        self.note(group, result)
    }

    /// The forward pass again, for activation checkpointing: `x` as it was when `saved` was made, the same bits of `y`. No
    /// rank is asked and nothing is updated.
    pub fn recompute<'x, 'y, T>(
        &self,
        queue: &B::Queue,
        saved: &Saved<B>,
        x: impl IntoView<'x, B, T>,
        y: impl IntoViewMut<'y, B, T>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let site = self.site(queue);
        let step = site.during(Operation::Recompute);
        self.refuse_if_lost(&step)?;
        let mut y = step.view_mut(Tensor::Y, y)?;
        let x = step.view(Tensor::X, x)?;
        let args = Recompute {
            saved,
            x: x.reborrow(),
            y: y.reborrow(),
            weight: self.affine.as_ref().map(|affine| B::mem(&affine.weight)),
            bias: self.affine.as_ref().map(|affine| B::mem(&affine.bias)),
            eps: self.config.eps,
        };
        recompute(&site, args)
    }

    /// Writes the gradient of x to `dx`, and the parameters' gradients to `parameters`; `x` as the forward pass read it, `dy`
    /// and `dx` of the same shape and layout. All are overwritten, not added to.
    pub fn backward<'x, 'dy, 'dx, T>(
        &mut self,
        queue: &B::Queue,
        saved: &Saved<B>,
        x: impl IntoView<'x, B, T>,
        dy: impl IntoView<'dy, B, T>,
        dx: impl IntoViewMut<'dx, B, T>,
        parameters: ParamGradients<'_, B, P>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.check_trust(queue, Operation::Backward)?;
        let step = self.site(queue).during(Operation::Backward);
        let x = step.view(Tensor::X, x)?;
        let dy = step.view(Tensor::Dy, dy)?;
        let mut dx = step.view_mut(Tensor::Dx, dx)?;
        let gradients = Gradients::Apart { dy: dy.reborrow(), dx: dx.reborrow() };
        self.run_backward(queue, saved, &x, gradients, parameters)
    }

    /// Like [`backward`](Self::backward), with dx written over dy.
    pub fn backward_in_place<'x, 'dy, T>(
        &mut self,
        queue: &B::Queue,
        saved: &Saved<B>,
        x: impl IntoView<'x, B, T>,
        dy: impl IntoViewMut<'dy, B, T>,
        parameters: ParamGradients<'_, B, P>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.check_trust(queue, Operation::Backward)?;
        let step = self.site(queue).during(Operation::Backward);
        let x = step.view(Tensor::X, x)?;
        let mut dy = step.view_mut(Tensor::Dy, dy)?;
        self.run_backward(queue, saved, &x, Gradients::InPlace(dy.reborrow()), parameters)
    }

    /// Like [`backward`](Self::backward), without dx: for the first layer of a model. It is collective all the same.
    pub fn backward_parameters<'x, 'dy, T>(
        &mut self,
        queue: &B::Queue,
        saved: &Saved<B>,
        x: impl IntoView<'x, B, T>,
        dy: impl IntoView<'dy, B, T>,
        parameters: ParamGradients<'_, B, P>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.check_trust(queue, Operation::Backward)?;
        let step = self.site(queue).during(Operation::Backward);
        let x = step.view(Tensor::X, x)?;
        let dy = step.view(Tensor::Dy, dy)?;
        let gradients = Gradients::ParametersOnly { dy: dy.reborrow() };
        self.run_backward(queue, saved, &x, gradients, parameters)
    }

    fn run_backward<T>(
        &mut self,
        queue: &B::Queue,
        saved: &Saved<B>,
        x: &View<'_, B, T>,
        mut gradients: Gradients<'_, B, T>,
        mut parameters: ParamGradients<'_, B, P>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let site =
            Site { layer: &self.tag, backend: &self.backend, queue, communicator: &*self.communicator };
        let args = Backward {
            saved,
            x: x.reborrow(),
            gradients: gradients.reborrow(),
            weight: self.affine.as_ref().map(|affine| B::mem(&affine.weight)),
            d_weight: shorter_mut::<B, _>(parameters.weight.as_mut()),
            d_bias: shorter_mut::<B, _>(parameters.bias.as_mut()),
        };
        let result = backward(&site, &mut self.sums, args);
        self.note(false, result)
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
            let step = self.site(queue).during(Operation::SetMode);
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

    /// Puts the layer into another group: after a failure, or when the number of ranks changes.
    pub fn set_communicator(&mut self, communicator: Arc<dyn Communicator<B>>) {
        self.learn_of_failure();
        self.communicator = communicator;
    }

    /// The name that errors show.
    #[must_use]
    pub fn name(&self) -> &str {
        self.tag.name()
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

    /// A snapshot of parameters and running statistics. Waits for the device.
    pub fn state(&mut self, queue: &B::Queue) -> Result<State<P>, Error> {
        self.check_trust(queue, Operation::SaveState)?;
        let step = self.site(queue).during(Operation::SaveState);
        let get = |buffer: &B::Buffer<P>| step.device(Stage::Download, self.backend.download(queue, buffer));
        let mut state = State::default();
        if let Some(affine) = &self.affine {
            state.weight = Some(get(&affine.weight)?);
            state.bias = Some(get(&affine.bias)?);
        }
        if let Some(tracked) = &self.tracked {
            state.running_mean = Some(get(&tracked.mean)?);
            state.running_var = Some(get(&tracked.var)?);
            let count = step.device(Stage::Download, self.backend.download(queue, &tracked.count))?;
            state.num_batches_tracked = count.first().copied();
        }
        Ok(state)
    }

    /// Restores a snapshot: it has to hold what the layer has, no more and no less, one value per channel.
    ///
    /// The memory stays the same, so captured work and borrowed addresses stay valid. A state that does not fit changes
    /// nothing; if the device fails half-way, the layer refuses use until a state is loaded.
    pub fn load_state(&mut self, queue: &B::Queue, state: &State<P>) -> Result<(), Error> {
        let site =
            Site { layer: &self.tag, backend: &self.backend, queue, communicator: &*self.communicator };
        let step = site.during(Operation::LoadState);
        check_state(&step, &self.config, state)?;

        self.trust = Trust::Lost;
        let put = |buffer: &mut B::Buffer<P>, values: &Option<Vec<P>>| {
            let values = values.as_deref().unwrap_or_default();
            step.device(Stage::Upload, self.backend.write(queue, buffer, values))
        };
        if let Some(affine) = &mut self.affine {
            put(&mut affine.weight, &state.weight)?;
            put(&mut affine.bias, &state.bias)?;
        }
        if let Some(tracked) = &mut self.tracked {
            put(&mut tracked.mean, &state.running_mean)?;
            put(&mut tracked.var, &state.running_var)?;
            let count = state.num_batches_tracked.as_slice();
            step.device(Stage::Upload, self.backend.write(queue, &mut tracked.count, count))?;
        }
        self.trust = Trust::Clean;
        Ok(())
    }

    fn site<'a>(&'a self, queue: &'a B::Queue) -> Site<'a, B> {
        Site { layer: &self.tag, backend: &self.backend, queue, communicator: &*self.communicator }
    }

    /// Before an operation: has a collective since failed that the state depends on? The first to ask gets the
    /// communicator's error, later ones are told to restore.
    fn check_trust(&mut self, queue: &B::Queue, operation: Operation) -> Result<(), Error> {
        self.refuse_if_lost(&self.site(queue).during(operation))?;
        self.learn_of_failure();
        if self.trust == Trust::Lost {
            return self.site(queue).during(operation).group_works();
        }
        Ok(())
    }

    fn refuse_if_lost(&self, step: &Step<'_, B>) -> Result<(), Error> {
        if self.trust == Trust::Lost { Err(step.error(ErrorKind::Untrusted)) } else { Ok(()) }
    }

    fn learn_of_failure(&mut self) {
        if self.trust == Trust::Exposed && self.communicator.status().is_err_and(|error| error.late) {
            self.trust = Trust::Lost;
        }
    }

    /// After an operation: what it means for the state.
    fn note<R>(&mut self, updates: bool, result: Result<R, Error>) -> Result<R, Error> {
        match &result {
            Ok(_) if updates && self.trust == Trust::Clean => self.trust = Trust::Exposed,
            Err(error) if error.is_late() && self.trust == Trust::Exposed => self.trust = Trust::Lost,
            _ => {}
        }
        result
    }
}

/// As many copies of the value; a number of channels that no memory holds is an error, not an abort.
fn filled<P: Param>(value: P, channels: usize) -> Result<Vec<P>, ConfigError> {
    let mut values = Vec::new();
    values.try_reserve_exact(channels).map_err(|_| ConfigError::TooManyChannels(channels))?;
    values.resize(channels, value);
    Ok(values)
}

fn check_channels<B: Storage, T: Element>(
    step: &Step<'_, B>,
    expected: usize,
    x: &View<'_, B, T>,
) -> Result<(), Error> {
    let (shape, got) = (x.geometry().shape(), x.geometry().channels());
    if expected == got {
        return Ok(());
    }
    Err(step.error(ErrorKind::Channels { tensor: Tensor::X, shape, expected, got }))
}

fn check_state<B: Storage, P: Param>(
    step: &Step<'_, B>,
    config: &Config,
    state: &State<P>,
) -> Result<(), Error> {
    let check = |tensor, expected: bool, expected_len, got: Option<usize>| match got {
        Some(got) if expected => step.length(tensor, expected_len, got),
        None if !expected => Ok(()),
        _ => Err(step.error(ErrorKind::StateTensor { tensor, expected })),
    };
    let len = |values: &Option<Vec<P>>| values.as_ref().map(Vec::len);
    check(Tensor::Weight, config.affine, config.channels, len(&state.weight))?;
    check(Tensor::Bias, config.affine, config.channels, len(&state.bias))?;
    let tracked = config.track_running_stats;
    check(Tensor::RunningMean, tracked, config.channels, len(&state.running_mean))?;
    check(Tensor::RunningVar, tracked, config.channels, len(&state.running_var))?;
    check(Tensor::NumBatchesTracked, tracked, 1, state.num_batches_tracked.map(|_| 1))
}
