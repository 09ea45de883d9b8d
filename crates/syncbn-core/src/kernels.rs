//! The four kernels, and their arguments.

use crate::backend::Backend;
use crate::meeting::{self, BackwardArgs, ForwardArgs, Meeting, PassError};
use crate::scalar::{Element, Scalar};
use crate::statistics::NonFinite;
use crate::view::{View, ViewMut};

/// The four kernels, for activations of one type. Which types a backend has is known at compile time.
///
/// The two whole passes are provided: two kernels with the sum over the ranks between them. A backend may take them whole.
pub trait Kernels<T: Element>: Backend {
    /// Compiles and allocates whatever tensors of this geometry need, so that later calls find nothing left to do.
    /// A backend that has nothing to prepare leaves this as it is.
    fn prepare(&self, queue: &Self::Queue, geometry: &crate::Geometry) -> Result<(), Self::Error> {
        let _ = (queue, geometry);
        Ok(())
    }

    /// Per channel, over this rank's elements: the count m, the mean, and M2 = sum (x - mean)^2.
    ///
    /// Reads `x` once. Must be as accurate at |mean|/std = 1e4 as at 0: accumulate in `f64`, shifted by a sample of the channel
    /// where the activations are `f64` themselves, in chains merged by
    /// [`Moments::merge`](crate::statistics::Moments::merge).
    fn moments(&self, queue: &Self::Queue, args: MomentsArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// `y = (x - mean) invstd weight + bias`, with the statistics of [`NormalizeArgs::source`], which also says what
    /// else is to be written: the saved statistics and the running ones, once per call and even when `x` is empty.
    fn normalize(&self, queue: &Self::Queue, args: NormalizeArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// Per channel, over this rank's elements: `sum_dy` and `sum_dy_xmu = sum dy (x - mean)`, both to the workspace, and
    /// `d_bias = sum_dy`, `d_weight = sum_dy_xmu invstd` where asked for. Reads `x` and `dy` once.
    fn grad_sums(&self, queue: &Self::Queue, args: GradSumsArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// `dx = weight invstd (dy - sum_dy / M - (x - mean) invstd^2 sum_dy_xmu / M)`, M being the saved count; with frozen
    /// statistics `dx = weight invstd dy`, and `x` is not looked at. Reads `x` and `dy` once.
    fn grad_input(&self, queue: &Self::Queue, args: GradInputArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// A forward pass with batch statistics: [`moments`](Self::moments), the sum over the ranks as `meeting` says, and
    /// [`normalize`](Self::normalize).
    ///
    /// A backend that overrides it handles every [`Meeting`], or hands those that it does not take whole to
    /// [`forward_by_kernels`](meeting::forward_by_kernels), which is what is provided. Running statistics are written after the
    /// sum has succeeded, or not at all.
    fn forward(
        &self,
        queue: &Self::Queue,
        args: ForwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Self::Error>> {
        meeting::forward_by_kernels(self, queue, args, meeting)
    }

    /// A backward pass through batch statistics: [`grad_sums`](Self::grad_sums), the sum over the ranks as `meeting` says, and
    /// [`grad_input`](Self::grad_input) where dx is wanted. The sum is the ranks' business whether or not this one wants dx.
    ///
    /// Overriding is as for [`forward`](Self::forward), with [`backward_by_kernels`](meeting::backward_by_kernels).
    fn backward(
        &self,
        queue: &Self::Queue,
        args: BackwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Self::Error>> {
        meeting::backward_by_kernels(self, queue, args, meeting)
    }
}

/// Arguments of [`Kernels::moments`].
pub struct MomentsArgs<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// To be written: this rank's moments.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Kernels::normalize`].
pub struct NormalizeArgs<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// The result, of the same geometry; never the same memory as `x`.
    pub y: ViewMut<'a, B, T>,
    /// The statistics to use, and what to update.
    pub source: Source<'a, B, T::Param>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// The shift per channel; 0 where absent.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// Added to the variance under the root; finite and positive.
    pub eps: f64,
}

/// Where [`Kernels::normalize`] takes mean and variance from.
pub enum Source<'a, B: Backend, P: Scalar> {
    /// The sums of a batch, finalised as [`statistics::Moments`](crate::statistics::Moments) describes.
    Batch {
        /// What [`Kernels::moments`] wrote, and the communicator summed if `group` is set.
        workspace: &'a B::Workspace,
        /// Set: the sums are the group's, [`Batch::from_sums`](crate::statistics::Batch::from_sums). Not set: this rank's alone,
        /// `var = M2/m`.
        group: bool,
        /// To be written: [`saved_len`](crate::backend::saved_len) words. With M = 0: zeros.
        saved: B::MemMut<'a, f64>,
        /// To be updated, if present.
        running: Option<RunningMut<'a, B, P>>,
    },
    /// Fixed statistics, which count no elements.
    Frozen {
        /// The mean per channel.
        mean: B::Mem<'a, P>,
        /// The variance per channel.
        var: B::Mem<'a, P>,
        /// To be written: [`saved_len`](crate::backend::saved_len) words, of which the count is 0.
        saved: B::MemMut<'a, f64>,
    },
    /// What an earlier forward pass saved.
    Saved {
        /// To be used.
        saved: B::Mem<'a, f64>,
        /// To be updated from the saved statistics, if present.
        running: Option<RunningMut<'a, B, P>>,
    },
}

/// Running statistics in borrowed memory, to be updated by [`statistics::Running`](crate::statistics::Running)'s rule.
pub struct RunningMut<'a, B: Backend, P: Scalar> {
    /// The running mean per channel.
    pub mean: B::MemMut<'a, P>,
    /// The running unbiased variance per channel.
    pub var: B::MemMut<'a, P>,
    /// How many batches were seen: one number. It and the channels are to be updated together or not at all.
    pub num_batches_tracked: B::MemMut<'a, i64>,
    /// The weight of the newest batch, 0..=1; `None`: the cumulative average, 1 / `num_batches_tracked`.
    pub momentum: Option<f64>,
    /// What is done in a channel whose batch statistics are not finite.
    pub non_finite: NonFinite,
}

impl<B: Backend, P: Scalar> RunningMut<'_, B, P> {
    /// The same statistics, borrowed for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> RunningMut<'_, B, P> {
        RunningMut {
            mean: B::reborrow_mut(&mut self.mean),
            var: B::reborrow_mut(&mut self.var),
            num_batches_tracked: B::reborrow_mut(&mut self.num_batches_tracked),
            momentum: self.momentum,
            non_finite: self.non_finite,
        }
    }
}

/// Arguments of [`Kernels::grad_sums`].
pub struct GradSumsArgs<'a, B: Backend, T: Element> {
    /// The activations that forward read.
    pub x: View<'a, B, T>,
    /// The gradient of y, of the same geometry.
    pub dy: View<'a, B, T>,
    /// What forward saved.
    pub saved: B::Mem<'a, f64>,
    /// To be written, if present: this rank's gradient of the weight.
    pub d_weight: Option<B::MemMut<'a, T::Param>>,
    /// To be written, if present: this rank's gradient of the bias.
    pub d_bias: Option<B::MemMut<'a, T::Param>>,
    /// To be written: this rank's sums.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Kernels::grad_input`].
pub struct GradInputArgs<'a, B: Backend, T: Element> {
    /// The activations that forward read.
    pub x: View<'a, B, T>,
    /// The gradients, of the same geometry.
    pub grad: Grad<'a, B, T>,
    /// What forward saved.
    pub saved: B::Mem<'a, f64>,
    /// Where the statistics came from, and with them the sums.
    pub source: GradSource<'a, B>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
}

/// What the statistics of the forward pass depended on, for [`Kernels::grad_input`].
pub enum GradSource<'a, B: Backend> {
    /// The batch: the sums over the elements that [`Kernels::grad_sums`] wrote, and the communicator summed.
    Batch {
        /// The group's sums.
        workspace: &'a B::Workspace,
    },
    /// Nothing: the statistics were given.
    Frozen,
}

/// The gradients that [`Kernels::grad_input`] reads and writes.
pub enum Grad<'a, B: Backend, T: Element> {
    /// dx goes to memory of its own.
    OutOfPlace {
        /// The gradient of y.
        dy: View<'a, B, T>,
        /// The gradient of x.
        dx: ViewMut<'a, B, T>,
    },
    /// dx overwrites dy, as the caller asked.
    InPlace(ViewMut<'a, B, T>),
}
