//! Whole passes: their arguments, where in them the ranks sum ([`Meeting`]), and the passes that are provided.

use crate::backend::Backend;
use crate::communicator::CommError;
use crate::error::Stage;
use crate::kernels::{
    Grad, GradInputArgs, GradSource, GradSumsArgs, Kernels, MomentsArgs, NormalizeArgs, RunningMut, Source,
};
use crate::scalar::Element;
use crate::view::{View, ViewMut, shorter, shorter_mut};

/// Where in a pass the sum over the ranks takes place.
pub enum Meeting<'a, B: Backend> {
    /// Nowhere: the statistics are this rank's.
    Alone,
    /// Between two kernels. The closure replaces this rank's sums in the workspace by the group's. The pass calls it exactly once; if it
    /// fails, the pass returns its error and enqueues nothing more.
    Between(&'a mut dyn FnMut(&mut B::Workspace) -> Result<(), CommError>),
    /// Inside the kernels, which read and write the memory of other ranks.
    Inside(B::Peers),
}

/// Arguments of [`Kernels::forward`].
pub struct ForwardArgs<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// The result, of the same geometry, in other memory than x.
    pub y: ViewMut<'a, B, T>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// The shift per channel; 0 where absent.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// Added to the variance under the root; finite and positive.
    pub eps: f64,
    /// Updated, if present.
    pub running: Option<RunningMut<'a, B, T::Param>>,
    /// Written: [`saved_len`](crate::backend::saved_len) words.
    pub saved: B::MemMut<'a, f64>,
    /// Scratch for this number of channels.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Kernels::backward`].
pub struct BackwardArgs<'a, B: Backend, T: Element> {
    /// The activations that forward read.
    pub x: View<'a, B, T>,
    /// The gradients of y and x.
    pub gradients: Gradients<'a, B, T>,
    /// What forward saved.
    pub saved: B::Mem<'a, f64>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// Written, if present: this rank's gradient of the weight.
    pub d_weight: Option<B::MemMut<'a, T::Param>>,
    /// Written, if present: this rank's gradient of the bias.
    pub d_bias: Option<B::MemMut<'a, T::Param>>,
    /// Scratch for this number of channels.
    pub workspace: &'a mut B::Workspace,
}

/// The gradients of y and x in a backward pass: where dy is, and where dx goes.
///
/// ```
/// use example_backend::Plain; // as syncbn_cpu::Cpu, memory is a slice
/// use syncbn_core::{Gradients, View, ViewMut};
///
/// let shape = [2, 3];
/// let (mut dy, mut dx) = ([1.0_f32; 6], [0.0_f32; 6]);
/// let view = View::<Plain, f32>::channels_first(&dy[..], &shape);
/// let apart = Gradients::out_of_place(view, ViewMut::channels_first(&mut dx[..], &shape))?;
/// let view = View::<Plain, f32>::channels_first(&dy[..], &shape);
/// let first_layer = Gradients::parameters_only(view)?;
/// let over_dy = Gradients::in_place(ViewMut::<Plain, f32>::channels_first(&mut dy[..], &shape))?;
/// # Ok::<(), syncbn_core::GradientsError>(())
/// ```
pub enum Gradients<'a, B: Backend, T: Element> {
    /// dx is written to memory of its own.
    OutOfPlace {
        /// The gradient of y: read.
        dy: View<'a, B, T>,
        /// The gradient of x: written.
        dx: ViewMut<'a, B, T>,
    },
    /// dx is written over dy.
    InPlace(ViewMut<'a, B, T>),
    /// dx is not needed, for instance because the layer is the first of its model.
    ParametersOnly {
        /// The gradient of y: read.
        dy: View<'a, B, T>,
    },
}

impl<B: Backend, T: Element> Gradients<'_, B, T> {
    /// The gradient of y, to be read.
    #[must_use]
    pub fn dy(&self) -> View<'_, B, T> {
        match self {
            Self::OutOfPlace { dy, .. } | Self::ParametersOnly { dy } => dy.reborrow(),
            Self::InPlace(dy) => dy.as_view(),
        }
    }

    /// The same, borrowed for a shorter time.
    pub(crate) fn reborrow(&mut self) -> Gradients<'_, B, T> {
        match self {
            Self::OutOfPlace { dy, dx } => Gradients::OutOfPlace { dy: dy.reborrow(), dx: dx.reborrow() },
            Self::InPlace(dy) => Gradients::InPlace(dy.reborrow()),
            Self::ParametersOnly { dy } => Gradients::ParametersOnly { dy: dy.reborrow() },
        }
    }

    /// The same for [`Kernels::grad_input`], if dx is wanted.
    pub fn as_grad(&mut self) -> Option<Grad<'_, B, T>> {
        match self {
            Self::OutOfPlace { dy, dx } => Some(Grad::OutOfPlace { dy: dy.reborrow(), dx: dx.reborrow() }),
            Self::InPlace(dy) => Some(Grad::InPlace(dy.reborrow())),
            Self::ParametersOnly { .. } => None,
        }
    }
}

/// Which step of a pass failed, and why.
#[derive(Debug)]
#[non_exhaustive]
pub enum PassError<E> {
    /// The device failed.
    Backend {
        /// The step.
        stage: Stage,
        /// Its error.
        source: E,
    },
    /// The sum over the ranks failed.
    Sum(CommError),
    /// The backend has no kernels that sum by themselves ([`Meeting::Inside`]). Nothing was enqueued.
    NoPeers,
}

impl<E> PassError<E> {
    /// For `map_err`: the device failed in this step.
    pub fn at(stage: Stage) -> impl FnOnce(E) -> Self {
        move |source| Self::Backend { stage, source }
    }
}

/// The sum between two kernels, or none.
type Between<'a, B> = Option<&'a mut dyn FnMut(&mut <B as Backend>::Workspace) -> Result<(), CommError>>;

fn between<B: Backend>(meeting: Meeting<'_, B>) -> Result<Between<'_, B>, PassError<B::Error>> {
    match meeting {
        Meeting::Alone => Ok(None),
        Meeting::Between(sum) => Ok(Some(sum)),
        Meeting::Inside(_) => Err(PassError::NoPeers),
    }
}

/// The provided forward pass: [`Kernels::moments`], the sum, [`Kernels::normalize`].
///
/// # Errors
///
/// The step that failed; [`PassError::NoPeers`] for [`Meeting::Inside`], before any work.
pub fn forward_by_kernels<B: Kernels<T>, T: Element>(
    backend: &B,
    queue: &B::Queue,
    args: ForwardArgs<'_, B, T>,
    meeting: Meeting<'_, B>,
) -> Result<(), PassError<B::Error>> {
    let sum = between(meeting)?;
    let ForwardArgs { x, y, weight, bias, eps, running, saved, workspace } = args;
    let moments = MomentsArgs { x: x.reborrow(), workspace: &mut *workspace };
    backend.moments(queue, moments).map_err(PassError::at(Stage::Moments))?;
    let group = sum.is_some();
    if let Some(sum) = sum {
        sum(workspace).map_err(PassError::Sum)?;
    }
    let source = Source::Batch { workspace, group, saved, running };
    let args = NormalizeArgs { x, y, source, weight, bias, eps };
    backend.normalize(queue, args).map_err(PassError::at(Stage::Normalize))
}

/// The provided backward pass: [`Kernels::grad_sums`], the sum, [`Kernels::grad_input`] if dx is wanted.
///
/// # Errors
///
/// The step that failed; [`PassError::NoPeers`] for [`Meeting::Inside`], before any work.
pub fn backward_by_kernels<B: Kernels<T>, T: Element>(
    backend: &B,
    queue: &B::Queue,
    args: BackwardArgs<'_, B, T>,
    meeting: Meeting<'_, B>,
) -> Result<(), PassError<B::Error>> {
    let sum = between(meeting)?;
    let BackwardArgs { x, mut gradients, saved, weight, mut d_weight, mut d_bias, workspace } = args;
    let sums = GradSumsArgs {
        x: x.reborrow(),
        dy: gradients.dy(),
        saved: B::reborrow(&saved),
        d_weight: shorter_mut::<B, _>(d_weight.as_mut()),
        d_bias: shorter_mut::<B, _>(d_bias.as_mut()),
        workspace: &mut *workspace,
    };
    backend.grad_sums(queue, sums).map_err(PassError::at(Stage::GradSums))?;
    if let Some(sum) = sum {
        sum(workspace).map_err(PassError::Sum)?;
    }
    let Some(grad) = gradients.as_grad() else { return Ok(()) };
    let source = GradSource::Batch { workspace };
    let weight = shorter::<B, _>(weight.as_ref());
    let args = GradInputArgs { x: x.reborrow(), grad, saved: B::reborrow(&saved), source, weight };
    backend.grad_input(queue, args).map_err(PassError::at(Stage::GradInput))
}
