//! One layer's passes, as Python calls them: for the CPU or a CUDA device, with parameters of `f32` or `f64`.
//!
//! Deliberately not here: allocation. Every result is torch's memory, and given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use syncbn_core::{Config, Dtype, FunctionalBatchNorm, Operation, bf16, f16};
use syncbn_cpu::Cpu;
use syncbn_cuda::Cuda;
use syncbn_cuda::cudarc::driver::{CudaStream, sys::CUstreamCaptureStatus};

use crate::device::current_stream;
use crate::error::{Failure, Place, Refused, of_layer};
use crate::group::{Group, Members};
use crate::memory::{OnDevice, on_device};
use crate::passes::{self, Backward, Forward, Recompute, Running, UpdateRunning};
use crate::tensor::{Activations, activations, numbers, optional};
use crate::token::Token;

type Object<'py> = Bound<'py, PyAny>;

/// The passes of one layer in one group, on one device.
#[pyclass(frozen, module = "syncbn._syncbn")]
pub(crate) struct Layer {
    norm: OnDevice<Arc<Norm>>,
    kept: AtomicBool,
}

enum Norm {
    CpuF32(FunctionalBatchNorm<Cpu, f32>),
    CpuF64(FunctionalBatchNorm<Cpu, f64>),
    CudaF32(FunctionalBatchNorm<Cuda, f32>),
    CudaF64(FunctionalBatchNorm<Cuda, f64>),
}

/// What work is given to.
enum Queue {
    Cpu,
    Cuda(Arc<CudaStream>),
}

/// Does the same with whichever of the four it is.
macro_rules! any {
    ($norm:expr, $name:ident => $body:expr) => {
        match $norm {
            Norm::CpuF32($name) => $body,
            Norm::CpuF64($name) => $body,
            Norm::CudaF32($name) => $body,
            Norm::CudaF64($name) => $body,
        }
    };
}

/// Runs a pass for activations of the type that a call has.
macro_rules! pass {
    ($norm:expr, $queue:expr, $dtype:expr, $pass:ident, $args:expr) => {
        match ($norm, $queue, $dtype) {
            (Norm::CpuF32(norm), Queue::Cpu, Dtype::F32) => passes::$pass::<Cpu, f32>(norm, &(), $args),
            (Norm::CpuF32(norm), Queue::Cpu, Dtype::F16) => passes::$pass::<Cpu, f16>(norm, &(), $args),
            (Norm::CpuF32(norm), Queue::Cpu, Dtype::Bf16) => passes::$pass::<Cpu, bf16>(norm, &(), $args),
            (Norm::CpuF64(norm), Queue::Cpu, Dtype::F64) => passes::$pass::<Cpu, f64>(norm, &(), $args),
            (Norm::CudaF32(norm), Queue::Cuda(stream), dtype) => match dtype {
                Dtype::F32 => passes::$pass::<Cuda, f32>(norm, stream, $args),
                Dtype::F16 => passes::$pass::<Cuda, f16>(norm, stream, $args),
                Dtype::Bf16 => passes::$pass::<Cuda, bf16>(norm, stream, $args),
                got => Err(Refused::Activations { got, params: Dtype::F32 }.into()),
            },
            (Norm::CudaF64(norm), Queue::Cuda(stream), Dtype::F64) => {
                passes::$pass::<Cuda, f64>(norm, stream, $args)
            }
            (norm, _, got) => Err(Refused::Activations { got, params: norm.params() }.into()),
        }
    };
}

#[pymethods]
impl Layer {
    /// A layer of this name; `momentum` None is the cumulative average, `double` says that parameters are f64.
    #[new]
    #[pyo3(signature = (name, group, channels, *, eps, momentum, affine, track_running_stats, double))]
    #[allow(clippy::too_many_arguments)] // torch's arguments of a batch norm
    fn new(
        py: Python<'_>,
        name: &str,
        group: &Group,
        channels: usize,
        eps: f64,
        momentum: Option<f64>,
        affine: bool,
        track_running_stats: bool,
        double: bool,
    ) -> PyResult<Self> {
        let config = Config::new(channels)
            .with_eps(eps)
            .with_momentum(momentum)
            .with_affine(affine)
            .with_track_running_stats(track_running_stats);
        let made = match &*group.members {
            Members::Cpu(group) if double => {
                FunctionalBatchNorm::new(name, config, Cpu, &(), group.clone()).map(Norm::CpuF64)
            }
            Members::Cpu(group) => {
                FunctionalBatchNorm::new(name, config, Cpu, &(), group.clone()).map(Norm::CpuF32)
            }
            Members::Cuda(group, cuda) => {
                let (cuda, stream) = (cuda.clone(), current_stream(py, cuda)?);
                on_device(|| {
                    if double {
                        FunctionalBatchNorm::new(name, config, cuda, &stream, group.clone())
                            .map(Norm::CudaF64)
                    } else {
                        FunctionalBatchNorm::new(name, config, cuda, &stream, group.clone())
                            .map(Norm::CudaF32)
                    }
                })
            }
        };
        let norm = made.map_err(|error| of_layer(py, &error))?;
        Ok(Self { norm: OnDevice::new(Arc::new(norm)), kept: AtomicBool::new(false) })
    }

    /// Loads what passes over such an x need. A pass that has to load something may wait for whatever the device is doing.
    fn prepare(&self, py: Python<'_>, x: &Object<'_>) -> PyResult<()> {
        let read = || activations("x", x);
        self.run(py, Operation::Prepare, read, |queue, x: Activations| {
            let dtype = x.memory.dtype;
            pass!(&**self.norm, queue, dtype, prepare, &x)
        })
    }

    /// Writes y and what backward needs; moves the running statistics, where they are given.
    #[pyo3(signature = (x, y, weight, bias, running, saved, *, group))]
    #[allow(clippy::too_many_arguments)] // a pass has as many tensors
    #[allow(clippy::needless_pass_by_value)] // the interpreter's tuple is taken apart into it
    fn forward(
        &self,
        py: Python<'_>,
        x: &Object<'_>,
        y: &Object<'_>,
        weight: Option<&Object<'_>>,
        bias: Option<&Object<'_>>,
        running: Option<[Object<'_>; 3]>,
        saved: &Object<'_>,
        group: bool,
    ) -> PyResult<Token> {
        let read = || {
            Ok(Forward {
                x: activations("x", x)?,
                y: activations("y", y)?,
                weight: optional("weight", weight)?,
                bias: optional("bias", bias)?,
                running: running.as_ref().map(read_running).transpose()?,
                group,
                saved: numbers("saved", saved)?,
            })
        };
        let run = |queue: &Queue, args: Forward| {
            let dtype = args.x.memory.dtype;
            pass!(&**self.norm, queue, dtype, forward, args)
        };
        Ok(Token(self.run(py, Operation::Forward, read, run)?))
    }

    /// Writes y once more, with the statistics that a forward pass has saved. No rank is asked.
    #[allow(clippy::too_many_arguments)] // a pass has as many tensors
    fn recompute(
        &self,
        py: Python<'_>,
        x: &Object<'_>,
        y: &Object<'_>,
        weight: Option<&Object<'_>>,
        bias: Option<&Object<'_>>,
        saved: &Object<'_>,
        token: &Token,
    ) -> PyResult<()> {
        let read = || {
            Ok(Recompute {
                x: activations("x", x)?,
                y: activations("y", y)?,
                weight: optional("weight", weight)?,
                bias: optional("bias", bias)?,
                saved: numbers("saved", saved)?,
                token: token.0,
            })
        };
        self.run(py, Operation::Recompute, read, |queue, args: Recompute| {
            let dtype = args.x.memory.dtype;
            pass!(&**self.norm, queue, dtype, recompute, args)
        })
    }

    /// Moves the running statistics by what a forward pass has saved.
    #[allow(clippy::needless_pass_by_value)] // the interpreter's tuple is taken apart into it
    fn update_running(
        &self,
        py: Python<'_>,
        running: [Object<'_>; 3],
        saved: &Object<'_>,
        token: &Token,
    ) -> PyResult<()> {
        let read = || {
            Ok(UpdateRunning {
                running: read_running(&running)?,
                saved: numbers("saved", saved)?,
                token: token.0,
            })
        };
        self.run(py, Operation::UpdateRunning, read, |queue, args: UpdateRunning| {
            pass!(&**self.norm, queue, self.norm.params(), update_running, args)
        })
    }

    /// Writes the gradients that are given memory. Where the forward pass was the group's, so is this.
    #[allow(clippy::too_many_arguments)] // a pass has as many tensors
    fn backward(
        &self,
        py: Python<'_>,
        x: &Object<'_>,
        dy: &Object<'_>,
        dx: Option<&Object<'_>>,
        weight: Option<&Object<'_>>,
        d_weight: Option<&Object<'_>>,
        d_bias: Option<&Object<'_>>,
        saved: &Object<'_>,
        token: &Token,
    ) -> PyResult<()> {
        let read = || {
            Ok(Backward {
                x: activations("x", x)?,
                dy: activations("dy", dy)?,
                dx: dx.map(|dx| activations("dx", dx)).transpose()?,
                weight: optional("weight", weight)?,
                d_weight: optional("d_weight", d_weight)?,
                d_bias: optional("d_bias", d_bias)?,
                saved: numbers("saved", saved)?,
                token: token.0,
            })
        };
        self.run(py, Operation::Backward, read, |queue, args: Backward| {
            let dtype = args.x.memory.dtype;
            pass!(&**self.norm, queue, dtype, backward, args)
        })
    }

    /// The name that errors show.
    #[getter]
    fn name(&self) -> &str {
        any!(&**self.norm, norm => norm.name())
    }
}

fn read_running([mean, var, num_batches_tracked]: &[Object<'_>; 3]) -> Result<Running, Failure> {
    Ok(Running {
        mean: numbers("running_mean", mean)?,
        var: numbers("running_var", var)?,
        num_batches_tracked: numbers("num_batches_tracked", num_batches_tracked)?,
    })
}

impl Layer {
    /// Reads the arguments, and runs a pass with them without the interpreter's lock.
    fn run<A: Send, R: Send>(
        &self,
        py: Python<'_>,
        operation: Operation,
        read: impl FnOnce() -> Result<A, Failure>,
        pass: impl FnOnce(&Queue, A) -> Result<R, Failure> + Send,
    ) -> PyResult<R> {
        let queue = match &**self.norm {
            Norm::CpuF32(_) | Norm::CpuF64(_) => Queue::Cpu,
            Norm::CudaF32(norm) => Queue::Cuda(current_stream(py, norm.backend())?),
            Norm::CudaF64(norm) => Queue::Cuda(current_stream(py, norm.backend())?),
        };
        let run = |args| match &queue {
            Queue::Cpu => pass(&queue, args),
            Queue::Cuda(stream) => on_device(|| {
                self.keep(stream);
                pass(&queue, args)
            }),
        };
        let run = read().and_then(|args| py.detach(|| run(args)));
        run.map_err(|failure| {
            let (rank, world_size) = self.norm.place();
            let operation = &operation.to_string();
            failure.at(py, &Place { operation, layer: Some(self.name()), rank, world_size })
        })
    }

    /// A graph that is captured may be replayed for as long as the process lives, with this layer's scratch and group.
    fn keep(&self, stream: &CudaStream) {
        let none = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let captures =
            !self.kept.load(Ordering::Relaxed) && stream.capture_status().is_ok_and(|status| status != none);
        if captures && !self.kept.swap(true, Ordering::Relaxed) {
            std::mem::forget(Arc::clone(&self.norm));
        }
    }
}

impl Norm {
    fn params(&self) -> Dtype {
        match self {
            Self::CpuF32(_) | Self::CudaF32(_) => Dtype::F32,
            Self::CpuF64(_) | Self::CudaF64(_) => Dtype::F64,
        }
    }

    fn place(&self) -> (usize, usize) {
        any!(self, norm => (norm.group().rank(), norm.group().world_size().get()))
    }
}
