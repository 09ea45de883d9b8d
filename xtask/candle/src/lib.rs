//! A program with candle on CUDA and this project's CUDA backend, as far as a type check sees it: both use one cudarc, with the
//! features of both.

use candle_core::CudaDevice;
use syncbn_cuda::{Cuda, CudaError};

/// The backend on candle's device: its context is candle's.
pub fn beside(device: &CudaDevice) -> Result<Cuda, CudaError> {
    Cuda::new(device.cuda_stream().context().clone())
}
