//! One use of a layer as an operation of candle's graph: the forward pass, and the backward pass that candle asks of it.
//!
//! `x`, and with it `y`, `dy` and `dx`, are contiguous here: (N, C, *spatial), or (N, *spatial, C) for channels-last. Where weight
//! or bias are absent, a placeholder that nothing reads stands in their place, so that one operation serves all layers.
//!
//! Deliberately not here: the kernels' calls (`passes`), and a device's memory (`cpu`, `cuda`).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};
use syncbn_core::{Backend, FunctionalBatchNorm, Geometry, SavedStatistics, ShapeError};
use syncbn_cpu::Cpu;

use crate::device::{Given, OP, OnDevice, into, of};
use crate::error::Error;
use crate::running::Running;

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

/// A layer's passes, by its device.
#[derive(Clone, Debug)]
pub(crate) enum DevicePasses {
    Cpu(Arc<Passes<Cpu>>),
    #[cfg(feature = "cuda")]
    Cuda(Arc<Passes<syncbn_cuda::Cuda>>),
}

impl DevicePasses {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cpu(passes) => passes.name(),
            #[cfg(feature = "cuda")]
            Self::Cuda(passes) => passes.name(),
        }
    }

    /// A forward pass, as candle's graph has it.
    pub(crate) fn forward(&self, call: Call) -> Box<dyn CustomOp3 + Send + Sync> {
        match self {
            Self::Cpu(passes) => Box::new(Forward(Arc::new(Use { passes: Arc::clone(passes), call }))),
            #[cfg(feature = "cuda")]
            Self::Cuda(passes) => Box::new(Forward(Arc::new(Use { passes: Arc::clone(passes), call }))),
        }
    }

    /// Whether a forward pass on this kind of device has saved something.
    pub(crate) fn have(&self, saved: &Saved) -> bool {
        match self {
            Self::Cpu(_) => saved.0.cpu.get().is_some(),
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => saved.0.cuda.get().is_some(),
        }
    }

    /// Moves running statistics by what a forward pass has saved.
    pub(crate) fn update(&self, running: &Running, saved: &Saved) -> Result<()> {
        match self {
            Self::Cpu(passes) => saved.0.cpu.get().map(|saved| running.update(passes, saved)),
            #[cfg(feature = "cuda")]
            Self::Cuda(passes) => saved.0.cuda.get().map(|saved| running.update(passes, saved)),
        }
        .unwrap_or(Ok(()))
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
pub struct Saved(pub(crate) Arc<Slots>);

/// Room for what a pass saves on each kind of device.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) cpu: OnceLock<SavedStatistics<Cpu>>,
    #[cfg(feature = "cuda")]
    pub(crate) cuda: OnceLock<SavedStatistics<syncbn_cuda::Cuda>>,
}

/// One use of a layer.
pub(crate) struct Use<B: OnDevice> {
    pub(crate) passes: Arc<Passes<B>>,
    pub(crate) call: Call,
}

/// What a layer is used with.
pub(crate) struct Call {
    pub(crate) channels_last: bool,
    pub(crate) has_weight: bool,
    pub(crate) has_bias: bool,
    pub(crate) statistics: Statistics,
    /// Empty before the forward pass. Where it is full already, the forward pass is a recomputation.
    pub(crate) saved: Saved,
}

impl<B: OnDevice> Use<B> {
    pub(crate) fn geometry(&self, shape: &Shape) -> std::result::Result<Geometry, ShapeError> {
        if self.call.channels_last {
            Geometry::channels_last(shape.dims())
        } else {
            Geometry::channels_first(shape.dims())
        }
    }
}

/// The forward pass: y of x, weight and bias.
pub(crate) struct Forward<B: OnDevice>(pub(crate) Arc<Use<B>>);

impl<B: OnDevice> CustomOp3 for Forward<B> {
    fn name(&self) -> &'static str {
        OP
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
        let (x, weight, bias) = (of::<B>(x)?, of::<B>(weight)?, of::<B>(bias)?);
        let y = self.0.forward((x, x_layout), (weight, weight_layout), (bias, bias_layout))?;
        Ok((into::<B, _>(y)?, x_layout.shape().clone()))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
        bias: &CudaStorage,
        bias_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (x, weight, bias) = (of::<B>(x)?, of::<B>(weight)?, of::<B>(bias)?);
        let y = self.0.forward((x, x_layout), (weight, weight_layout), (bias, bias_layout))?;
        Ok((into::<B, _>(y)?, x_layout.shape().clone()))
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
pub(crate) struct Backward<B: OnDevice> {
    pub(crate) used: Arc<Use<B>>,
    pub(crate) wants: Wants,
    params: Mutex<ParamGrads>,
}

/// The gradients that an operation of one result has no room for.
#[derive(Default)]
pub(crate) struct ParamGrads {
    pub(crate) weight: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
}

impl<B: OnDevice> Backward<B> {
    fn run(&self, x: Given<'_, B>, dy: Given<'_, B>, weight: Given<'_, B>) -> Result<(B::Memory, Shape)> {
        let (dx, grads) = self.backward(x, dy, weight)?;
        *self.params.lock().unwrap_or_else(PoisonError::into_inner) = grads;
        Ok((dx, if self.wants.x { x.1.shape().clone() } else { Shape::from(0) }))
    }
}

impl<B: OnDevice> CustomOp3 for Backward<B> {
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
        let (x, dy, weight) = (of::<B>(x)?, of::<B>(dy)?, of::<B>(weight)?);
        let (dx, shape) = self.run((x, x_layout), (dy, dy_layout), (weight, weight_layout))?;
        Ok((into::<B, _>(dx)?, shape))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (x, dy, weight) = (of::<B>(x)?, of::<B>(dy)?, of::<B>(weight)?);
        let (dx, shape) = self.run((x, x_layout), (dy, dy_layout), (weight, weight_layout))?;
        Ok((into::<B, _>(dx)?, shape))
    }
}
