//! The native half of syncbn for `PyTorch`, the Python module `syncbn._syncbn`.
//!
//! Nothing of libtorch is linked: what crosses the border is a tensor's address, shape, strides and type, and the address of
//! the current CUDA stream. `tensor.rs` asks torch for them, through `dlpack.rs` where it can, and checks them; `memory.rs` makes
//! memory of them. All unsafe code is in `dlpack.rs` and `memory.rs`. The interpreter's lock is released while a pass runs.
//!
//! Deliberately not here: autograd, modules, and torch's process groups, which are the Python half's.

#![deny(unsafe_code)]

mod device;
#[allow(unsafe_code)]
mod dlpack;
mod error;
mod forked;
mod group;
mod layer;
#[allow(unsafe_code)]
mod memory;
mod passes;
mod tensor;
mod token;

use pyo3::pymodule;

/// The native half of syncbn.
#[pymodule]
mod _syncbn {
    #[pymodule_export]
    use super::group::{Group, nccl_id};
    #[pymodule_export]
    use super::layer::Layer;
    #[pymodule_export]
    use super::token::Token;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
