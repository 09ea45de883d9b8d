//! The traits of a device, and the contract between core and a backend.
//!
//! A backend is memory, scratch and four [`Kernels`]. A communicator sums a few numbers per channel between them:
//!
//! ```text
//! moments   -> [sum over the ranks] -> normalize      forward
//! grad_sums -> [sum over the ranks] -> grad_input     backward
//! ```
//!
//! Core has everything else: the order of these steps, the checks of arguments, state, and errors with their context.
//! `docs/adding-a-backend.md` in the repository builds a working backend of some 220 lines, and `syncbn-testkit` tests one against
//! all laws in one line.
//!
//! # The first reading: a backend that computes nothing
//!
//! This is everything that a backend must have. It compiles and runs:
//!
//! ```
#![doc = include_str!("../examples/noop_backend.rs")]
//! ```
//!
//! # Who checks what
//!
//! Core checks every argument before it calls a kernel. A kernel may rely on this, and checks none of it again:
//!
//! - x, y, dy and dx of one call have the same [`Geometry`](crate::Geometry), and their memory is long enough;
//! - there is at least one channel; vectors have one value per channel, the counter has one value;
//! - eps is finite and positive, momentum is from 0 to 1;
//! - saved statistics have [`saved_len`] words, and their token is of this layer, this group and this geometry;
//! - a workspace was made for this number of channels and type of parameters, and no other pass is using it.
//!
//! What only the backend can know, it checks by itself, and returns as its own [`Backend::Error`]: memory of another device, a limit of
//! the device, exhausted memory. Core does not check that x and y are different memory: the types of borrowed memory
//! have to make sure of it, as `&[T]` and `&mut [T]` do, or the backend does.
//!
//! The memory of a tensor may be longer than the tensor. What lies beyond [`Geometry::len`](crate::Geometry::len) elements is not to be
//! written. A tensor may have no elements: an empty rank takes part in the collective with sums of zero, and its running statistics
//! are updated like those of every rank. Memory of no elements may come from [`Backend::empty`].
//!
//! # What may wait
//!
//! A kernel enqueues work on the queue and returns. It does not wait for the device. Work on one queue runs in the order in which it
//! was enqueued. These wait, and nothing else does:
//!
//! - [`Backend::read`] and [`Backend::read_message`], for the queue;
//! - [`Backend::write`], [`Storage::upload`] and [`Backend::write_message`], only as long as they need the host's values, which may be
//!   dropped when the call returns;
//! - a communicator in host memory, for the other ranks.
//!
//! A backend may keep enqueued work back until [`Backend::flush`], which core calls at the end of every pass.
//!
//! # What work may still use after a call
//!
//! Arguments are borrowed for the call, and enqueued work runs after it. The backend's memory types have to keep memory alive until then:
//! they share ownership of it, or memory is freed in the order of the queue. A workspace goes back to the layer when the call
//! returns, and the next pass may get it while work of the last one is still enqueued. On one queue the order makes this safe. If
//! a layer may be used on several queues, the backend orders them, for workspaces, saved statistics and a layer's buffers.
//!
//! # What a failed kernel leaves behind
//!
//! A kernel that returns an error has enqueued nothing and has written neither running statistics nor saved statistics. y, dx and
//! parameters' gradients may have any values after a failed pass. So, for each step that fails:
//!
//! | step | what the caller finds |
//! |---|---|
//! | `moments`, `grad_sums` | nothing was sent; running statistics unchanged; the group works, and the call may be repeated |
//! | the sum, before `normalize` was enqueued | running statistics unchanged; the group is poisoned, unless nothing was sent ([`Unsent`](crate::CommErrorKind::Unsent)) |
//! | the sum of a device-native communicator, noticed later | running statistics may be wrong ([`late`](crate::CommError::late)); the layer refuses use until a state is loaded |
//! | `normalize`, `grad_input`, `flush` | the other ranks have the sum and go on, so core poisons the group |
//! | any step of a pass whose ranks meet inside its kernels ([`Meeting::Inside`]) | peers may have this rank's sums, so core poisons the group |
//!
//! This is why running statistics are written by `normalize`, after the sum. An error that the device reports only later (a lost
//! device) comes from whichever call sees it first.
//!
//! # Trait by trait
//!
//! **[`Backend`]: memory.** [`Backend::Mem`] and [`Backend::MemMut`] are what your callers hold, borrowed: a slice, a buffer with a range.
//! Nothing is copied. A part of a buffer is memory like any other, so a kernel starts where the part does. Core never
//! looks into memory; it asks for its length, and passes it on.
//!
//! **[`Backend`]: scratch and saved statistics.** [`Backend::Workspace`] has this rank's sums, and then the group's, in any form that suits the
//! device. A layer keeps workspaces and uses them again. [`Backend::Saved`] has [`saved_len`] words of 8 bytes, which leave the
//! layer: a framework may keep them in its graph, copy them to the host and back, and pass them to the backward pass.
//!
//! **[`Backend`]: messages.** [`Backend::read_message`] and [`Backend::write_message`] turn the workspace into the form that communicators
//! in host memory add ([`Pass`]), and back. Only [`ViaHost`](crate::ViaHost) calls them. A device-native communicator reads the
//! workspace itself, and belongs to its backend's crate.
//!
//! **[`Kernels<T>`]**, for each type of activations that the device has. A kernel is told everything in its arguments: plain
//! structs and enums, which anyone can make, so that a kernel can be tested alone. [`View::mem`](crate::View::mem) and
//! [`ViewMut::mem_mut`](crate::ViewMut::mem_mut) are the memory of a tensor. Take arguments apart without `..`, and match without
//! `_`: a new variant then does not compile until it is handled. The formulas of one channel are in
//! [`statistics`](crate::statistics); a kernel on the host calls them, one on a device restates them.
//!
//! **[`Kernels::forward`] and [`Kernels::backward`]** are whole passes, which are provided: two kernels, with the sum between
//! them as [`Meeting`] says. A backend that gains from it overrides them, for a rank alone or for kernels that sum in their peers'
//! memory, and leaves every other [`Meeting`] to [`forward_by_kernels`](crate::meeting::forward_by_kernels) and
//! [`backward_by_kernels`](crate::meeting::backward_by_kernels). With [`Meeting::Between`] core returns an error if a backend leaves out
//! the sum ([`SumLeftOut`](crate::ErrorKind::SumLeftOut)) or asks for it twice; into kernels that sum it cannot see.
//!
//! **[`Storage`]**: memory that a layer owns. [`SyncBatchNorm`](crate::SyncBatchNorm) needs it for parameters and running statistics;
//! [`FunctionalBatchNorm`](crate::FunctionalBatchNorm) does not.

use std::error::Error;

use crate::message::Pass;
use crate::scalar::{Dtype, Scalar};

pub use crate::kernels::{
    Grad, GradInputArgs, GradSource, GradSumsArgs, Kernels, MomentsArgs, NormalizeArgs, RunningMut, Source,
};
pub use crate::meeting::{BackwardArgs, ForwardArgs, Gradients, Meeting, PassError};

/// How many 8-byte words a forward pass saves for its backward pass: 3 C + 1.
///
/// They are `[mean | var | invstd | count]`, each an `f64`: C means, C biased variances, C values of `1 / sqrt(var + eps)`, and the
/// number of elements per channel over all ranks. The count is 0 for frozen statistics, and all words are 0 if no rank has an element. A
/// backend whose device has no `f64` keeps another form in as many words, and documents it.
///
/// ```
/// assert_eq!(syncbn_core::saved_len(64), 193);
/// ```
#[must_use]
pub const fn saved_len(channels: usize) -> usize {
    channels.saturating_mul(3).saturating_add(1)
}

/// A device: its memory, and the scratch that a pass needs on it. The module's documentation has [the contract](self).
///
/// A value is a handle that is cheap to clone.
///
/// # Errors
///
/// Methods fail with [`Backend::Error`], for what only the device can know. A method that fails has enqueued nothing.
#[allow(clippy::missing_errors_doc, reason = "what the trait says holds for each method")]
pub trait Backend: Clone + Send + Sync + 'static {
    /// What work is enqueued on: a CUDA stream, a wgpu queue, `()` if calls do their work before they return.
    type Queue;
    /// The scratch of a pass: the sums per channel of this rank, and then of the group. Layers keep theirs and use them again.
    type Workspace: Send;
    /// Owned device memory of [`saved_len`] words.
    type Saved: Send + Sync;
    /// What kernels need to read and write their peers' memory ([`Meeting::Inside`]);
    /// [`Infallible`](std::convert::Infallible) if the backend has no such kernels.
    type Peers: Send;
    /// Borrowed memory to read.
    type Mem<'a, T: Scalar>;
    /// Borrowed memory to write.
    type MemMut<'a, T: Scalar>;
    /// What can fail on the device. Arguments that core has checked never do.
    type Error: Error + Send + Sync + 'static;

    /// The number of elements that can be read.
    fn mem_len<T: Scalar>(mem: &Self::Mem<'_, T>) -> usize;
    /// The number of elements that can be written.
    fn mem_mut_len<T: Scalar>(mem: &Self::MemMut<'_, T>) -> usize;
    /// The same memory, borrowed for a shorter time.
    fn reborrow<'s, T: Scalar>(mem: &'s Self::Mem<'_, T>) -> Self::Mem<'s, T>;
    /// The same memory, borrowed for a shorter time.
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut Self::MemMut<'_, T>) -> Self::MemMut<'s, T>;
    /// The same memory, borrowed to be read.
    fn as_mem<'s, T: Scalar>(mem: &'s Self::MemMut<'_, T>) -> Self::Mem<'s, T>;
    /// Memory of no elements.
    fn empty<'a, T: Scalar>() -> Self::Mem<'a, T>;
    /// Memory of no elements.
    fn empty_mut<'a, T: Scalar>() -> Self::MemMut<'a, T>;

    /// Waits for the queue and copies the memory to the host. `values` has as many elements as `mem`.
    fn read<T: Scalar>(
        &self,
        queue: &Self::Queue,
        mem: Self::Mem<'_, T>,
        values: &mut [T],
    ) -> Result<(), Self::Error>;
    /// Overwrites the memory, in the order of the queue. `values` has as many elements as `mem`, and may be dropped when this returns.
    fn write<T: Scalar>(
        &self,
        queue: &Self::Queue,
        mem: Self::MemMut<'_, T>,
        values: &[T],
    ) -> Result<(), Self::Error>;

    /// Scratch for passes of this many channels. `params` is the type of the parameters, on which the length of the message depends
    /// ([`Pass::message_len`]).
    fn workspace(
        &self,
        queue: &Self::Queue,
        channels: usize,
        params: Dtype,
    ) -> Result<Self::Workspace, Self::Error>;
    /// Memory for what one forward pass saves. Called once a pass by [`SyncBatchNorm`](crate::SyncBatchNorm), so a backend whose allocation
    /// waits for the device keeps a pool.
    fn saved(&self, queue: &Self::Queue, channels: usize) -> Result<Self::Saved, Self::Error>;
    /// Borrows the [`saved_len`] words to be read.
    fn saved_mem(saved: &Self::Saved) -> Self::Mem<'_, f64>;
    /// Borrows the [`saved_len`] words to be written.
    fn saved_mem_mut(saved: &mut Self::Saved) -> Self::MemMut<'_, f64>;

    /// Waits for the queue, and writes this rank's sums to `message`, in the form that [`Pass`] describes. `message` has
    /// [`Pass::message_len`] elements. Called by [`ViaHost`](crate::ViaHost) only.
    fn read_message(
        &self,
        queue: &Self::Queue,
        pass: Pass,
        workspace: &mut Self::Workspace,
        message: &mut [f64],
    ) -> Result<(), Self::Error>;
    /// Replaces this rank's sums by the group's, which `message` has in the same form. Called by [`ViaHost`](crate::ViaHost) only. May
    /// return before the device has the sums, but not before it has read `message`.
    fn write_message(
        &self,
        queue: &Self::Queue,
        pass: Pass,
        workspace: &mut Self::Workspace,
        message: &[f64],
    ) -> Result<(), Self::Error>;

    /// Submits what kernels have recorded. Core calls it once at the end of every pass.
    ///
    /// For devices that take work in batches; such a backend also submits before it waits, in [`Backend::read`] and
    /// [`Backend::read_message`]. What is provided does nothing, for kernels that enqueue at once.
    fn flush(&self, queue: &Self::Queue) -> Result<(), Self::Error> {
        let _ = queue;
        Ok(())
    }
}

/// Memory that a layer owns on the device: parameters and running statistics. [`SyncBatchNorm`](crate::SyncBatchNorm) needs it.
#[allow(clippy::missing_errors_doc, reason = "what `Backend` says of errors holds here")]
pub trait Storage: Backend {
    /// Owned device memory.
    type Buffer<T: Scalar>: Send + Sync;

    /// New memory with these values, which may be dropped when this returns.
    fn upload<T: Scalar>(&self, queue: &Self::Queue, values: &[T]) -> Result<Self::Buffer<T>, Self::Error>;
    /// Borrows all of it to be read.
    fn mem<T: Scalar>(buffer: &Self::Buffer<T>) -> Self::Mem<'_, T>;
    /// Borrows all of it to be written.
    fn mem_mut<T: Scalar>(buffer: &mut Self::Buffer<T>) -> Self::MemMut<'_, T>;
}
