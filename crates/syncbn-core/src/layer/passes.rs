//! The layer's passes: which statistics, which memory, and the names that errors show.

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

/// Where the parameters' gradients of a backward pass are written: one value per channel, over this rank's elements.
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
    /// Lets the backend compile and allocate whatever activations `T` of this geometry need.
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        self.inner.prepare::<T>(queue, geometry)
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
        let updates = self.mode.updates_running;
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

    /// The forward pass again, for activation checkpointing: `x` as it was when `saved` was made, the same bits of `y`. No
    /// rank is asked and nothing is updated.
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

    /// The gradients of a forward pass: of x as `gradients` says ([`Gradients::out_of_place`], [`Gradients::in_place`],
    /// [`Gradients::parameters_only`]), of the parameters to `parameters`. `x` as the forward pass read it, `dy` and `dx` of the
    /// same shape and layout. All are overwritten, not added to.
    ///
    /// If the forward pass was the group's, it is collective, whatever is wanted.
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

    /// Refuses what another layer has saved, or this one before its parameters were lent to be changed.
    fn check_saved(&self, operation: Operation, saved: &SavedStatistics<B>) -> Result<(), Error> {
        let context = self.inner.context(operation);
        self.inner.check_owner(&context, saved.token())?;
        if saved.token().parameters == self.parameters {
            return Ok(());
        }
        Err(context.error(ErrorKind::ParametersChanged))
    }
}
