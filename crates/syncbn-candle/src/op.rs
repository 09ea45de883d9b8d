//! One use of a layer as an operation of candle's graph: the forward pass, and the backward pass that candle asks of it.
//!
//! `x`, and with it `y`, `dy` and `dx`, are contiguous here: (N, C, *spatial), or (N, *spatial, C) for channels-last. Where weight
//! or bias are absent, a placeholder that nothing reads stands in their place, so that one operation serves all layers.
//!
//! Deliberately not here: the kernels' calls, which are a device's (`cpu`).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use syncbn_core::{Backend, FunctionalBatchNorm, Geometry, SavedStatistics, ShapeError};
use syncbn_cpu::Cpu;

use crate::error::Error;

/// A layer's passes, by the type of its parameters.
#[derive(Debug)]
pub(crate) enum Passes<B: Backend> {
    F32(FunctionalBatchNorm<B, f32>),
    F64(FunctionalBatchNorm<B, f64>),
}

impl<B: Backend> Passes<B> {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::F32(layer) => layer.name(),
            Self::F64(layer) => layer.name(),
        }
    }
}

/// The statistics that a forward pass uses.
pub(crate) enum Statistics {
    /// Those of the batch over all ranks.
    Group,
    /// Those of this rank's batch.
    Local,
    /// Given ones.
    Frozen { mean: Tensor, var: Tensor },
}

/// What a forward pass saved for its backward pass and its recomputation. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct Saved(pub(crate) Arc<OnceLock<SavedStatistics<Cpu>>>);

/// One use of a layer.
pub(crate) struct Use {
    pub(crate) passes: Arc<Passes<Cpu>>,
    pub(crate) channels_last: bool,
    pub(crate) has_weight: bool,
    pub(crate) has_bias: bool,
    pub(crate) statistics: Statistics,
    /// Empty before the forward pass. Where it is full already, the forward pass is a recomputation.
    pub(crate) saved: Saved,
}

impl Use {
    pub(crate) fn geometry(&self, shape: &Shape) -> std::result::Result<Geometry, ShapeError> {
        if self.channels_last {
            Geometry::channels_last(shape.dims())
        } else {
            Geometry::channels_first(shape.dims())
        }
    }
}

/// The forward pass: y of x, weight and bias.
pub(crate) struct Forward(pub(crate) Arc<Use>);

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        "sync-batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let y = self.0.forward_cpu((x, x_layout), (weight, weight_layout), (bias, bias_layout))?;
        Ok((y, x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        if dy.track_op() {
            let (operation, layer) = ("backward", self.0.passes.name().into());
            return Err(Error::Unsupported { operation, layer, what: "there is no second derivative" }.into());
        }
        let wants = Wants { x: x.track_op(), weight: weight.track_op(), bias: bias.track_op() };
        let backward = Backward { used: Arc::clone(&self.0), wants, params: Mutex::default() };
        let dx = x.apply_op3_no_bwd(&dy.contiguous()?, weight, &backward)?;
        let params = backward.params.into_inner().unwrap_or_else(PoisonError::into_inner);
        let reshaped =
            |grad: Option<Tensor>, like: &Tensor| grad.map(|grad| grad.reshape(like.shape())).transpose();
        Ok((wants.x.then_some(dx), reshaped(params.weight, weight)?, reshaped(params.bias, bias)?))
    }
}

/// Which gradients somebody asks for.
#[derive(Clone, Copy)]
pub(crate) struct Wants {
    pub(crate) x: bool,
    pub(crate) weight: bool,
    pub(crate) bias: bool,
}

/// The backward pass: dx of x, dy and weight, and what `params` takes. Its result is empty where dx is not wanted.
pub(crate) struct Backward {
    pub(crate) used: Arc<Use>,
    pub(crate) wants: Wants,
    params: Mutex<ParamGrads>,
}

/// The gradients that an operation of one result has no room for.
#[derive(Default)]
pub(crate) struct ParamGrads {
    pub(crate) weight: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
}

impl CustomOp3 for Backward {
    fn name(&self) -> &'static str {
        "sync-batch-norm-backward"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (dx, grads) = self.backward_cpu((x, x_layout), (dy, dy_layout), (weight, weight_layout))?;
        *self.params.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        let shape = if self.wants.x { x_layout.shape().clone() } else { Shape::from(0) };
        Ok((dx, shape))
    }
}
