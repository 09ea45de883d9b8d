//! What a device must be able to do: the porting guide.
//!
//! A backend is memory types, a scratch type and four [`Kernels`]:
//!
//! ```text
//! moments   -> [sum over the ranks] -> normalize      forward
//! grad_sums -> [sum over the ranks] -> grad_input     backward
//! ```
//!
//! # Who checks what
//!
//! Core checks every argument before it calls a kernel: shapes agree, memory is long enough, there is at least one
//! channel. Kernels trust that and check nothing again. What only the backend can know (another device's memory, a limit of
//! the device) the backend checks, and returns as its own error. Kernels must accept tensors without elements, whose sums are
//! zeros, so that an empty rank takes part like any other.
//!
//! # What may wait
//!
//! Kernels only enqueue work and never wait for the device. Work given to one queue runs in order. [`Backend::read`] and
//! [`Backend::read_message`] wait for the queue; nothing else does. A backend may keep what its kernels enqueue until
//! [`Backend::flush`], which ends every pass.
//!
//! # What a failed kernel leaves behind
//!
//! A kernel that returns an error has enqueued nothing, and has written neither running statistics nor saved ones.
//!
//! # Nothing is ignored
//!
//! Arguments are plain structs and enums: take them apart without `..` and match without `_`. A new meaning never arrives as one
//! more field of them, but as a trait or a provided method that a backend declares.

use std::error::Error;

use crate::message::Pass;
use crate::scalar::{Dtype, Scalar};

pub use crate::kernels::{
    Grad, GradInputArgs, GradSource, GradSumsArgs, Kernels, MomentsArgs, NormalizeArgs, RunningMut, Source,
};
pub use crate::meeting::{BackwardArgs, ForwardArgs, Gradients, Meeting, PassError};

/// The 8-byte words of what a forward pass saves for its backward pass.
///
/// They are `[mean | var | invstd | count]`: one `f64` per channel each, `var` biased, and the number of elements per channel
/// over all ranks, 0 where the statistics were given. A backend whose device has no `f64` keeps a form of its own in the same
/// number of words, and says so.
#[must_use]
pub const fn saved_len(channels: usize) -> usize {
    channels.saturating_mul(3).saturating_add(1)
}

/// A device: its memory, and the scratch that a pass needs on it. A value is a handle, cheap to clone.
pub trait Backend: Clone + Send + Sync + 'static {
    /// What work is given to: a CUDA stream, a wgpu queue, `()` for a CPU.
    type Queue;
    /// The scratch of a pass: the per-channel sums of one rank and then of the group. Layers keep theirs and use them again.
    type Workspace: Send;
    /// Owned device memory of [`saved_len`] words.
    type Saved: Send + Sync;
    /// What lets kernels read and write their peers' memory ([`Meeting::Inside`]);
    /// [`Infallible`](std::convert::Infallible) where there is no such thing.
    type Peers: Send;
    /// Memory borrowed from the caller to be read.
    type Mem<'a, T: Scalar>;
    /// Memory borrowed from the caller to be written.
    type MemMut<'a, T: Scalar>;
    /// What can go wrong on the device.
    type Error: Error + Send + Sync + 'static;

    /// The number of elements that can be read.
    fn mem_len<T: Scalar>(mem: &Self::Mem<'_, T>) -> usize;
    /// The number of elements that can be written.
    fn mem_mut_len<T: Scalar>(mem: &Self::MemMut<'_, T>) -> usize;
    /// The same memory, borrowed for a shorter time.
    fn reborrow<'s, T: Scalar>(mem: &'s Self::Mem<'_, T>) -> Self::Mem<'s, T>;
    /// The same memory, borrowed for a shorter time.
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut Self::MemMut<'_, T>) -> Self::MemMut<'s, T>;
    /// The same memory, to be read for a while.
    fn as_mem<'s, T: Scalar>(mem: &'s Self::MemMut<'_, T>) -> Self::Mem<'s, T>;
    /// Memory of no elements.
    fn empty<'a, T: Scalar>() -> Self::Mem<'a, T>;
    /// Memory of no elements.
    fn empty_mut<'a, T: Scalar>() -> Self::MemMut<'a, T>;

    /// Waits for the queue and copies the memory out, to as many values.
    fn read<T: Scalar>(
        &self,
        queue: &Self::Queue,
        mem: Self::Mem<'_, T>,
        values: &mut [T],
    ) -> Result<(), Self::Error>;
    /// Overwrites the memory with as many values, in the order of the queue. The values may be dropped as soon as this returns.
    fn write<T: Scalar>(
        &self,
        queue: &Self::Queue,
        mem: Self::MemMut<'_, T>,
        values: &[T],
    ) -> Result<(), Self::Error>;

    /// Scratch for passes of this many channels; `params` is the type of the parameters, which the message's form depends on
    /// ([`Pass::message_len`]).
    fn workspace(
        &self,
        queue: &Self::Queue,
        channels: usize,
        params: Dtype,
    ) -> Result<Self::Workspace, Self::Error>;
    /// Room for what one forward pass of `channels` channels saves. A backend whose allocation waits for the device keeps a pool.
    fn saved(&self, queue: &Self::Queue, channels: usize) -> Result<Self::Saved, Self::Error>;
    /// Borrows the [`saved_len`] words to be read.
    fn saved_mem(saved: &Self::Saved) -> Self::Mem<'_, f64>;
    /// Borrows the [`saved_len`] words to be written.
    fn saved_mem_mut(saved: &mut Self::Saved) -> Self::MemMut<'_, f64>;

    /// Waits for the queue, then writes this rank's sums to `message`, which has [`Pass::message_len`] elements. It is called
    /// by [`ViaHost`](crate::ViaHost) only.
    fn read_message(
        &self,
        queue: &Self::Queue,
        pass: Pass,
        workspace: &mut Self::Workspace,
        message: &mut [f64],
    ) -> Result<(), Self::Error>;
    /// Takes over the group's sums from a message in the same form. It is called by [`ViaHost`](crate::ViaHost) only,
    /// and may return before the device has them.
    fn write_message(
        &self,
        queue: &Self::Queue,
        pass: Pass,
        workspace: &mut Self::Workspace,
        message: &[f64],
    ) -> Result<(), Self::Error>;

    /// Gives what the kernels have recorded to the device. Core calls it once at the end of every pass, so that a backend
    /// whose device takes work in batches can submit a pass in one piece (and before it waits, in
    /// [`Backend::read_message`]). A backend whose kernels enqueue at once leaves this as it is.
    fn flush(&self, queue: &Self::Queue) -> Result<(), Self::Error> {
        let _ = queue;
        Ok(())
    }
}

/// Memory that a layer owns on the device: parameters and running statistics.
pub trait Storage: Backend {
    /// Owned device memory.
    type Buffer<T: Scalar>: Send + Sync;

    /// New memory with these values. The values may be dropped as soon as this returns.
    fn upload<T: Scalar>(&self, queue: &Self::Queue, values: &[T]) -> Result<Self::Buffer<T>, Self::Error>;
    /// Borrows the memory to be read.
    fn mem<T: Scalar>(buffer: &Self::Buffer<T>) -> Self::Mem<'_, T>;
    /// Borrows the memory to be written.
    fn mem_mut<T: Scalar>(buffer: &mut Self::Buffer<T>) -> Self::MemMut<'_, T>;
}
