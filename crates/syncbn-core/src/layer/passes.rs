//! The layer's passes: they choose statistics and memory, and call [`FunctionalBatchNorm`](crate::FunctionalBatchNorm).

use crate::backend::{Backend, Storage};
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::functional::{Backward, Forward, Recompute, Statistics};
use crate::geometry::Geometry;
use crate::kernels::{Kernels, RunningMut};
use crate::meeting::Gradients;
use crate::saved::{SavedStatistics, Scope};
use crate::scalar::{Element, Param};
use crate::view::{GradientsError, IntoView, IntoViewMut, shorter_mut};

use super::SyncBatchNorm;

/// Memory for the gradients of weight and bias: C values each, over this rank's elements, for the trainer to reduce with all others.
/// What is `None` is not computed.
pub struct ParamGradients<'a, B: Backend, P: Param> {
    /// The gradient of the weight.
    pub weight: Option<B::MemMut<'a, P>>,
    /// The gradient of the bias.
    pub bias: Option<B::MemMut<'a, P>>,
}

impl<B: Backend, P: Param> Default for ParamGradients<'_, B, P> {
    fn default() -> Self {
        Self { weight: None, bias: None }
    }
}

impl<B: Storage, P: Param> SyncBatchNorm<B, P> {
    /// Compiles, loads and allocates whatever passes over activations `T` of this geometry need, alone and in the group. Optional: without
    /// it the first pass does so, and takes longer. On some devices it then also waits for what runs there.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Backend`]; [`ErrorKind::Communicator`] if the group's peers meet on another device.
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.inner.prepare::<T>(queue, geometry)
    }

    /// `y = (x - mean) / sqrt(var + eps) weight + bias` (S. Ioffe, C. Szegedy, "Batch Normalization", 2015, algorithm 1).
    ///
    /// | mode | mean and var | running statistics | collective |
    /// |---|---|---|---|
    /// | training | of the group's batch | updated | yes |
    /// | evaluation, or frozen | the running ones | unchanged | no |
    /// | the same, `track_running_stats` off | of this rank's batch | none | no |
    ///
    /// The call returns before the device has done the work, except that a communicator in host memory waits for the sums. Its result is
    /// for [`backward`](Self::backward) and [`recompute`](Self::recompute); drop it if neither follows.
    ///
    /// # Shapes
    ///
    /// x: (N, C, *spatial) in either layout, C as in [`Config::channels`](crate::Config::channels). y: shape and layout of x, other
    /// memory.
    ///
    /// # Errors
    ///
    /// Before any work, nothing is written and no rank has been asked:
    /// - [`ErrorKind::Shape`]: x or y is not a view; [`ErrorKind::Channels`], [`ErrorKind::Geometry`]: x does not fit the layer, or y
    ///   not x;
    /// - [`ErrorKind::OneElement`]: a rank alone has one element per channel, which has no variance;
    /// - [`ErrorKind::Untrusted`], [`ErrorKind::HalfLoaded`]: an earlier failure may have spoilt the state; load one;
    /// - [`ErrorKind::Communicator`]: the group has failed earlier.
    ///
    /// After work has begun, y is unspecified, and parameters and running statistics are unchanged unless the error is late
    /// ([`CommError::late`](crate::CommError::late)), after which the layer refuses use until [`load_state`](Self::load_state):
    /// - [`ErrorKind::Communicator`]: the sum failed. Unless its kind is [`Unsent`](crate::CommErrorKind::Unsent), the group is
    ///   poisoned; go on in a new group ([`set_group`](Self::set_group));
    /// - [`ErrorKind::Backend`]: the device failed. If that was after the sum, the group is poisoned, so that the other ranks hear of it;
    /// - [`ErrorKind::NoPeers`], [`ErrorKind::SumLeftOut`]: backend and communicator do not fit each other, or the backend is wrong.
    pub fn forward<'x, 'y, T>(
        &mut self,
        queue: &B::Queue,
        x: impl IntoView<'x, B, T>,
        y: impl IntoViewMut<'y, B, T>,
    ) -> Result<SavedStatistics<B>, Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let group = self.mode.training && !self.mode.frozen;
        self.check_trust(Operation::Forward, group)?;
        let context = self.inner.context(Operation::Forward);
        let x = context.view(Tensor::X, x)?;
        let mut y = context.view_mut(Tensor::Y, y)?;
        context.channels(self.config().channels, x.geometry())?;

        let memory = self.inner.backend().saved(queue, self.config().channels);
        let mut memory = context.device(Stage::Allocation, memory)?;
        let (momentum, non_finite) = (self.config().momentum, self.config().non_finite);
        let updates = self.inner.updates_running;
        let statistics = match &mut self.tracked {
            Some(tracked) if group && updates => Statistics::Group {
                running: Some(RunningMut {
                    mean: B::mem_mut(&mut tracked.mean),
                    var: B::mem_mut(&mut tracked.var),
                    num_batches_tracked: B::mem_mut(&mut tracked.count),
                    momentum,
                    non_finite,
                }),
            },
            _ if group => Statistics::Group { running: None },
            Some(tracked) => Statistics::Frozen { mean: B::mem(&tracked.mean), var: B::mem(&tracked.var) },
            None => Statistics::Local,
        };
        let affine = self.affine.as_ref();
        let (weight, bias) =
            (affine.map(|affine| B::mem(&affine.weight)), affine.map(|affine| B::mem(&affine.bias)));
        let saved = B::saved_mem_mut(&mut memory);
        let args = Forward::new(x.reborrow(), y.reborrow(), statistics, saved).affine(weight, bias);
        let result = self.inner.forward(queue, args);
        let mut token = self.note(group, result)?;
        token.parameters = self.parameters;
        Ok(SavedStatistics::from_parts(token, memory))
    }

    /// Computes y again from the saved statistics, for activation checkpointing: the same bits, if x has the same bits. No rank is asked
    /// and no running statistics are updated.
    ///
    /// # Shapes
    ///
    /// x and y as for [`forward`](Self::forward).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ForeignSaved`], [`ErrorKind::OtherGroup`], [`ErrorKind::ParametersChanged`]: `saved` is another layer's, another
    /// group's, or older than a change of the parameters; [`ErrorKind::Shape`], [`ErrorKind::Geometry`]; [`ErrorKind::Untrusted`],
    /// [`ErrorKind::HalfLoaded`]; [`ErrorKind::Backend`]. y is then unspecified, and the state unchanged.
    pub fn recompute<'x, 'y, T>(
        &self,
        queue: &B::Queue,
        saved: &SavedStatistics<B>,
        x: impl IntoView<'x, B, T>,
        y: impl IntoViewMut<'y, B, T>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.refuse_if_lost(Operation::Recompute)?;
        self.check_saved(Operation::Recompute, saved)?;
        let context = self.inner.context(Operation::Recompute);
        let x = context.view(Tensor::X, x)?;
        let mut y = context.view_mut(Tensor::Y, y)?;
        let args = Recompute::new(saved.borrow(), x.reborrow(), y.reborrow())
            .affine(self.weight().map(B::mem), self.bias().map(B::mem));
        self.inner.recompute(queue, args)
    }

    /// The gradients of x, weight and bias (Ioffe and Szegedy 2015, section 3).
    ///
    /// ```text
    /// d_bias   = sum_dy                 over this rank's elements
    /// d_weight = sum_dy_xmu invstd      over this rank's elements, with sum_dy_xmu = sum dy (x - mean)
    /// dx       = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M)      with the group's sums and count M
    /// ```
    ///
    /// `gradients` says where dy is and where dx goes: [`Gradients::out_of_place`], [`Gradients::in_place`], or
    /// [`Gradients::parameters_only`]. All gradients are overwritten, not added to. After a forward pass in training mode the call is
    /// collective, even where a rank needs no dx. After evaluation, or while frozen, `dx = weight invstd dy` and no rank is asked.
    ///
    /// # Shapes
    ///
    /// x, dy, dx: shape and layout of the forward pass's x. `parameters`: C values each.
    ///
    /// # Errors
    ///
    /// Before any work, nothing is written and no rank has been asked:
    /// - [`ErrorKind::ForeignSaved`], [`ErrorKind::OtherGroup`], [`ErrorKind::ParametersChanged`]: `saved` is another layer's, another
    ///   group's, or older than a change of the parameters;
    /// - [`ErrorKind::Shape`], [`ErrorKind::Geometry`], [`ErrorKind::Length`]: a tensor does not fit;
    /// - [`ErrorKind::Untrusted`], [`ErrorKind::HalfLoaded`]: load a state first;
    /// - [`ErrorKind::Communicator`]: the group has failed earlier.
    ///
    /// After work has begun, all gradients are unspecified, and the state is unchanged: [`ErrorKind::Communicator`],
    /// [`ErrorKind::Backend`], [`ErrorKind::NoPeers`], [`ErrorKind::SumLeftOut`], as for [`forward`](Self::forward).
    pub fn backward<'x, 'g, T>(
        &mut self,
        queue: &B::Queue,
        saved: &SavedStatistics<B>,
        x: impl IntoView<'x, B, T>,
        gradients: Result<Gradients<'g, B, T>, GradientsError>,
        mut parameters: ParamGradients<'_, B, P>,
    ) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.check_trust(Operation::Backward, saved.scope() == Scope::Group)?;
        self.check_saved(Operation::Backward, saved)?;
        let context = self.inner.context(Operation::Backward);
        let x = context.view(Tensor::X, x)?;
        let mut gradients = gradients.map_err(|GradientsError { tensor, source }| {
            context.error(ErrorKind::Shape { tensor, source })
        })?;
        let weight = self.affine.as_ref().map(|affine| B::mem(&affine.weight));
        let args =
            Backward::new(saved.borrow(), x.reborrow(), gradients.reborrow()).weight(weight).parameters(
                shorter_mut::<B, _>(parameters.weight.as_mut()),
                shorter_mut::<B, _>(parameters.bias.as_mut()),
            );
        let result = self.inner.backward(queue, args);
        self.note(false, result)
    }

    /// Refuses statistics of another layer, and those from before the parameters were borrowed to be changed.
    fn check_saved(&self, operation: Operation, saved: &SavedStatistics<B>) -> Result<(), Error> {
        let context = self.inner.context(operation);
        self.inner.check_owner(&context, saved.token())?;
        if saved.token().parameters == self.parameters {
            return Ok(());
        }
        Err(context.error(ErrorKind::ParametersChanged))
    }
}
