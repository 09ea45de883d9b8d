//! The layer: candle's `batch_norm` with the statistics of all ranks.

mod build;

use std::sync::Arc;

use candle_core::{Module, ModuleT, Result, Tensor};
use syncbn_core::{Geometry, Layout};

use crate::SyncBatchNormConfig;
use crate::error::Error;
use crate::group::Group;
use crate::op::{Call, DevicePasses, Saved, Statistics};
use crate::running::Running;

pub use build::sync_batch_norm;

/// Batch normalisation over all ranks of a group; a clone is the same layer.
///
/// As a [`ModuleT`] it trains and evaluates like candle's own layer. In training every rank of the group calls it, in the same
/// order and with a batch of any size, 0 included; and calls `backward` on a loss that depends on its result. Evaluation asks no rank.
///
/// # Shapes and types
///
/// x is (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), and y is as x. With `f32` parameters x is `f32`, `f16` or `bf16`; with
/// `f64` parameters `f64`. x is read where it lies if it is contiguous, or channels-last (an NHWC tensor permuted to NCHW), which y
/// is then, too. Any other x is copied to a contiguous one first, and so is a `dy` that is not as y.
///
/// # Gradients
///
/// That of x is of the whole batch. Those of weight and bias are sums over this rank's elements, like all other gradients that candle
/// computes: [`all_reduce_gradients`](crate::all_reduce_gradients) sums them over the ranks. There is no second derivative.
#[derive(Clone, Debug)]
pub struct SyncBatchNorm {
    passes: DevicePasses,
    config: SyncBatchNormConfig,
    group: Group,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    running: Option<Running>,
    /// Stands where weight or bias are absent.
    placeholder: Tensor,
}

impl SyncBatchNorm {
    /// The name, which errors show and ranks compare: the `VarBuilder`'s prefix.
    #[must_use]
    pub fn name(&self) -> &str {
        self.passes.name()
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &SyncBatchNormConfig {
        &self.config
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// One scale per channel.
    #[must_use]
    pub fn weight(&self) -> Option<&Tensor> {
        self.weight.as_ref()
    }

    /// One shift per channel.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The running mean.
    #[must_use]
    pub fn running_mean(&self) -> Option<&Tensor> {
        self.running.as_ref().map(|running| running.mean.as_tensor())
    }

    /// The running unbiased variance.
    #[must_use]
    pub fn running_var(&self) -> Option<&Tensor> {
        self.running.as_ref().map(|running| running.var.as_tensor())
    }

    /// How many batches the running statistics have seen: an `i64` of shape [].
    #[must_use]
    pub fn num_batches_tracked(&self) -> Option<&Tensor> {
        self.running.as_ref().map(|running| running.num_batches_tracked.as_tensor())
    }

    /// The layer in evaluation, as a [`Module`] for where candle wants one.
    #[must_use]
    pub fn eval(&self) -> EvalBatchNorm {
        EvalBatchNorm(self.clone())
    }

    /// The forward pass in training, and what it saved, for [`recompute`](Self::recompute).
    ///
    /// # Errors
    ///
    /// [`Error::Layer`]: x does not fit the layer, or a collective failed; [`Error::Dtype`], [`Error::Device`]: x is of another type, or
    /// elsewhere. Running statistics are then unchanged, except after an error that is [`late`](syncbn_core::CommError::late).
    pub fn forward_train(&self, x: &Tensor) -> Result<(Tensor, Saved)> {
        let saved = Saved::default();
        let y = self.apply(x, Statistics::Group, saved.clone())?;
        if let Some(running) = &self.running {
            self.passes.update(running, &saved)?;
        }
        Ok((y, saved))
    }

    /// The forward pass again, for activation checkpointing: y with the same bits from the same x, weight and bias, as a new
    /// node of the graph with the same gradients. No rank is asked and nothing is updated, but its backward pass is the group's.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor, Var};
    /// use candle_nn::{VarBuilder, VarMap};
    /// use syncbn_candle::{Group, sync_batch_norm};
    ///
    /// # fn main() -> candle_core::Result<()> {
    /// let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
    /// let norm = sync_batch_norm(3, 1e-5, vb.pp("bn1"), &Group::single_rank())?;
    /// let x = Var::new(&[[1.0_f32, 2., 3.], [3., 5., 9.]], &Device::Cpu)?;
    /// // Forward: only x and what was saved are kept, not the graph.
    /// let (y, saved) = norm.forward_train(&x.detach())?;
    /// let first = y.detach();
    /// // Backward: the graph is made again where it is needed.
    /// let again = norm.recompute(&x, &saved)?;
    /// assert_eq!(first.to_vec2::<f32>()?, again.to_vec2::<f32>()?);
    /// assert!(again.sqr()?.sum_all()?.backward()?.get(&x).is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NothingSaved`] if no forward pass has filled `saved`; [`Error::Layer`] if another layer's has, or if x has another shape.
    pub fn recompute(&self, x: &Tensor, saved: &Saved) -> Result<Tensor> {
        if !self.passes.have(saved) {
            return Err(Error::NothingSaved { operation: "recomputation", layer: self.name().into() }.into());
        }
        // What was saved says whose statistics they are.
        self.apply(x, Statistics::Group, saved.clone())
    }

    fn forward_eval(&self, x: &Tensor) -> Result<Tensor> {
        let statistics = match &self.running {
            Some(Running { mean, var, .. }) => {
                Statistics::Frozen { mean: mean.as_tensor().clone(), var: var.as_tensor().clone() }
            }
            None => Statistics::Local,
        };
        self.apply(x, statistics, Saved::default())
    }

    fn apply(&self, x: &Tensor, statistics: Statistics, saved: Saved) -> Result<Tensor> {
        let arranged = Arranged::new(x)?;
        let (weight, bias) = (contiguous(self.weight.as_ref())?, contiguous(self.bias.as_ref())?);
        let op = self.passes.forward(Call {
            channels_last: arranged.channels_last,
            has_weight: weight.is_some(),
            has_bias: bias.is_some(),
            statistics,
            saved,
        });
        let or_placeholder = |tensor: Option<Tensor>| tensor.unwrap_or_else(|| self.placeholder.clone());
        let y = arranged.x.apply_op3_arc(&or_placeholder(weight), &or_placeholder(bias), Arc::new(op))?;
        if arranged.channels_last { y.permute(channels_second(y.rank())) } else { Ok(y) }
    }
}

fn contiguous(tensor: Option<&Tensor>) -> Result<Option<Tensor>> {
    tensor.map(Tensor::contiguous).transpose()
}

/// x as the operation takes it: contiguous, with its channels second or last.
struct Arranged {
    x: Tensor,
    channels_last: bool,
}

impl Arranged {
    fn new(x: &Tensor) -> Result<Self> {
        // Where there are no elements, any strides are both.
        if x.is_contiguous() || x.elem_count() == 0 || !is_channels_last(x) {
            return Ok(Self { x: x.contiguous()?, channels_last: false });
        }
        Ok(Self { x: x.permute(channels_last(x.rank()))?, channels_last: true })
    }
}

fn is_channels_last(x: &Tensor) -> bool {
    let strides: Vec<isize> = x.stride().iter().map(|&stride| stride.cast_signed()).collect();
    Geometry::strided(x.dims(), &strides, 1).is_ok_and(|geometry| geometry.layout() == Layout::ChannelsLast)
}

/// The axes of (N, C, *spatial) in the order (N, *spatial, C).
fn channels_last(rank: usize) -> Vec<usize> {
    let mut axes: Vec<usize> = (0..rank).collect();
    axes[1..].rotate_left(1);
    axes
}

/// The axes of (N, *spatial, C) in the order (N, C, *spatial).
fn channels_second(rank: usize) -> Vec<usize> {
    let mut axes: Vec<usize> = (0..rank).collect();
    axes[1..].rotate_right(1);
    axes
}

impl ModuleT for SyncBatchNorm {
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if train { self.forward_train(x).map(|(y, _)| y) } else { self.forward_eval(x) }
    }
}

/// A layer in evaluation: y by the running statistics, or by those of the batch at hand where none are tracked.
#[derive(Clone, Debug)]
pub struct EvalBatchNorm(SyncBatchNorm);

impl Module for EvalBatchNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward_eval(x)
    }
}
