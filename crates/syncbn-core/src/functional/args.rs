//! The arguments of the passes over borrowed memory.
//!
//! `new` takes what a pass cannot do without, methods add the rest. So arguments can be added without breaking callers.

use crate::backend::Backend;
use crate::kernels::RunningMut;
use crate::meeting::Gradients;
use crate::saved::SavedRef;
use crate::scalar::{Element, Scalar};
use crate::view::{View, ViewMut};

/// Which mean and variance a forward pass normalises with.
#[non_exhaustive]
pub enum Statistics<'a, B: Backend, P: Scalar> {
    /// Those of the batch of all ranks: training. The pass is collective.
    Group {
        /// Running statistics to update, if any.
        running: Option<RunningMut<'a, B, P>>,
    },
    /// Those of this rank's batch. No rank is asked, and no running statistics are updated.
    Local,
    /// Given ones, which have no gradient: evaluation, or fine-tuning with frozen batch norm. No rank is asked.
    Frozen {
        /// One mean per channel.
        mean: B::Mem<'a, P>,
        /// One variance per channel.
        var: B::Mem<'a, P>,
    },
}

/// The arguments of [`FunctionalBatchNorm::forward`](super::FunctionalBatchNorm::forward).
#[non_exhaustive]
pub struct Forward<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// The result, of the same shape and layout.
    pub y: ViewMut<'a, B, T>,
    /// Which statistics to use.
    pub statistics: Statistics<'a, B, T::Param>,
    /// One scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// One shift per channel; 0 where absent.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// Written for the backward pass: [`saved_len`](crate::backend::saved_len) values.
    pub saved: B::MemMut<'a, f64>,
}

impl<'a, B: Backend, T: Element> Forward<'a, B, T> {
    /// Without weight and bias; [`affine`](Self::affine) adds them.
    pub fn new(
        x: View<'a, B, T>,
        y: ViewMut<'a, B, T>,
        statistics: Statistics<'a, B, T::Param>,
        saved: B::MemMut<'a, f64>,
    ) -> Self {
        Self { x, y, statistics, weight: None, bias: None, saved }
    }

    /// With a weight and a bias, or with one of them, one value per channel.
    #[must_use]
    pub fn affine(self, weight: Option<B::Mem<'a, T::Param>>, bias: Option<B::Mem<'a, T::Param>>) -> Self {
        Self { weight, bias, ..self }
    }
}

/// The arguments of [`FunctionalBatchNorm::recompute`](super::FunctionalBatchNorm::recompute).
#[non_exhaustive]
pub struct Recompute<'a, B: Backend, T: Element> {
    /// What the first forward pass saved.
    pub saved: SavedRef<'a, B>,
    /// The same activations as then.
    pub x: View<'a, B, T>,
    /// The result, of the same shape and layout.
    pub y: ViewMut<'a, B, T>,
    /// The same scale as then.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// The same shift as then.
    pub bias: Option<B::Mem<'a, T::Param>>,
}

impl<'a, B: Backend, T: Element> Recompute<'a, B, T> {
    /// Without weight and bias; [`affine`](Self::affine) adds them.
    pub fn new(saved: SavedRef<'a, B>, x: View<'a, B, T>, y: ViewMut<'a, B, T>) -> Self {
        Self { saved, x, y, weight: None, bias: None }
    }

    /// With a weight and a bias, or with one of them, one value per channel.
    #[must_use]
    pub fn affine(self, weight: Option<B::Mem<'a, T::Param>>, bias: Option<B::Mem<'a, T::Param>>) -> Self {
        Self { weight, bias, ..self }
    }
}

/// The arguments of [`FunctionalBatchNorm::update_running`](super::FunctionalBatchNorm::update_running).
#[non_exhaustive]
pub struct UpdateRunning<'a, B: Backend, P: Scalar> {
    /// What a forward pass with the group's statistics has saved.
    pub saved: SavedRef<'a, B>,
    /// The statistics to update.
    pub running: RunningMut<'a, B, P>,
}

impl<'a, B: Backend, P: Scalar> UpdateRunning<'a, B, P> {
    /// Updates `running` from `saved`.
    pub fn new(saved: SavedRef<'a, B>, running: RunningMut<'a, B, P>) -> Self {
        Self { saved, running }
    }
}

/// The arguments of [`FunctionalBatchNorm::backward`](super::FunctionalBatchNorm::backward).
#[non_exhaustive]
pub struct Backward<'a, B: Backend, T: Element> {
    /// What the forward pass saved.
    pub saved: SavedRef<'a, B>,
    /// The activations that the forward pass read.
    pub x: View<'a, B, T>,
    /// The gradients of y and x.
    pub gradients: Gradients<'a, B, T>,
    /// The scale that the forward pass used.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// Written if present: one gradient per channel, over this rank's elements.
    pub d_weight: Option<B::MemMut<'a, T::Param>>,
    /// Written if present: one gradient per channel, over this rank's elements.
    pub d_bias: Option<B::MemMut<'a, T::Param>>,
}

impl<'a, B: Backend, T: Element> Backward<'a, B, T> {
    /// Without a weight, and without gradients of weight and bias.
    pub fn new(saved: SavedRef<'a, B>, x: View<'a, B, T>, gradients: Gradients<'a, B, T>) -> Self {
        Self { saved, x, gradients, weight: None, d_weight: None, d_bias: None }
    }

    /// With the scale that the forward pass used.
    #[must_use]
    pub fn weight(self, weight: Option<B::Mem<'a, T::Param>>) -> Self {
        Self { weight, ..self }
    }

    /// With memory for the gradients of weight and bias, or of one of them.
    #[must_use]
    pub fn parameters(
        self,
        d_weight: Option<B::MemMut<'a, T::Param>>,
        d_bias: Option<B::MemMut<'a, T::Param>>,
    ) -> Self {
        Self { d_weight, d_bias, ..self }
    }
}
