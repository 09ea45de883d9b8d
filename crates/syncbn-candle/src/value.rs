//! The types of numbers that candle and the backends share.

use bytemuck::Zeroable;
use candle_core::{CpuStorage, WithDType};
use syncbn_core::{Scalar, bf16, f16};

/// A type of numbers that tensors hold and kernels take.
pub(crate) trait Value: Scalar + WithDType + Zeroable + OnGpu {
    /// The vector of a storage of this type.
    fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>>;
}

/// What candle and cudarc ask of a type.
#[cfg(feature = "cuda")]
pub(crate) trait OnGpu:
    candle_core::cuda_backend::CudaDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr
{
}
#[cfg(feature = "cuda")]
impl<T> OnGpu for T where
    T: candle_core::cuda_backend::CudaDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr
{
}

#[cfg(not(feature = "cuda"))]
pub(crate) trait OnGpu {}
#[cfg(not(feature = "cuda"))]
impl<T> OnGpu for T {}

macro_rules! value {
    ($type:ty, $variant:ident) => {
        impl Value for $type {
            fn vec_mut(storage: &mut CpuStorage) -> Option<&mut Vec<Self>> {
                if let CpuStorage::$variant(values) = storage { Some(values) } else { None }
            }
        }
    };
}

value!(f16, F16);
value!(bf16, BF16);
value!(f32, F32);
value!(f64, F64);
value!(i64, I64);
