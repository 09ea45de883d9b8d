//! The backward pass over borrowed memory: what a layer does, and what an adapter calls whose framework owns the
//! parameters.
//!
//! Deliberately not here: any reduction of the parameters' gradients over the ranks. Data-parallel trainers reduce the
//! gradients of all parameters themselves, so `d_weight` and `d_bias` stay this rank's.

use crate::backend::{Backend, Grad, GradInputArgs, GradSumsArgs, Kernels, Pass};
use crate::error::{Error, Operation, Stage, Tensor};
use crate::forward::{Saved, Scope};
use crate::geometry::Geometry;
use crate::scalar::Element;
use crate::site::{Site, Step, Sums};
use crate::view::{View, ViewMut, shorter, shorter_mut};

/// The gradients of y and x in a backward pass.
pub enum Gradients<'a, B: Backend, T: Element> {
    /// dx is written to memory of its own.
    Apart {
        /// The gradient of y: read.
        dy: View<'a, B, T>,
        /// The gradient of x: written.
        dx: ViewMut<'a, B, T>,
    },
    /// dx is written over dy.
    InPlace(ViewMut<'a, B, T>),
    /// dx is not needed: the layer is the first of its model.
    ParametersOnly {
        /// The gradient of y: read.
        dy: View<'a, B, T>,
    },
}

impl<B: Backend, T: Element> Gradients<'_, B, T> {
    fn check(&self, step: &Step<'_, B>, expected: &Geometry) -> Result<(), Error> {
        step.same_geometry(Tensor::Dy, expected, self.dy().geometry())?;
        match self {
            Self::Apart { dx, .. } => step.same_geometry(Tensor::Dx, expected, dx.geometry()),
            Self::InPlace(_) | Self::ParametersOnly { .. } => Ok(()),
        }
    }

    fn dy(&self) -> View<'_, B, T> {
        match self {
            Self::Apart { dy, .. } | Self::ParametersOnly { dy } => dy.reborrow(),
            Self::InPlace(dy) => dy.as_view(),
        }
    }

    /// The same, borrowed for a shorter time.
    pub(crate) fn reborrow(&mut self) -> Gradients<'_, B, T> {
        match self {
            Self::Apart { dy, dx } => Gradients::Apart { dy: dy.reborrow(), dx: dx.reborrow() },
            Self::InPlace(dy) => Gradients::InPlace(dy.reborrow()),
            Self::ParametersOnly { dy } => Gradients::ParametersOnly { dy: dy.reborrow() },
        }
    }

    /// What the kernel that writes dx takes, if dx is wanted.
    fn as_args(&mut self) -> Option<Grad<'_, B, T>> {
        match self {
            Self::Apart { dy, dx } => Some(Grad::Apart { dy: dy.reborrow(), dx: dx.reborrow() }),
            Self::InPlace(dy) => Some(Grad::InPlace(dy.reborrow())),
            Self::ParametersOnly { .. } => None,
        }
    }
}

/// The arguments of [`backward`].
pub struct Backward<'a, B: Backend, T: Element> {
    /// What the forward pass returned.
    pub saved: &'a Saved<B>,
    /// The activations that the forward pass read.
    pub x: View<'a, B, T>,
    /// The gradients of y and x.
    pub gradients: Gradients<'a, B, T>,
    /// The scale that the forward pass used.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// To be written, if present: one gradient per channel, over this rank's elements.
    pub d_weight: Option<B::MemMut<'a, T::Param>>,
    /// To be written, if present: one gradient per channel, over this rank's elements.
    pub d_bias: Option<B::MemMut<'a, T::Param>>,
}

/// The gradients of x, weight and bias (Ioffe and Szegedy 2015, section 3, over the group's batch).
///
/// `dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M)` with the group's sums, `d_bias = sum_dy` and
/// `d_weight = sum_dy_xmu invstd` with this rank's. If the forward pass was the group's, every rank has to call this, in the
/// same order, whether or not it needs dx. With frozen statistics `dx = weight invstd dy`.
///
/// Gradients are overwritten, not added to. Returns before the device has done the work, unless the communicator is
/// [`Staged`](crate::Staged). If it fails, what was to be written is unspecified; nothing else is touched.
pub fn backward<B: Kernels<T>, T: Element>(
    site: &Site<'_, B>,
    sums: &mut Sums<B>,
    args: Backward<'_, B, T>,
) -> Result<(), Error> {
    let step = site.during(Operation::Backward);
    check(&step, &args)?;
    let Backward { saved, x, mut gradients, weight, mut d_weight, mut d_bias } = args;
    step.length(Tensor::Sums, saved.geometry.channels(), sums.channels)?;
    let needs_sums = match saved.scope {
        Scope::Group => true,
        Scope::Local => !matches!(gradients, Gradients::ParametersOnly { .. }),
        Scope::Frozen => false,
    };

    if saved.scope == Scope::Group {
        step.group_works()?;
    }
    if needs_sums || d_weight.is_some() || d_bias.is_some() {
        let args = GradSumsArgs {
            x: x.reborrow(),
            dy: gradients.dy(),
            saved: &saved.inner,
            d_weight: shorter_mut::<B, _>(d_weight.as_mut()),
            d_bias: shorter_mut::<B, _>(d_bias.as_mut()),
            out: &mut sums.inner,
        };
        step.device(Stage::GradSums, site.backend.grad_sums(site.queue, args))?;
    }
    if saved.scope == Scope::Group {
        step.all_reduce(Pass::Backward, saved.sequence, sums)?;
    }
    if let Some(grad) = gradients.as_args() {
        let args = GradInputArgs {
            x: x.reborrow(),
            grad,
            saved: &saved.inner,
            sums: needs_sums.then_some(&sums.inner),
            weight: shorter::<B, _>(weight.as_ref()),
        };
        step.device(Stage::GradInput, site.backend.grad_input(site.queue, args))?;
    }
    step.device(Stage::Flush, site.backend.flush(site.queue))
}

fn check<B: Backend, T: Element>(step: &Step<'_, B>, args: &Backward<'_, B, T>) -> Result<(), Error> {
    let saved = args.saved;
    saved.check_owner(step)?;
    step.same_geometry(Tensor::X, &saved.geometry, args.x.geometry())?;
    args.gradients.check(step, &saved.geometry)?;
    let channels = saved.geometry.channels();
    step.mem_length(Tensor::Weight, channels, args.weight.as_ref())?;
    step.mem_mut_length(Tensor::DWeight, channels, args.d_weight.as_ref())?;
    step.mem_mut_length(Tensor::DBias, channels, args.d_bias.as_ref())
}
