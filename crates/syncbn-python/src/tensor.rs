//! Torch's tensors, read through their Python interface and checked, so that a pass trusts them.
//!
//! A call has some ten tensors and takes some ten microseconds, so nothing is asked twice here.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyTuple, PyType};
use syncbn_core::{Dtype, Geometry, MAX_AXES, ShapeError};

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
struct Torch {
    tensor: Py<PyType>,
    parameter: Py<PyType>,
    dtypes: [(Py<PyAny>, Dtype); 5],
}

impl Torch {
    fn get(py: Python<'_>) -> PyResult<&Self> {
        static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
        TORCH.get_or_try_init(py, || {
            let torch = py.import("torch")?;
            let dtype = |name: &str, dtype| Ok::<_, PyErr>((torch.getattr(name)?.unbind(), dtype));
            Ok(Self {
                tensor: torch.getattr("Tensor")?.cast_into::<PyType>()?.unbind(),
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

    fn is_tensor(&self, object: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (exact, py) = (object.get_type_ptr(), object.py());
        let is = |class: &Py<PyType>| class.bind(py).as_type_ptr() == exact;
        Ok(is(&self.tensor) || is(&self.parameter) || object.is_instance(self.tensor.bind(py))?)
    }
}

/// A tensor of activations or their gradient. One in neither order of memory is refused with its strides when a pass needs it.
pub(crate) fn activations(name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Activations, Failure> {
    let py = tensor.py();
    let mut memory = memory(name, tensor)?;
    let mut sizes = [0_usize; MAX_AXES];
    let shape = tensor.getattr(intern!(py, "shape"))?.cast_into::<PyTuple>().map_err(PyErr::from)?;
    let axes = shape.len();
    let geometry = if axes > MAX_AXES {
        Err(ShapeError::Axes { shape: shape.extract()? })
    } else {
        for (size, axis) in sizes.iter_mut().zip(shape.iter_borrowed()) {
            *size = axis.extract()?;
        }
        let sizes = sizes.get(..axes).unwrap_or_default();
        if is_true(tensor, intern!(py, "is_contiguous"))? {
            Geometry::channels_first(sizes)
        } else {
            let strides: Vec<isize> = tensor.call_method0(intern!(py, "stride"))?.extract()?;
            Geometry::strided(sizes, &strides, 1)
        }
    };
    memory.len = geometry.as_ref().map_or(0, Geometry::len);
    memory.check(name)?;
    Ok(Activations { memory, geometry })
}

/// Numbers side by side: parameters, running statistics, what a forward pass saves.
pub(crate) fn numbers(name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Memory, Failure> {
    let mut memory = memory(name, tensor)?;
    let py = tensor.py();
    if !is_true(tensor, intern!(py, "is_contiguous"))? {
        return Err(Refused::Gaps { name }.into());
    }
    memory.len = tensor.call_method0(intern!(py, "numel"))?.extract()?;
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

/// All but the length.
fn memory(name: &'static str, tensor: &Bound<'_, PyAny>) -> Result<Memory, Failure> {
    let py = tensor.py();
    let torch = Torch::get(py)?;
    if !torch.is_tensor(tensor)? {
        return Err(Refused::NoTensor { name, got: tensor.get_type().name()?.to_string() }.into());
    }
    let dtype = tensor.getattr(intern!(py, "dtype"))?;
    let known = torch.dtypes.iter().find(|(known, _)| known.is(&dtype));
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
    if is_true(tensor, intern!(py, "is_neg"))? {
        return Err(Refused::Lazy { name }.into());
    }
    // Wrapped tensors (fake ones, those of vmap) raise here.
    let pointer = tensor.call_method0(intern!(py, "data_ptr")).map_err(|_| Refused::NoMemory { name })?;
    let pointer = pointer.extract()?;
    Ok(Memory { pointer, len: 0, dtype, place })
}

fn is_true(tensor: &Bound<'_, PyAny>, method: &Bound<'_, pyo3::types::PyString>) -> PyResult<bool> {
    tensor.call_method0(method)?.is_truthy()
}
