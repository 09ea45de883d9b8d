//! The layer's passes: which statistics, which memory, and the names that errors show.
//!
//! Deliberately not here: the steps themselves, which are in [`forward`](mod@crate::forward) and
//! [`backward`](mod@crate::backward).

use crate::backend::{Kernels, RunningMut, Storage};
use crate::backward::{Backward, Gradients, backward};
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::forward::{Forward, Recompute, Saved, Statistics, forward, recompute};
use crate::geometry::Geometry;
use crate::scalar::{Element, Param};
use crate::site::Step;
use crate::view::{IntoView, IntoViewMut, View, shorter_mut};

use super::SyncBatchNorm;

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
    /// Lets the backend compile and allocate whatever activations `T` of this geometry need.
    pub fn prepare<T>(&self, queue: &B::Queue, geometry: &Geometry) -> Result<(), Error>
    where
        B: Kernels<T>,
        T: Element<Param = P>,
    {
        let step = self.place.site(queue).during(Operation::Prepare);
        step.device(Stage::Preparation, self.place.backend.prepare(queue, geometry))
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
        let site = self.place.site(queue);
        let step = site.during(Operation::Forward);
        let mut y = step.view_mut(Tensor::Y, y)?;
        let x = step.view(Tensor::X, x)?;
        check_channels(&step, self.config.channels, &x)?;

        let momentum = self.config.momentum;
        let statistics = match &mut self.tracked {
            Some(tracked) if group => Statistics::Group {
                running: Some(RunningMut {
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
        let affine = self.affine.as_ref();
        let args = Forward {
            x: x.reborrow(),
            y: y.reborrow(),
            statistics,
            weight: affine.map(|affine| B::mem(&affine.weight)),
            bias: affine.map(|affine| B::mem(&affine.bias)),
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
        let site = self.place.site(queue);
        let step = site.during(Operation::Recompute);
        self.refuse_if_lost(&step)?;
        let mut y = step.view_mut(Tensor::Y, y)?;
        let x = step.view(Tensor::X, x)?;
        let args = Recompute {
            saved,
            x: x.reborrow(),
            y: y.reborrow(),
            weight: self.weight().map(B::mem),
            bias: self.bias().map(B::mem),
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
        let step = self.place.site(queue).during(Operation::Backward);
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
        let step = self.place.site(queue).during(Operation::Backward);
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
        let step = self.place.site(queue).during(Operation::Backward);
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
        let site = self.place.site(queue);
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
