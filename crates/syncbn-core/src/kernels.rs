//! The four kernels and their arguments. [`backend`](crate::backend) has the contract that they keep.

use crate::backend::Backend;
use crate::meeting::{self, BackwardArgs, ForwardArgs, Meeting, PassError};
use crate::scalar::{Element, Scalar};
use crate::statistics::NonFinite;
use crate::view::{View, ViewMut};

/// The four kernels, for activations of type `T`. A backend implements it for each type that it has.
///
/// Core has checked all arguments, and a kernel does not wait: [the contract](crate::backend) says what else holds. The formulas of
/// one channel are in [`statistics`](crate::statistics). Whole passes are provided; a backend may override them.
///
/// # Errors
///
/// Kernels fail with [`Backend::Error`]. A kernel that fails has enqueued nothing, and has written neither running statistics nor saved
/// statistics.
#[allow(clippy::missing_errors_doc, reason = "what the trait says holds for each kernel")]
pub trait Kernels<T: Element>: Backend {
    /// Compiles and allocates whatever kernels need for tensors of this geometry; with `inside`, also for passes that meet their peers
    /// inside the kernels ([`Meeting::Inside`]). Users may call it before the first pass. What is provided does nothing.
    fn prepare(
        &self,
        queue: &Self::Queue,
        geometry: &crate::Geometry,
        inside: bool,
    ) -> Result<(), Self::Error> {
        let _ = (queue, geometry, inside);
        Ok(())
    }

    /// Per channel, over this rank's elements: the count m, the mean, and `M2 = sum (x - mean)^2`, to the workspace.
    ///
    /// Reads x once. Has to be as accurate at |mean|/std = 1e4 as at 0. Ways to get there: sums in `f64`; or sums in `f32` of values
    /// minus one sample of the channel, over at most 64 elements or so, merged with [`Moments::merge`](crate::statistics::Moments::merge)
    /// in `f64`. If activations are `f64`, sums in `f64` of values minus a sample. An empty x gives zeros.
    fn moments(&self, queue: &Self::Queue, args: MomentsArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// `y = (x - mean) invstd weight + bias`, with the statistics of [`NormalizeArgs::source`].
    ///
    /// Also writes the saved statistics and the running statistics that [`Source`] has, once a call, even if x is empty.
    fn normalize(&self, queue: &Self::Queue, args: NormalizeArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// Per channel, over this rank's elements: `sum_dy` and `sum_dy_xmu = sum dy (x - mean)`, to the workspace; `d_bias = sum_dy` and
    /// `d_weight = sum_dy_xmu invstd`, if they are present. Reads x and dy once.
    fn grad_sums(&self, queue: &Self::Queue, args: GradSumsArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// `dx = weight invstd (dy - sum_dy / M - (x - mean) invstd^2 sum_dy_xmu / M)`, with the group's sums from the workspace and the saved
    /// count M. With frozen statistics `dx = weight invstd dy`, and x is not read. Reads x and dy once.
    fn grad_input(&self, queue: &Self::Queue, args: GradInputArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// A whole forward pass with batch statistics: [`moments`](Self::moments), the sum over the ranks as `meeting` says,
    /// [`normalize`](Self::normalize).
    ///
    /// Provided, by [`forward_by_kernels`](meeting::forward_by_kernels). A backend that overrides it handles every [`Meeting`], or passes
    /// those that it does not handle to that function. Running statistics are written after the sum has succeeded, or not at
    /// all.
    ///
    /// # Errors
    ///
    /// [`PassError`] says which step failed. For [`Meeting::Inside`] without such kernels, [`PassError::NoPeers`], before any work.
    fn forward(
        &self,
        queue: &Self::Queue,
        args: ForwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<Self::Error>> {
        meeting::forward_by_kernels(self, queue, args, meeting)
    }

    /// A whole backward pass through batch statistics: [`grad_sums`](Self::grad_sums), the sum over the ranks as `meeting` says, and
    /// [`grad_input`](Self::grad_input) if dx is wanted. The sum is asked for even if dx is not
    /// wanted, since other ranks need it.
    ///
    /// Provided, by [`backward_by_kernels`](meeting::backward_by_kernels); overridden as [`forward`](Self::forward).
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
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
    /// Written: this rank's moments.
    pub workspace: &'a mut B::Workspace,
}

/// Arguments of [`Kernels::normalize`].
pub struct NormalizeArgs<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// The result, of the same geometry, in other memory than x.
    pub y: ViewMut<'a, B, T>,
    /// Which statistics to use, and which to write.
    pub source: Source<'a, B, T::Param>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// The shift per channel; 0 where absent.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// Added to the variance under the root; finite and positive.
    pub eps: f64,
}

/// The statistics that [`Kernels::normalize`] uses, and what it writes besides y.
pub enum Source<'a, B: Backend, P: Scalar> {
    /// Those of a batch.
    Batch {
        /// What [`Kernels::moments`] wrote; if `group` is true, replaced by the group's sums since.
        workspace: &'a B::Workspace,
        /// Whether the workspace has the group's sums ([`Batch::from_sums`](crate::statistics::Batch::from_sums)), or this rank's own
        /// moments ([`Moments::batch`](crate::statistics::Moments::batch)).
        group: bool,
        /// Written: [`saved_len`](crate::backend::saved_len) words. Zeros if the batch has no elements.
        saved: B::MemMut<'a, f64>,
        /// Updated, if present.
        running: Option<RunningMut<'a, B, P>>,
    },
    /// Given ones, whose count is 0.
    Frozen {
        /// The mean per channel.
        mean: B::Mem<'a, P>,
        /// The variance per channel.
        var: B::Mem<'a, P>,
        /// Written: [`saved_len`](crate::backend::saved_len) words, with a count of 0.
        saved: B::MemMut<'a, f64>,
    },
    /// Those that an earlier forward pass saved.
    Saved {
        /// Read.
        saved: B::Mem<'a, f64>,
        /// Updated from the saved statistics, if present. `recompute` gives x and y without these; `update_running` gives these
        /// with an empty x and y.
        running: Option<RunningMut<'a, B, P>>,
    },
}

/// Running statistics in borrowed memory, which a forward pass updates as [`statistics::Running`](crate::statistics::Running) says.
///
/// ```
/// use example_backend::Plain;
/// use syncbn_core::{NonFinite, RunningMut};
///
/// let (mut mean, mut var, mut count) = ([0.0_f32; 8], [1.0_f32; 8], [0_i64]);
/// let running = RunningMut::<Plain, f32> {
///     mean: &mut mean,
///     var: &mut var,
///     num_batches_tracked: &mut count,
///     momentum: Some(0.1),
///     non_finite: NonFinite::Propagate,
/// };
/// # drop(running);
/// ```
pub struct RunningMut<'a, B: Backend, P: Scalar> {
    /// The running mean per channel.
    pub mean: B::MemMut<'a, P>,
    /// The running unbiased variance per channel.
    pub var: B::MemMut<'a, P>,
    /// How many batches were seen: one number. A kernel updates it and all channels, or nothing.
    pub num_batches_tracked: B::MemMut<'a, i64>,
    /// The weight of the newest batch, 0..=1; `None`: the cumulative average, 1 / `num_batches_tracked`.
    pub momentum: Option<f64>,
    /// What happens to a channel whose batch statistics are not finite.
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
    /// Written, if present: this rank's gradient of the weight.
    pub d_weight: Option<B::MemMut<'a, T::Param>>,
    /// Written, if present: this rank's gradient of the bias.
    pub d_bias: Option<B::MemMut<'a, T::Param>>,
    /// Written: this rank's sums.
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
    /// The group's sums, or frozen statistics.
    pub source: GradSource<'a, B>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
}

/// What the statistics of the forward pass depend on, for [`Kernels::grad_input`].
pub enum GradSource<'a, B: Backend> {
    /// The batch.
    Batch {
        /// The sums that [`Kernels::grad_sums`] wrote, over all ranks if the forward pass was the group's.
        workspace: &'a B::Workspace,
    },
    /// Nothing: they were given.
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
    /// dx is written over dy.
    InPlace(ViewMut<'a, B, T>),
}
