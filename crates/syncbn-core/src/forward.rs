//! The forward pass over borrowed memory: what a layer does, and what an adapter calls whose framework owns the
//! parameters.
//!
//! Deliberately not here: parameters, modes and state, which are the [`layer`](crate::layer)'s.

use std::fmt;

use crate::backend::{Backend, Kernels, NormalizeArgs, Pass, RunningMut, Source};
use crate::config::{check_eps, check_momentum};
use crate::error::{Error, ErrorKind, Operation, Stage, Tensor};
use crate::geometry::Geometry;
use crate::scalar::{Element, Scalar};
use crate::site::{LayerTag, Site, Step, Sums};
use crate::view::{View, ViewMut, shorter};

/// Whose elements the statistics of a forward pass come from, and so what its backward pass has to sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All ranks' elements: one collective forward, one backward.
    Group,
    /// This rank's elements: no collective.
    Local,
    /// None: the statistics were given, and have no gradient. No collective.
    Frozen,
}

/// What a forward pass keeps for its backward pass, and for its recomputation.
///
/// The statistics stay on the device. A layer may be used several times before the first backward pass: each use has a
/// `Saved` of its own.
pub struct Saved<B: Backend> {
    pub(crate) layer: LayerTag,
    pub(crate) scope: Scope,
    /// Which use of the layer in its group, if the group was asked.
    pub(crate) sequence: u64,
    pub(crate) geometry: Geometry,
    pub(crate) inner: B::Saved,
}

impl<B: Backend> fmt::Debug for Saved<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layer, scope, geometry, sequence: _, inner: _ } = self;
        write!(f, "Saved({} of {geometry:?}, {scope:?})", layer.name())
    }
}

impl<B: Backend> Saved<B> {
    /// The shape and layout of x.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Where the statistics came from.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The statistics, as the backend holds them.
    #[must_use]
    pub fn inner(&self) -> &B::Saved {
        &self.inner
    }

    pub(crate) fn check_owner(&self, step: &Step<'_, B>) -> Result<(), Error> {
        if self.layer.is(step.site.layer) {
            return Ok(());
        }
        Err(step.error(ErrorKind::ForeignSaved { saved: self.layer.name().clone() }))
    }
}

/// The statistics that a forward pass uses.
pub enum Statistics<'a, B: Backend, P: Scalar> {
    /// Those of the batch over all ranks.
    Group {
        /// To be updated, if present.
        running: Option<RunningMut<'a, B, P>>,
    },
    /// Those of this rank's batch: nothing is updated, no rank is asked.
    Local,
    /// Given ones.
    Frozen {
        /// One mean per channel.
        mean: B::Mem<'a, P>,
        /// One variance per channel.
        var: B::Mem<'a, P>,
    },
}

impl<B: Backend, P: Scalar> Statistics<'_, B, P> {
    fn scope(&self) -> Scope {
        match self {
            Self::Group { .. } => Scope::Group,
            Self::Local => Scope::Local,
            Self::Frozen { .. } => Scope::Frozen,
        }
    }
}

/// The arguments of [`forward`].
pub struct Forward<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// The result, of the same shape and layout.
    pub y: ViewMut<'a, B, T>,
    /// The statistics to use.
    pub statistics: Statistics<'a, B, T::Param>,
    /// One scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// One shift per channel; 0 where absent.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// Added to the variance under the root; finite and above 0.
    pub eps: f64,
}

/// `y = (x - mean) / sqrt(var + eps) weight + bias` (Ioffe and Szegedy 2015, algorithm 1).
///
/// With [`Statistics::Group`] every rank of the group has to call this, with its own x, of any batch size, 0 included.
/// `sums` is scratch for this number of channels, which may serve any number of passes.
///
/// Returns before the device has done the work, unless the communicator is [`Staged`](crate::Staged). If it fails, running
/// statistics are as they were, and y is unspecified; only after a late failure of the communicator
/// ([`CommError::late`](crate::CommError::late)) they cannot be trusted.
pub fn forward<B: Kernels<T>, T: Element>(
    site: &Site<'_, B>,
    sums: &mut Sums<B>,
    args: Forward<'_, B, T>,
) -> Result<Saved<B>, Error> {
    let step = site.during(Operation::Forward);
    check(&step, &args)?;
    let Forward { x, mut y, mut statistics, weight, bias, eps } = args;
    let geometry = *x.geometry();
    step.length(Tensor::Sums, geometry.channels(), sums.channels)?;
    let scope = statistics.scope();
    if scope == Scope::Group {
        step.group_works()?;
    }

    let mut inner = step.device(Stage::Allocation, site.backend.saved(site.queue, geometry.channels()))?;
    if scope != Scope::Frozen {
        step.device(Stage::Moments, site.backend.moments(site.queue, x.reborrow(), &mut sums.inner))?;
    }
    let mut sequence = 0;
    if scope == Scope::Group {
        sequence = sums.next_use();
        step.all_reduce(Pass::Forward, sequence, sums)?;
    }
    let sums = &sums.inner;
    let source = match &mut statistics {
        Statistics::Group { running } => Source::Batch {
            sums,
            group: step.world_size() > 1,
            saved: &mut inner,
            running: running.as_mut().map(RunningMut::reborrow),
        },
        Statistics::Local => Source::Batch { sums, group: false, saved: &mut inner, running: None },
        Statistics::Frozen { mean, var } => {
            Source::Frozen { mean: B::reborrow(mean), var: B::reborrow(var), saved: &mut inner }
        }
    };
    let args = NormalizeArgs {
        x: x.reborrow(),
        y: y.reborrow(),
        source,
        weight: shorter::<B, _>(weight.as_ref()),
        bias: shorter::<B, _>(bias.as_ref()),
        eps,
    };
    step.device(Stage::Normalize, site.backend.normalize(site.queue, args))?;
    step.device(Stage::Flush, site.backend.flush(site.queue))?;
    Ok(Saved { layer: site.layer.clone(), scope, sequence, geometry, inner })
}

/// The arguments of [`recompute`].
pub struct Recompute<'a, B: Backend, T: Element> {
    /// What the first forward pass returned.
    pub saved: &'a Saved<B>,
    /// The same activations as then.
    pub x: View<'a, B, T>,
    /// The result, of the same shape and layout.
    pub y: ViewMut<'a, B, T>,
    /// The same scale as then.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// The same shift as then.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// The same eps as then.
    pub eps: f64,
}

/// The forward pass again, for activation checkpointing: the saved statistics are used, so no rank is asked, nothing is
/// updated, and y has the same bits as the first time.
pub fn recompute<B: Kernels<T>, T: Element>(
    site: &Site<'_, B>,
    args: Recompute<'_, B, T>,
) -> Result<(), Error> {
    let step = site.during(Operation::Recompute);
    let Recompute { saved, x, y, weight, bias, eps } = args;
    saved.check_owner(&step)?;
    step.same_geometry(Tensor::X, &saved.geometry, x.geometry())?;
    check_affine(&step, &x, &y, weight.as_ref(), bias.as_ref(), eps)?;
    let args = NormalizeArgs { x, y, source: Source::Saved(&saved.inner), weight, bias, eps };
    step.device(Stage::Normalize, site.backend.normalize(site.queue, args))?;
    step.device(Stage::Flush, site.backend.flush(site.queue))
}

fn check<B: Backend, T: Element>(step: &Step<'_, B>, args: &Forward<'_, B, T>) -> Result<(), Error> {
    check_affine(step, &args.x, &args.y, args.weight.as_ref(), args.bias.as_ref(), args.eps)?;
    let geometry = args.x.geometry();
    let channels = geometry.channels();
    let alone = match &args.statistics {
        Statistics::Group { running } => {
            if let Some(running) = running {
                check_momentum(running.momentum).map_err(|e| step.error(e))?;
                step.mem_mut_length(Tensor::RunningMean, channels, Some(&running.mean))?;
                step.mem_mut_length(Tensor::RunningVar, channels, Some(&running.var))?;
                step.mem_mut_length(Tensor::NumBatchesTracked, 1, Some(&running.num_batches_tracked))?;
            }
            step.world_size() == 1
        }
        Statistics::Local => true,
        Statistics::Frozen { mean, var } => {
            step.mem_length(Tensor::RunningMean, channels, Some(mean))?;
            step.mem_length(Tensor::RunningVar, channels, Some(var))?;
            false
        }
    };
    if alone && geometry.per_channel() == 1 {
        return Err(step.error(ErrorKind::OneElement { shape: geometry.shape() }));
    }
    Ok(())
}

fn check_affine<B: Backend, T: Element>(
    step: &Step<'_, B>,
    x: &View<'_, B, T>,
    y: &ViewMut<'_, B, T>,
    weight: Option<&B::Mem<'_, T::Param>>,
    bias: Option<&B::Mem<'_, T::Param>>,
    eps: f64,
) -> Result<(), Error> {
    check_eps(eps).map_err(|e| step.error(e))?;
    let geometry = x.geometry();
    step.same_geometry(Tensor::Y, geometry, y.geometry())?;
    step.mem_length(Tensor::Weight, geometry.channels(), weight)?;
    step.mem_length(Tensor::Bias, geometry.channels(), bias)
}
