//! The passes on candle's CPU memory: every tensor is borrowed, and what is new is allocated here.

use bytemuck::Zeroable;
use candle_core::{CpuStorage, Device, Layout, Result, Storage, Tensor, WithDType};
use syncbn_core::functional::{self, Statistics as CoreStatistics};
use syncbn_core::{
    Element, ErrorKind, FunctionalBatchNorm, Gradients, Kernels, Operation, Param, SavedRef, SavedStatistics,
    ShapeError, View, ViewMut, bf16, f16, saved_len,
};
use syncbn_cpu::Cpu;

use crate::error::{Error, of_layer};
use crate::memory::slice;
use crate::op::{Backward, ParamGrads, Passes, Statistics, Use};

/// A tensor as candle gives it to an operation.
type Given<'a> = (&'a CpuStorage, &'a Layout);

impl Use {
    pub(crate) fn forward_cpu(&self, x: Given<'_>, weight: Given<'_>, bias: Given<'_>) -> Result<CpuStorage> {
        match (&*self.passes, x.0) {
            (Passes::F32(layer), CpuStorage::F32(_)) => self.forward_as::<f32>(layer, x, weight, bias),
            (Passes::F32(layer), CpuStorage::F16(_)) => self.forward_as::<f16>(layer, x, weight, bias),
            (Passes::F32(layer), CpuStorage::BF16(_)) => self.forward_as::<bf16>(layer, x, weight, bias),
            (Passes::F64(layer), CpuStorage::F64(_)) => self.forward_as::<f64>(layer, x, weight, bias),
            (passes, x) => Err(unfit(passes, "forward", x)),
        }
    }

    fn forward_as<T>(
        &self,
        layer: &FunctionalBatchNorm<Cpu, T::Param>,
        x: Given<'_>,
        weight: Given<'_>,
        bias: Given<'_>,
    ) -> Result<CpuStorage>
    where
        T: Element<Param: WithDType> + WithDType + Zeroable,
        Cpu: Kernels<T>,
    {
        let shape_error = |source| bad_shape(layer, Operation::Forward, source);
        let geometry = self.geometry(x.1.shape()).map_err(shape_error)?;
        let mut y = bytemuck::zeroed_vec::<T>(geometry.len());
        let view = View::new(slice::<T>(x.0, x.1)?, geometry).map_err(shape_error)?;
        let view_mut = ViewMut::new(&mut y[..], geometry).map_err(shape_error)?;
        let weight = optional::<T::Param>(self.has_weight, weight)?;
        let bias = optional::<T::Param>(self.has_bias, bias)?;
        if let Some(saved) = self.saved.0.get() {
            let saved = SavedRef { token: *saved.token(), mem: saved.mem() };
            let args = functional::Recompute::new(saved, view, view_mut).affine(weight, bias);
            layer.recompute::<T>(&(), args).map_err(of_layer)?;
        } else {
            let mut memory = vec![0.0; saved_len(layer.config().channels)];
            let lent;
            let statistics = match &self.statistics {
                Statistics::Group => CoreStatistics::Group { running: None },
                Statistics::Local => CoreStatistics::Local,
                Statistics::Frozen { mean, var } => {
                    lent = [mean.storage_and_layout(), var.storage_and_layout()];
                    let [(mean, mean_layout), (var, var_layout)] = &lent;
                    let mean = slice::<T::Param>(on_cpu(mean)?, mean_layout)?;
                    CoreStatistics::Frozen { mean, var: slice(on_cpu(var)?, var_layout)? }
                }
            };
            let args =
                functional::Forward::new(view, view_mut, statistics, &mut memory[..]).affine(weight, bias);
            let token = layer.forward::<T>(&(), args).map_err(of_layer)?;
            self.saved.0.get_or_init(|| SavedStatistics::from_parts(token, memory));
        }
        Ok(T::to_cpu_storage_owned(y))
    }
}

impl Backward {
    pub(crate) fn backward_cpu(
        &self,
        x: Given<'_>,
        dy: Given<'_>,
        weight: Given<'_>,
    ) -> Result<(CpuStorage, ParamGrads)> {
        match (&*self.used.passes, x.0) {
            (Passes::F32(layer), CpuStorage::F32(_)) => self.backward_as::<f32>(layer, x, dy, weight),
            (Passes::F32(layer), CpuStorage::F16(_)) => self.backward_as::<f16>(layer, x, dy, weight),
            (Passes::F32(layer), CpuStorage::BF16(_)) => self.backward_as::<bf16>(layer, x, dy, weight),
            (Passes::F64(layer), CpuStorage::F64(_)) => self.backward_as::<f64>(layer, x, dy, weight),
            (passes, x) => Err(unfit(passes, "backward", x)),
        }
    }

    fn backward_as<T>(
        &self,
        layer: &FunctionalBatchNorm<Cpu, T::Param>,
        x: Given<'_>,
        dy: Given<'_>,
        weight: Given<'_>,
    ) -> Result<(CpuStorage, ParamGrads)>
    where
        T: Element<Param: WithDType> + WithDType + Zeroable,
        Cpu: Kernels<T>,
    {
        let shape_error = |source| bad_shape(layer, Operation::Backward, source);
        let Some(saved) = self.used.saved.0.get() else {
            return Err(Error::NothingSaved { operation: "backward", layer: layer.name().into() }.into());
        };
        let geometry = self.used.geometry(x.1.shape()).map_err(shape_error)?;
        let mut dx = bytemuck::zeroed_vec::<T>(if self.wants.x { geometry.len() } else { 0 });
        let zeros = |wanted: bool| wanted.then(|| vec![T::Param::default(); geometry.channels()]);
        let (mut d_weight, mut d_bias) = (zeros(self.wants.weight), zeros(self.wants.bias));

        let x = View::new(slice::<T>(x.0, x.1)?, geometry).map_err(shape_error)?;
        let dy_geometry = self.used.geometry(dy.1.shape()).map_err(shape_error)?;
        let dy = View::new(slice::<T>(dy.0, dy.1)?, dy_geometry).map_err(shape_error)?;
        let gradients = if self.wants.x {
            Gradients::OutOfPlace { dy, dx: ViewMut::new(&mut dx[..], geometry).map_err(shape_error)? }
        } else {
            Gradients::ParametersOnly { dy }
        };
        let saved = SavedRef { token: *saved.token(), mem: saved.mem() };
        let args = functional::Backward::new(saved, x, gradients)
            .weight(optional::<T::Param>(self.used.has_weight, weight)?)
            .parameters(d_weight.as_deref_mut(), d_bias.as_deref_mut());
        layer.backward::<T>(&(), args).map_err(of_layer)?;

        let tensor = |grad: Option<Vec<T::Param>>| {
            grad.map(|grad| Tensor::from_vec(grad, geometry.channels(), &Device::Cpu)).transpose()
        };
        Ok((T::to_cpu_storage_owned(dx), ParamGrads { weight: tensor(d_weight)?, bias: tensor(d_bias)? }))
    }
}

fn optional<P: WithDType>(is_there: bool, (storage, layout): Given<'_>) -> Result<Option<&[P]>> {
    is_there.then(|| slice(storage, layout)).transpose()
}

fn on_cpu(storage: &Storage) -> Result<&CpuStorage> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        other => Err(candle_core::Error::DeviceMismatchBinaryOp {
            lhs: candle_core::DeviceLocation::Cpu,
            rhs: other.device().location(),
            op: "sync-batch-norm",
        }),
    }
}

fn unfit(passes: &Passes<Cpu>, operation: &'static str, x: &CpuStorage) -> candle_core::Error {
    let expected = match passes {
        Passes::F32(_) => "f32, f16 or bf16, as the parameters are f32",
        Passes::F64(_) => "f64, as the parameters are",
    };
    let (layer, tensor, got) = (passes.name().into(), "x", candle_core::backend::BackendStorage::dtype(x));
    Error::Dtype { operation, layer, tensor, expected, got }.into()
}

fn bad_shape<P: Param>(
    layer: &FunctionalBatchNorm<Cpu, P>,
    operation: Operation,
    source: ShapeError,
) -> candle_core::Error {
    let (rank, world_size) = (layer.group().rank(), layer.group().world_size().get());
    let kind = Box::new(ErrorKind::Shape { tensor: syncbn_core::Tensor::X, source });
    of_layer(syncbn_core::Error { operation, layer: layer.name().into(), rank, world_size, kind })
}
