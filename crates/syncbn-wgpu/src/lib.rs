//! The wgpu backend of syncbn: GPUs of any maker, through Vulkan, Metal and DX12, for `f32`, `f16` and `bf16` activations.
//!
//! - Callers give parts of [`wgpu::Buffer`]s on their own device and queue ([`Wgpu::new`], [`Mem::new`]); nothing is copied. What
//!   kernels need besides is allocated once for a layer, and compiled once for a device.
//! - WGSL has no `f64`. Chains of about a hundred elements are summed in `f32`, shifted by their first, and merged in pairs of
//!   `f32`; the messages between ranks are `f64` and take form on the host. A device whose compiler breaks the arithmetic of
//!   pairs is refused when it is opened.
//! - Halves are packed two to a word, by shifts or the language's own functions: no feature of the adapter is needed.
//! - A pass records its kernels and submits them once; one that asks other ranks submits twice. [`Queue::hold`] joins several.
//! - Numbers below 2^-40 and above 2^40 are taken times a power of two, so that squares neither vanish nor overflow, and
//!   subnormal `f32` and `bf16` are numbers even where the device flushes them.
//!
//! Deliberately not here: autograd; subgroup operations, since the kernels wait for memory and not for their sums; and
//! `f64` activations.

#![forbid(unsafe_code)]

mod backend;
mod device;
pub mod error;
mod grad_input;
mod grad_sums;
mod lost;
mod memory;
mod module;
mod moments;
mod normalize;
mod probe;
mod queue;
mod scope;
mod scratch;
mod statistics;
mod tile;

pub use device::Wgpu;
pub use error::WgpuError;
pub use memory::{Buffer, Mem, MemMut};
pub use queue::Queue;
pub use scratch::{Saved, Sums};
pub use wgpu;
