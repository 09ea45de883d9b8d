#![doc = include_str!("../README.md")]
//! # What holds
//!
//! - Sums, messages and saved statistics are `f64`. A thread first adds up chains of at most 64 elements of a channel: their differences
//!   from the chain's first element, and the squares of these differences, in `f32` (in `f64` for `f64` activations). For `f32`
//!   activations it adds up the elements themselves, in `f64`, instead of the differences. The sums of all chains are added in `f64`.
//! - There are no atomics on floats: every run gives the same bits.
//! - From compute capability 9.0 on, a kernel that writes y or dx is launched to start before the kernel that sums has ended
//!   (programmatic dependent launch, in captured graphs too, from driver 12.3 on). It reads as much of its input as shared memory has
//!   room for, and then waits for the sums.
//! - A pass of a rank alone, or of ranks that meet inside the kernels, is one launch, if each block has whole channels and all blocks
//!   together have room in shared memory for what they read (up to 25 MB on an H100: x, or x and dy): each block reads its part once.
//! - A pass never waits for the device. It allocates nothing once a shape has been used on a stream. So a step can be captured in a CUDA
//!   graph, in [`allow_capture`].
//! - A layer's memory may be used on any stream: a pass waits, on the device, for uses on other streams. cudarc's memory is ordered by
//!   cudarc's events, and raw pointers by the caller.
//! - Squares of `f32`, `f16` and `bf16` data have to fit an `f32`: differences of 1e19 within 64 neighbours are out of range.
//!
//! `raw` is the only module with unsafe code.
//!
//! Ranks with a device each sum over NCCL ([`nccl`]), or inside the kernels ([`peers`]). Several ranks of one device sum in host memory
//! ([`ViaHost`](syncbn_core::ViaHost)).
//!
//! Deliberately not here: autograd, and streams, which are the caller's.

#![deny(unsafe_code)]
#![warn(clippy::missing_errors_doc)]

mod access;
mod backend;
mod backward;
mod cache;
mod device;
pub mod error;
mod forward;
mod grad_input;
mod grad_sums;
mod kernel;
mod meet;
mod memory;
mod module;
mod moments;
pub mod nccl;
mod normalize;
mod one_launch;
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
pub use raw::driver::has_driver;
pub use raw::memory::{Mem, MemMut, allocate};
pub use workspace::{Saved, Workspace};
