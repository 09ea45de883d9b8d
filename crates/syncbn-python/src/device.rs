//! CUDA devices, each opened once for the process, and torch's current stream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use syncbn_cuda::cudarc::driver::CudaStream;
use syncbn_cuda::{Cuda, CudaError};

use crate::memory;
use crate::tensor::Torch;

/// The device of this ordinal.
pub(crate) fn open(ordinal: usize) -> Result<Cuda, CudaError> {
    static OPEN: Mutex<Option<HashMap<usize, Cuda>>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    if let Some(cuda) = open.get(&ordinal) {
        return Ok(cuda.clone());
    }
    let cuda = memory::on_device(|| Cuda::open(ordinal))?;
    open.insert(ordinal, cuda.clone());
    Ok(cuda)
}

/// The stream that torch gives work on this device to, in this thread.
pub(crate) fn current_stream(py: Python<'_>, cuda: &Cuda) -> PyResult<Arc<CudaStream>> {
    let address = Torch::get(py)?.current_stream(py, cuda.context().ordinal())?;
    Ok(memory::stream(cuda, address))
}
