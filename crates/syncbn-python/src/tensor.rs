//! Torch's tensors, read through their Python interface and checked, so that a pass trusts them.
//!
//! A call has some ten tensors and takes some ten microseconds, so torch is asked once for each, where it can answer so (`dlpack.rs`).

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use syncbn_core::{Dtype, Geometry, ShapeError};

use crate::dlpack::Exchange;
use crate::error::{Failure, Refused};
use crate::memory::Memory;

/// Where a tensor's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Cpu,
    Cuda(usize),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("the CPU"),
            Self::Cuda(ordinal) => write!(f, "CUDA device {ordinal}"),
        }
    }
}

/// Memory with a shape, which is proven when a pass needs it: then the error has the layer's name.
pub(crate) struct Activations {
    pub(crate) memory: Memory,
    pub(crate) geometry: Result<Geometry, ShapeError>,
}

/// What is asked of torch at every call, looked up once.
pub(crate) struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    dtypes: [(Py<PyAny>, Dtype); 5],
    exchange: Option<Exchange>,
}

impl Torch {
    pub(crate) fn get(py: Python<'_>) -> PyResult<&Self> {
        static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
        TORCH.get_or_try_init(py, || {
            let torch = py.import("torch")?;
            let dtype = |name: &str, dtype| Ok::<_, PyErr>((torch.getattr(name)?.unbind(), dtype));
            let tensor = torch.getattr("Tensor")?.cast_into::<PyType>()?;
            Ok(Self {
                exchange: Exchange::of(&tensor)?,
                tensor: tensor.unbind(),
                parameter: py.import("torch.nn")?.getattr("Parameter")?.cast_into::<PyType>()?.unbind(),
                dtypes: [
                    dtype("float32", Dtype::F32)?,
                    dtype("float16", Dtype::F16)?,
                    dtype("bfloat16", Dtype::Bf16)?,
                    dtype("float64", Dtype::F64)?,
                    dtype("int64", Dtype::I64)?,
                ],
            })
        })
    }

    /// The address of the stream that work on this CUDA device is given to, in this thread.
    pub(crate) fn current_stream(&self, py: Python<'_>, ordinal: usize) -> PyResult<u64> {
        if let Some(exchange) = self.exchange {
            return exchange.current_stream(py, ordinal);
        }
        let module = py.import(intern!(py, "torch._C"))?;
        module.call_method1(intern!(py, "_cuda_getCurrentRawStream"), (ordinal,))?.extract()
    }

    /// Whether it is a tensor, and of no other class that may answer questions differently.
    fn is_plain(&self, object: &Bound<'_, PyAny>) -> bool {
        let (exact, py) = (object.get_type_ptr(), object.py());
        [&self.tensor, &self.parameter].iter().any(|class| class.bind(py).as_type_ptr() == exact)
    }

    /// By one question for each property.
    fn describe(&self, name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Described, Failure> {
        let py = tensor.py();
        if !self.is_plain(tensor) && !tensor.is_instance(self.tensor.bind(py))? {
            return Err(Refused::NoTensor { name, got: tensor.get_type().name()?.to_string() }.into());
        }
        let dtype = tensor.getattr(intern!(py, "dtype"))?;
        let known = self.dtypes.iter().find(|(known, _)| known.is(&dtype));
        let Some(&(_, dtype)) = known else {
            return Err(Refused::Dtype { name, got: dtype.to_string() }.into());
        };
        let place = if tensor.getattr(intern!(py, "is_cpu"))?.is_truthy()? {
            Place::Cpu
        } else if tensor.getattr(intern!(py, "is_cuda"))?.is_truthy()? {
            Place::Cuda(tensor.call_method0(intern!(py, "get_device"))?.extract()?)
        } else {
            let got = tensor.getattr(intern!(py, "device"))?.to_string();
            return Err(Refused::Device { name, got, expected: "the CPU or a CUDA device".into() }.into());
        };
        // Wrapped tensors (fake ones, those of vmap) raise here.
        let pointer = tensor.call_method0(intern!(py, "data_ptr")).map_err(|_| Refused::NoMemory { name })?;
        let pointer = pointer.extract()?;
        let sizes = tensor.getattr(intern!(py, "shape"))?.extract()?;
        let strides = tensor.call_method0(intern!(py, "stride"))?.extract()?;
        Ok(Described { memory: Memory { pointer, len: 0, dtype, place }, sizes, strides })
    }
}

/// A tensor's memory, without its length, and its shape and strides in elements.
pub(crate) struct Described {
    pub(crate) memory: Memory,
    pub(crate) sizes: Vec<usize>,
    pub(crate) strides: Vec<isize>,
}

/// A tensor of activations or their gradient. One in neither order of memory is refused with its strides when a pass needs it.
pub(crate) fn activations(name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Activations, Failure> {
    let Described { mut memory, sizes, strides } = describe(name, tensor)?;
    let geometry = Geometry::strided(&sizes, &strides, 1);
    memory.len = geometry.as_ref().map_or(0, Geometry::len);
    memory.check(name)?;
    Ok(Activations { memory, geometry })
}

/// Numbers side by side: parameters, running statistics, what a forward pass saves.
pub(crate) fn numbers(name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Memory, Failure> {
    let Described { mut memory, sizes, strides } = describe(name, tensor)?;
    memory.len = sizes.iter().product();
    let mut expected = 1;
    for (size, stride) in sizes.into_iter().zip(strides).rev() {
        if memory.len > 0 && size > 1 && usize::try_from(stride) != Ok(expected) {
            return Err(Refused::Gaps { name }.into());
        }
        expected *= size;
    }
    memory.check(name)?;
    Ok(memory)
}

/// [`numbers`] that may be left out.
pub(crate) fn optional(
    name: &'static str,
    tensor: Option<&Bound<'_, PyAny>>,
) -> Result<Option<Memory>, Failure> {
    tensor.map(|tensor| numbers(name, tensor)).transpose()
}

fn describe(name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Described, Failure> {
    let py = tensor.py();
    let torch = Torch::get(py)?;
    let described =
        torch.exchange.filter(|_| torch.is_plain(tensor)).and_then(|exchange| exchange.describe(tensor));
    let described = match described {
        Some(described) => described,
        // This also finds the words for what is wrong.
        None => torch.describe(name, tensor)?,
    };
    if tensor.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
        return Err(Refused::Lazy { name }.into());
    }
    Ok(described)
}
