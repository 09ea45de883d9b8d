//! Layers from a `VarBuilder`, and from candle's own and back.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{BatchNorm, Init, VarBuilder};
use syncbn_core::{Config, FunctionalBatchNorm};
use syncbn_cpu::Cpu;

use super::SyncBatchNorm;
use crate::SyncBatchNormConfig;
use crate::device::OnDevice;
use crate::error::{Error, of_layer};
use crate::group::Group;
use crate::op::{DevicePasses, Passes};
use crate::running::Running;

const BUILD: &str = "construction";

/// Candle's `batch_norm` over a group. The variables have the names of candle's and PyTorch's: `weight`, `bias`,
/// `running_mean`, `running_var`, `num_batches_tracked`.
///
/// They are `f64` where the `VarBuilder` is, and else `f32`, also for activations of `f16` and `bf16`. A file without
/// `num_batches_tracked`, as candle's own layer writes it, is read with 0. Layers of one group are made in the same order on every
/// rank.
///
/// # Errors
///
/// Settings out of range, a device or type without kernels, and what the `VarBuilder` reports. [`Error::Value`]: the `VarBuilder` has a
/// variance below 0 (NaN is taken, since training may have made it), or a counter that is not a whole number from 0 on. What is loaded
/// into the variables later is not looked at.
#[allow(clippy::needless_pass_by_value)] // as candle's own layers take it
pub fn sync_batch_norm(
    channels: usize,
    config: impl Into<SyncBatchNormConfig>,
    vb: VarBuilder<'_>,
    group: &Group,
) -> Result<SyncBatchNorm> {
    let (config, name) = (config.into(), vb.prefix());
    let dtype = match vb.dtype() {
        DType::F64 => DType::F64,
        DType::F32 | DType::F16 | DType::BF16 => DType::F32,
        got => return Err(not_a_param(&name, "the VarBuilder", got)),
    };
    // Settings are checked before variables are made.
    let passes = passes(&name, channels, config, dtype, vb.device(), group)?;
    let vb = vb.to_dtype(dtype);
    let get = |name, value| vb.get_with_hints(channels, name, Init::Const(value));
    let weight = config.affine.then(|| get("weight", 1.0)).transpose()?;
    let bias = config.affine.then(|| get("bias", 0.0)).transpose()?;
    let running =
        || running(&name, &get("running_mean", 0.0)?, &get("running_var", 1.0)?, counter(&name, &vb)?);
    let running = config.track_running_stats.then(running).transpose()?;
    let placeholder = Tensor::zeros(1, dtype, vb.device())?;
    Ok(SyncBatchNorm { passes, config, group: group.clone(), weight, bias, running, placeholder })
}

/// Running statistics in these variables, or in copies of what are none.
fn running(layer: &str, mean: &Tensor, var: &Tensor, num_batches_tracked: Var) -> Result<Running> {
    let vars = wide(var)?.to_vec1::<f64>()?;
    if let Some((channel, &got)) = vars.iter().enumerate().find(|(_, var)| **var < 0.0) {
        return Err(no_value(layer, "running_var", channel, "at least 0", got));
    }
    let running = Running { mean: Var::from_tensor(mean)?, var: Var::from_tensor(var)?, num_batches_tracked };
    if running.are_distinct() {
        return Ok(running);
    }
    Err(unsupported(BUILD, layer, "running mean and variance are one variable"))
}

fn counter(layer: &str, vb: &VarBuilder<'_>) -> Result<Var> {
    const NAME: &str = "num_batches_tracked";
    let get = |dtype| vb.get_with_hints_dtype((), NAME, Init::Const(0.0), dtype);
    if vb.contains_tensor(NAME) {
        // Before it becomes an i64, which is 0 for a NaN.
        let got = wide(&get(DType::F64)?)?.to_scalar::<f64>()?;
        if got < 0.0 || got.fract() != 0.0 || got >= i64::MAX as f64 {
            return Err(no_value(layer, NAME, 0, "a whole number from 0 to below 2^63", got));
        }
    }
    match get(DType::I64) {
        Ok(found) if found.dtype() != DType::I64 => {
            let (layer, got) = (layer.into(), found.dtype());
            Err(Error::Dtype { operation: BUILD, layer, tensor: NAME, expected: "i64", got }.into())
        }
        Err(_) if !vb.contains_tensor(NAME) => Var::zeros((), DType::I64, vb.device()),
        found => Var::from_tensor(&found?),
    }
}

fn wide(tensor: &Tensor) -> Result<Tensor> {
    tensor.to_dtype(DType::F64)
}

fn no_value(
    layer: &str,
    tensor: &'static str,
    channel: usize,
    expected: &'static str,
    got: f64,
) -> candle_core::Error {
    Error::Value { operation: BUILD, layer: layer.into(), tensor, channel, expected, got }.into()
}

fn passes(
    name: &str,
    channels: usize,
    config: SyncBatchNormConfig,
    dtype: DType,
    device: &Device,
    group: &Group,
) -> Result<DevicePasses> {
    if !config.remove_mean {
        let what = "remove_mean is off, and a batch norm subtracts the mean";
        return Err(unsupported(BUILD, name, what));
    }
    let config = config.to_core(channels);
    match device {
        Device::Cpu => passes_on::<Cpu>(name, config, dtype, device, group).map(DevicePasses::Cpu),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => {
            passes_on::<syncbn_cuda::Cuda>(name, config, dtype, device, group).map(DevicePasses::Cuda)
        }
        other => Err(no_kernels(name, other)),
    }
}

fn passes_on<B: OnDevice>(
    name: &str,
    config: Config,
    dtype: DType,
    device: &Device,
    group: &Group,
) -> Result<Arc<Passes<B>>> {
    let group = B::group(group).ok_or_else(|| {
        let (layer, got) = (name.into(), device.location());
        Error::Device { operation: BUILD, layer, expected: "a device that the group reaches", got }
    })?;
    let (backend, queue) = B::backend(device)?;
    let passes = match dtype {
        DType::F32 => FunctionalBatchNorm::new(name, config, backend, &queue, group.clone()).map(Passes::F32),
        DType::F64 => FunctionalBatchNorm::new(name, config, backend, &queue, group.clone()).map(Passes::F64),
        got => return Err(not_a_param(name, "the running statistics", got)),
    };
    passes.map(Arc::new).map_err(of_layer)
}

fn no_kernels(layer: &str, device: &Device) -> candle_core::Error {
    let expected = if cfg!(feature = "cuda") { "the CPU or CUDA" } else { "the CPU" };
    Error::Device { operation: BUILD, layer: layer.into(), expected, got: device.location() }.into()
}

impl SyncBatchNorm {
    /// Candle's layer over a group. Weight, bias and running statistics are the same variables, where they are variables; the
    /// counter starts at 0.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`]: candle's layer does not remove the mean, or has one variable as mean and variance; [`Error::Dtype`],
    /// [`Error::Device`], [`Error::Value`]: of its variables; [`Error::Layer`]: of its settings.
    pub fn from_candle(layer: &BatchNorm, name: &str, group: &Group) -> Result<Self> {
        let (mean, var) = (layer.running_mean(), layer.running_var());
        let config = SyncBatchNormConfig {
            eps: layer.eps(),
            momentum: Some(layer.momentum()),
            affine: layer.weight_and_bias().is_some(),
            // Candle shows this setting nowhere else.
            remove_mean: !format!("{layer:?}").contains("remove_mean: false"),
            ..SyncBatchNormConfig::default()
        };
        let (dtype, device, channels) = (mean.dtype(), mean.device(), mean.elem_count());
        let passes = passes(name, channels, config, dtype, device, group)?;
        let (weight, bias) = layer.weight_and_bias().unzip();
        let tensors = [("weight", weight), ("bias", bias), ("running_var", Some(var))];
        for (tensor, value) in tensors.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            if value.dtype() != dtype {
                let (layer, expected) = (name.into(), "the type of running_mean");
                return Err(
                    Error::Dtype { operation: BUILD, layer, tensor, expected, got: value.dtype() }.into()
                );
            }
        }
        let running = running(name, mean, var, Var::zeros((), DType::I64, device)?)?;
        let placeholder = Tensor::zeros(1, dtype, device)?;
        let (weight, bias) = (weight.cloned(), bias.cloned());
        Ok(Self { passes, config, group: group.clone(), weight, bias, running: Some(running), placeholder })
    }

    /// The layer as candle's own, with the same variables: for code that takes no other.
    ///
    /// # Errors
    ///
    /// Candle has no cumulative average and no layer without running statistics.
    pub fn to_candle(&self) -> Result<BatchNorm> {
        const OPERATION: &str = "conversion to candle's";
        let missing = |what| unsupported(OPERATION, self.name(), what);
        let running = self.running.as_ref().ok_or_else(|| missing("it has no running statistics"))?;
        let momentum =
            self.config.momentum.ok_or_else(|| missing("its running statistics are cumulative averages"))?;
        let (mean, var) = (running.mean.as_tensor().clone(), running.var.as_tensor().clone());
        let (channels, eps) = (mean.elem_count(), self.config.eps);
        match (&self.weight, &self.bias) {
            (Some(weight), Some(bias)) => {
                let (weight, bias) = (weight.clone(), bias.clone());
                BatchNorm::new_with_momentum(channels, mean, var, weight, bias, eps, momentum)
            }
            _ => BatchNorm::new_no_bias_with_momentum(channels, mean, var, eps, momentum),
        }
    }
}

fn unsupported(operation: &'static str, layer: &str, what: &'static str) -> candle_core::Error {
    Error::Unsupported { operation, layer: layer.into(), what }.into()
}

fn not_a_param(layer: &str, tensor: &'static str, got: DType) -> candle_core::Error {
    let expected = "f32 or f64";
    Error::Dtype { operation: BUILD, layer: layer.into(), tensor, expected, got }.into()
}
