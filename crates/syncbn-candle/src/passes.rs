//! The kernels' calls: every tensor is borrowed, and what is new is allocated here.

use candle_core::backend::BackendStorage;
use candle_core::op::BackpropOp;
use candle_core::{DType, Result, Tensor};
use syncbn_core::functional::{self, Statistics as CoreStatistics};
use syncbn_core::{
    Backend, Element, ErrorKind, FunctionalBatchNorm, Gradients, Kernels, Operation, SavedRef,
    SavedStatistics, Stage, Tensor as Role, View, ViewMut, bf16, f16,
};

use crate::device::{Given, OnDevice, of_storage};
use crate::error::{Error, of_layer};
use crate::op::{Backward, ParamGrads, Passes, Statistics, Use};
use crate::value::Value;

impl<B: OnDevice> Use<B> {
    pub(crate) fn forward(
        &self,
        x: Given<'_, B>,
        weight: Given<'_, B>,
        bias: Given<'_, B>,
    ) -> Result<B::Memory> {
        match (&*self.passes, x.0.dtype()) {
            (Passes::F32(layer), DType::F32) => self.forward_as::<f32>(layer, x, weight, bias),
            (Passes::F32(layer), DType::F16) => self.forward_as::<f16>(layer, x, weight, bias),
            (Passes::F32(layer), DType::BF16) => self.forward_as::<bf16>(layer, x, weight, bias),
            (Passes::F64(layer), DType::F64) => self.forward_as::<f64>(layer, x, weight, bias),
            (passes, got) => Err(unfit(passes, "forward", got)),
        }
    }

    fn forward_as<T>(
        &self,
        layer: &FunctionalBatchNorm<B, T::Param>,
        x: Given<'_, B>,
        weight: Given<'_, B>,
        bias: Given<'_, B>,
    ) -> Result<B::Memory>
    where
        T: Element<Param: Value> + Value,
        B: Kernels<T>,
    {
        let queue = B::queue(x.0);
        let bad = |tensor| {
            move |source| of_layer(layer.error(Operation::Forward, ErrorKind::Shape { tensor, source }))
        };
        let geometry = self.geometry(x.1.shape()).map_err(bad(Role::X))?;
        let (mut memory, lent);
        let mut y = B::make::<T>(x.0, geometry.len())?;
        let view = View::new(B::lend::<T>(x.0, x.1, &queue)?, geometry).map_err(bad(Role::X))?;
        let view_mut = ViewMut::new(B::lend_new(&mut y, &queue), geometry).map_err(bad(Role::Y))?;
        let weight = optional::<B, T::Param>(self.call.has_weight, weight, &queue)?;
        let bias = optional::<B, T::Param>(self.call.has_bias, bias, &queue)?;
        let slot = B::slot(&self.call.saved);
        if let Some(saved) = slot.get() {
            let saved = SavedRef { token: *saved.token(), mem: saved.mem() };
            let args = functional::Recompute::new(saved, view, view_mut).affine(weight, bias);
            layer.recompute::<T>(&queue, args).map_err(of_layer)?;
        } else {
            let allocated = layer.backend().saved(&queue, layer.config().channels);
            memory =
                allocated.map_err(|source| of_layer(layer.error(Operation::Forward, allocation(source))))?;
            let statistics = match &self.call.statistics {
                Statistics::Group => CoreStatistics::Group { running: None },
                Statistics::Local => CoreStatistics::Local,
                Statistics::Frozen { mean, var } => {
                    lent = [mean.storage_and_layout(), var.storage_and_layout()];
                    let [(mean, mean_layout), (var, var_layout)] = &lent;
                    let mean = B::lend::<T::Param>(of_storage::<B>(mean)?, mean_layout, &queue)?;
                    let var = B::lend(of_storage::<B>(var)?, var_layout, &queue)?;
                    CoreStatistics::Frozen { mean, var }
                }
            };
            let args = functional::Forward::new(view, view_mut, statistics, B::saved_mem_mut(&mut memory))
                .affine(weight, bias);
            let token = layer.forward::<T>(&queue, args).map_err(of_layer)?;
            slot.get_or_init(|| SavedStatistics::from_parts(token, memory));
        }
        Ok(B::finish(y, x.0))
    }
}

impl<B: OnDevice> Backward<B> {
    pub(crate) fn backward(
        &self,
        x: Given<'_, B>,
        dy: Given<'_, B>,
        weight: Given<'_, B>,
    ) -> Result<(B::Memory, ParamGrads)> {
        match (&*self.used.passes, x.0.dtype()) {
            (Passes::F32(layer), DType::F32) => self.backward_as::<f32>(layer, x, dy, weight),
            (Passes::F32(layer), DType::F16) => self.backward_as::<f16>(layer, x, dy, weight),
            (Passes::F32(layer), DType::BF16) => self.backward_as::<bf16>(layer, x, dy, weight),
            (Passes::F64(layer), DType::F64) => self.backward_as::<f64>(layer, x, dy, weight),
            (passes, got) => Err(unfit(passes, "backward", got)),
        }
    }

    fn backward_as<T>(
        &self,
        layer: &FunctionalBatchNorm<B, T::Param>,
        x: Given<'_, B>,
        dy: Given<'_, B>,
        weight: Given<'_, B>,
    ) -> Result<(B::Memory, ParamGrads)>
    where
        T: Element<Param: Value> + Value,
        B: Kernels<T>,
    {
        let (queue, beside) = (B::queue(x.0), x.0);
        let bad = |tensor| {
            move |source| of_layer(layer.error(Operation::Backward, ErrorKind::Shape { tensor, source }))
        };
        let Some(saved) = B::slot(&self.used.call.saved).get() else {
            return Err(Error::NothingSaved { operation: "backward", layer: layer.name().into() }.into());
        };
        let geometry = self.used.geometry(x.1.shape()).map_err(bad(Role::X))?;
        let mut dx = B::make::<T>(beside, if self.wants.x { geometry.len() } else { 0 })?;
        let new = |wanted: bool| wanted.then(|| B::make::<T::Param>(beside, geometry.channels())).transpose();
        let (mut d_weight, mut d_bias) = (new(self.wants.weight)?, new(self.wants.bias)?);

        let x = View::new(B::lend::<T>(x.0, x.1, &queue)?, geometry).map_err(bad(Role::X))?;
        let dy_geometry = self.used.geometry(dy.1.shape()).map_err(bad(Role::Dy))?;
        let dy = View::new(B::lend::<T>(dy.0, dy.1, &queue)?, dy_geometry).map_err(bad(Role::Dy))?;
        let gradients = if self.wants.x {
            let dx = ViewMut::new(B::lend_new(&mut dx, &queue), geometry).map_err(bad(Role::Dx))?;
            Gradients::OutOfPlace { dy, dx }
        } else {
            Gradients::ParametersOnly { dy }
        };
        let saved = SavedRef { token: *saved.token(), mem: saved.mem() };
        let args = functional::Backward::new(saved, x, gradients)
            .weight(optional::<B, T::Param>(self.used.call.has_weight, weight, &queue)?)
            .parameters(
                d_weight.as_mut().map(|grad| B::lend_new(grad, &queue)),
                d_bias.as_mut().map(|grad| B::lend_new(grad, &queue)),
            );
        layer.backward::<T>(&queue, args).map_err(of_layer)?;

        let tensor = |grad: B::New<T::Param>| {
            let storage = B::wrap(B::finish(grad, beside));
            Tensor::from_storage(storage, geometry.channels(), BackpropOp::none(), false)
        };
        let grads = ParamGrads { weight: d_weight.map(tensor), bias: d_bias.map(tensor) };
        Ok((B::finish(dx, beside), grads))
    }
}

fn optional<'a, B: OnDevice, P: Value>(
    is_there: bool,
    (memory, layout): Given<'a, B>,
    queue: &'a B::Queue,
) -> Result<Option<B::Mem<'a, P>>> {
    is_there.then(|| B::lend(memory, layout, queue)).transpose()
}

fn unfit<B: Backend>(passes: &Passes<B>, operation: &'static str, got: DType) -> candle_core::Error {
    let expected = match passes {
        Passes::F32(_) => "f32, f16 or bf16, as the parameters are f32",
        Passes::F64(_) => "f64, as the parameters are",
    };
    Error::Dtype { operation, layer: passes.name().into(), tensor: "x", expected, got }.into()
}

fn allocation(source: impl std::error::Error + Send + Sync + 'static) -> ErrorKind {
    ErrorKind::Backend { stage: Stage::Allocation, source: Box::new(source) }
}
