#![doc = include_str!("../README.md")]
//! # What holds
//!
//! - Sums, messages and saved statistics are `f64`. Chains of at most 64 elements have the squares of their differences from
//!   their first summed in `f32` (`f64` for `f64` activations), `f32` elements themselves in `f64`, and are merged in `f64`. No float atomics: every run gives the same bits.
//! - From compute capability 9.0 on, a kernel that writes y or dx is launched to start before the kernel that sums has ended
//!   (programmatic dependent launch, in captured graphs too, from driver 12.3 on): it reads as much as shared memory has room
//!   for, and waits by itself for the sums.
//! - From a call to its return the host never waits for the device, and allocates nothing once a shape has been seen on a
//!   stream: a step can be captured in a CUDA graph, in [`allow_capture`].
//! - Memory may be used on any stream: what is enqueued waits, on the device, for what other streams do with it. For memory of
//!   cudarc's, cudarc's events say so; for raw pointers the caller does.
//! - Squares of `f32`, `f16` and `bf16` data have to fit an `f32`: differences of 1e19 within 64 neighbours are out of range.
//!
//! `raw` is the only module with unsafe code.
//!
//! Ranks meet on their devices through [`nccl`], one device to a rank, or in host memory through
//! [`ViaHost`](syncbn_core::ViaHost), any number of ranks to a device.
//!
//! Deliberately not here: autograd, streams of our own, and any launch but the four kernels.

#![deny(unsafe_code)]

mod access;
mod backend;
mod cache;
mod device;
pub mod error;
mod grad_input;
mod grad_sums;
mod kernel;
mod meet;
mod memory;
mod module;
mod moments;
pub mod nccl;
mod normalize;
pub mod peers;
mod plan;
#[allow(unsafe_code)]
mod raw;
mod workspace;

pub use backend::compile_all;
pub use cudarc;
pub use device::Cuda;
pub use error::CudaError;
pub use memory::Buffer;
pub use raw::capture::allow_capture;
pub use raw::memory::{Mem, MemMut, allocate};
pub use workspace::{Saved, Workspace};
