//! Ranks as threads, drawn tensors, and batch norm's formula in candle's own operations.

use std::num::NonZeroUsize;
use std::time::Duration;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use syncbn_candle::{Group, SyncBatchNorm, SyncBatchNormConfig, sync_batch_norm};
use syncbn_comm::threads;

use crate::place::device;

/// What `body` returns on each rank of a new group.
pub(crate) fn ranks<R: Send>(world_size: usize, body: impl Fn(&Group) -> Result<R> + Sync) -> Vec<R> {
    let timeout = Duration::from_secs(120);
    let world_size = NonZeroUsize::new(world_size).unwrap();
    let results = threads::run(world_size, timeout, |comm| body(&Group::via_host(comm)));
    results.unwrap().into_iter().map(Result::unwrap).collect()
}

pub(crate) fn alone() -> Group {
    Group::single_rank()
}

/// A layer with variables of its own.
pub(crate) fn layer(
    channels: usize,
    config: impl Into<SyncBatchNormConfig>,
    dtype: DType,
    group: &Group,
) -> Result<(VarMap, SyncBatchNorm)> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, dtype, &device());
    let layer = sync_batch_norm(channels, config, vb.pp("bn1"), group)?;
    Ok((vars, layer))
}

/// Numbers of mean 0.5 and variance 3, the same for the same seed, as the type has them.
pub(crate) fn drawn(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(seed);
    let values = (0..shape.iter().product()).map(|_| 6.0 * rng.f64() - 2.5).collect::<Vec<f64>>();
    there(&Tensor::from_vec(values, shape, &Device::Cpu).unwrap(), dtype)
}

pub(crate) fn wide(tensor: &Tensor) -> Tensor {
    if tensor.elem_count() == 0 {
        return Tensor::zeros(tensor.shape(), DType::F64, tensor.device()).unwrap();
    }
    tensor.to_dtype(DType::F64).unwrap()
}

/// These values on the device. They are cast here: candle's CUDA casts to few types, and nothing that has no elements.
pub(crate) fn there(values: &Tensor, dtype: DType) -> Tensor {
    values.to_dtype(dtype).unwrap().to_device(&device()).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    wide(&tensor.to_device(&Device::Cpu).unwrap()).flatten_all().unwrap().to_vec1().unwrap()
}

/// Mean and biased variance per channel, of shape (1, C, 1, ...).
pub(crate) fn moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let others: Vec<usize> = (0..x.rank()).filter(|&axis| axis != 1).collect();
    let mean = x.mean_keepdim(&others[..])?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(&others[..])?;
    Ok((mean, var))
}

/// One value per channel, as a tensor that broadcasts over x.
pub(crate) fn per_channel(values: &Tensor, rank: usize) -> Result<Tensor> {
    let mut shape = vec![1; rank];
    shape[1] = values.elem_count();
    values.reshape(shape)
}

/// `(x - mean) / sqrt(var + eps) weight + bias` of the whole batch.
pub(crate) fn formula(x: &Tensor, affine: Option<(&Tensor, &Tensor)>, eps: f64) -> Result<Tensor> {
    let (mean, var) = moments(x)?;
    let normal = x.broadcast_sub(&mean)?.broadcast_div(&(var + eps)?.sqrt()?)?;
    let Some((weight, bias)) = affine else { return Ok(normal) };
    normal.broadcast_mul(&per_channel(weight, x.rank())?)?.broadcast_add(&per_channel(bias, x.rank())?)
}

/// The largest difference, relative to the largest value.
pub(crate) fn difference(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.dims(), expected.dims());
    let (got, expected) = (values(got), values(expected));
    let size = expected.iter().fold(f64::MIN_POSITIVE, |size, value| size.max(value.abs()));
    let far = |(got, expected): (&f64, &f64)| (got - expected).abs();
    // A NaN is as far as can be.
    let far = got.iter().zip(&expected).map(far).fold(0.0, |max: f64, d| if d <= max { max } else { d });
    far / size
}
