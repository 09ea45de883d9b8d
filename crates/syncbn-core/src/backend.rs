//! What a device must be able to do: the porting guide.
//!
//! A backend is memory types, two small scratch types and four kernels:
//!
//! ```text
//! moments   -> [all_reduce_sum] -> normalize      forward
//! grad_sums -> [all_reduce_sum] -> grad_input     backward
//! ```
//!
//! Core checks every argument before it calls a kernel: shapes agree, memory is long enough, there is at least one
//! channel. Kernels trust that and check nothing again. They must accept tensors without elements, whose sums are
//! zeros, so that an empty rank takes part like any other.
//!
//! Kernels only enqueue work and never wait for the device. Work given to one queue runs in order. A kernel that returns an
//! error has enqueued nothing. A backend may keep what its kernels enqueue until [`Backend::flush`], which ends every pass.
//!
//! Deliberately not here: the order of steps, the choice of statistics, running averages' formulas (those are in
//! [`statistics`](crate::statistics)), and errors about arguments.

use std::error::Error;

use crate::scalar::{Element, Scalar};
use crate::view::{View, ViewMut};

/// Which half of the step a message belongs to; it decides the message's length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// The message is `[m | m mean | M2 + m mean^2]`: 2 C + 1 numbers.
    Forward,
    /// The message is `[sum_dy | sum_dy_xmu]`: 2 C numbers.
    Backward,
}

impl Pass {
    /// The number of `f64` values that are summed over the ranks. It saturates, so that no message has the length that an
    /// impossible number of channels asks for.
    #[must_use]
    pub fn message_len(self, channels: usize) -> usize {
        match self {
            Self::Forward => channels.saturating_mul(2).saturating_add(1),
            Self::Backward => channels.saturating_mul(2),
        }
    }
}

impl std::fmt::Display for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        })
    }
}

/// A device: its memory, and the scratch that a layer needs on it. A value is a handle, cheap to clone.
pub trait Backend: Clone + Send + Sync + 'static {
    /// What work is given to: a CUDA stream, a wgpu queue, `()` for a CPU.
    type Queue;
    /// The per-channel sums of one rank and then of the group, on the device. A layer has one, and reuses it.
    type Sums: Send;
    /// The mean, `invstd` and count M of one forward, kept on the device for its backward.
    type Saved: Send + Sync;
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

    /// Room for the sums of `channels` channels: called once for a layer.
    fn sums(&self, queue: &Self::Queue, channels: usize) -> Result<Self::Sums, Self::Error>;
    /// Room for what one forward of `channels` channels keeps: called once for every forward that is not a
    /// recomputation. A backend whose allocation waits for the device keeps a pool.
    fn saved(&self, queue: &Self::Queue, channels: usize) -> Result<Self::Saved, Self::Error>;

    /// Waits for the queue, then writes the sums to `message` in the form that [`Pass`] describes. It is called by
    /// [`Staged`](crate::Staged) only; `message` has [`Pass::message_len`] elements.
    fn read_sums(
        &self,
        queue: &Self::Queue,
        pass: Pass,
        sums: &Self::Sums,
        message: &mut [f64],
    ) -> Result<(), Self::Error>;
    /// Takes over the group's sums from a message in the same form. It is called by [`Staged`](crate::Staged) only,
    /// and may return before the device has them.
    fn write_sums(
        &self,
        queue: &Self::Queue,
        pass: Pass,
        sums: &mut Self::Sums,
        message: &[f64],
    ) -> Result<(), Self::Error>;

    /// Gives what the kernels have recorded to the device. Core calls it once at the end of every pass, so that a backend
    /// whose device takes work in batches can submit a pass in one piece (and before it waits, in [`Backend::read_sums`]). A
    /// backend whose kernels enqueue at once leaves this as it is.
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
    /// Overwrites the buffer, in place, with as many values as it has. The values may be dropped as soon as this returns.
    fn write<T: Scalar>(
        &self,
        queue: &Self::Queue,
        buffer: &mut Self::Buffer<T>,
        values: &[T],
    ) -> Result<(), Self::Error>;
    /// Waits for the queue and copies the values out.
    fn download<T: Scalar>(
        &self,
        queue: &Self::Queue,
        buffer: &Self::Buffer<T>,
    ) -> Result<Vec<T>, Self::Error>;
    /// Borrows the memory to be read.
    fn mem<T: Scalar>(buffer: &Self::Buffer<T>) -> Self::Mem<'_, T>;
    /// Borrows the memory to be written.
    fn mem_mut<T: Scalar>(buffer: &mut Self::Buffer<T>) -> Self::MemMut<'_, T>;
}

/// The four kernels, for activations of one type. Which types a backend has is known at compile time.
pub trait Kernels<T: Element>: Backend {
    /// Compiles and allocates whatever tensors of this geometry need, so that later calls find nothing left to do.
    /// A backend that has nothing to prepare leaves this as it is.
    fn prepare(&self, queue: &Self::Queue, geometry: &crate::Geometry) -> Result<(), Self::Error> {
        let _ = (queue, geometry);
        Ok(())
    }

    /// Per channel, over this rank's elements: the count m, the mean, and M2 = sum (x - mean)^2.
    ///
    /// Reads `x` once. Must be as accurate at |mean|/std = 1e4 as at 0: accumulate in `f64`, or shifted by a sample
    /// of the channel in short chains merged by [`Moments::merge`](crate::statistics::Moments::merge).
    fn moments(
        &self,
        queue: &Self::Queue,
        x: View<'_, Self, T>,
        out: &mut Self::Sums,
    ) -> Result<(), Self::Error>;

    /// `y = (x - mean) invstd weight + bias`, with the statistics of [`NormalizeArgs::source`], which also says what
    /// else is to be written: the saved statistics and the running ones, once per call and even when `x` is empty.
    fn normalize(&self, queue: &Self::Queue, args: NormalizeArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// Per channel, over this rank's elements: `sum_dy` and `sum_dy_xmu = sum dy (x - mean)`, both to `out`, and
    /// `d_bias = sum_dy`, `d_weight = sum_dy_xmu invstd` where asked for. Reads `x` and `dy` once.
    fn grad_sums(&self, queue: &Self::Queue, args: GradSumsArgs<'_, Self, T>) -> Result<(), Self::Error>;

    /// `dx = weight invstd (dy - sum_dy / M - (x - mean) invstd^2 sum_dy_xmu / M)`; without sums, which means frozen
    /// statistics, `dx = weight invstd dy`. Reads `x` and `dy` once.
    fn grad_input(&self, queue: &Self::Queue, args: GradInputArgs<'_, Self, T>) -> Result<(), Self::Error>;
}

/// Arguments of [`Kernels::normalize`].
#[non_exhaustive]
pub struct NormalizeArgs<'a, B: Backend, T: Element> {
    /// The activations.
    pub x: View<'a, B, T>,
    /// The result, of the same geometry; never the same memory as `x`.
    pub y: ViewMut<'a, B, T>,
    /// The statistics to use, and what to update.
    pub source: Source<'a, B, T::Param>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
    /// The shift per channel; 0 where absent.
    pub bias: Option<B::Mem<'a, T::Param>>,
    /// Added to the variance under the root; finite and positive.
    pub eps: f64,
}

/// Where [`Kernels::normalize`] takes mean and variance from.
#[non_exhaustive]
pub enum Source<'a, B: Backend, P: Scalar> {
    /// The sums of a batch, finalised as [`statistics::Moments`](crate::statistics::Moments) describes.
    Batch {
        /// What [`Kernels::moments`] wrote, and the communicator summed if `group` is set.
        sums: &'a B::Sums,
        /// Set: the sums are the group's, `var = S2/M - mean^2`. Not set: this rank's alone, `var = M2/m`.
        group: bool,
        /// To be written: mean, `invstd`, M. With M = 0: zeros.
        saved: &'a mut B::Saved,
        /// To be updated, if present.
        running: Option<RunningMut<'a, B, P>>,
    },
    /// Fixed statistics, which count no elements.
    Frozen {
        /// The mean per channel.
        mean: B::Mem<'a, P>,
        /// The variance per channel.
        var: B::Mem<'a, P>,
        /// To be written: mean, `invstd`; M is 0.
        saved: &'a mut B::Saved,
    },
    /// What an earlier forward saved; nothing but y is written.
    Saved(&'a B::Saved),
}

/// Running statistics in borrowed memory, to be updated by [`statistics::Running`](crate::statistics::Running)'s rule.
pub struct RunningMut<'a, B: Backend, P: Scalar> {
    /// The running mean per channel.
    pub mean: B::MemMut<'a, P>,
    /// The running unbiased variance per channel.
    pub var: B::MemMut<'a, P>,
    /// How many batches were seen: one number. It and the channels are to be updated together or not at all.
    pub num_batches_tracked: B::MemMut<'a, i64>,
    /// The weight of the newest batch, 0..=1; `None`: the cumulative average, 1 / `num_batches_tracked`.
    pub momentum: Option<f64>,
}

impl<B: Backend, P: Scalar> RunningMut<'_, B, P> {
    /// The same statistics, borrowed for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> RunningMut<'_, B, P> {
        RunningMut {
            mean: B::reborrow_mut(&mut self.mean),
            var: B::reborrow_mut(&mut self.var),
            num_batches_tracked: B::reborrow_mut(&mut self.num_batches_tracked),
            momentum: self.momentum,
        }
    }
}

/// Arguments of [`Kernels::grad_sums`].
#[non_exhaustive]
pub struct GradSumsArgs<'a, B: Backend, T: Element> {
    /// The activations that forward read.
    pub x: View<'a, B, T>,
    /// The gradient of y, of the same geometry.
    pub dy: View<'a, B, T>,
    /// What forward saved.
    pub saved: &'a B::Saved,
    /// To be written, if present: this rank's gradient of the weight.
    pub d_weight: Option<B::MemMut<'a, T::Param>>,
    /// To be written, if present: this rank's gradient of the bias.
    pub d_bias: Option<B::MemMut<'a, T::Param>>,
    /// To be written: this rank's sums.
    pub out: &'a mut B::Sums,
}

/// Arguments of [`Kernels::grad_input`].
#[non_exhaustive]
pub struct GradInputArgs<'a, B: Backend, T: Element> {
    /// The activations that forward read.
    pub x: View<'a, B, T>,
    /// The gradients, of the same geometry.
    pub grad: Grad<'a, B, T>,
    /// What forward saved.
    pub saved: &'a B::Saved,
    /// The group's sums; `None` where the statistics were frozen.
    pub sums: Option<&'a B::Sums>,
    /// The scale per channel; 1 where absent.
    pub weight: Option<B::Mem<'a, T::Param>>,
}

/// The gradients that [`Kernels::grad_input`] reads and writes.
pub enum Grad<'a, B: Backend, T: Element> {
    /// dx goes to memory of its own.
    Apart {
        /// The gradient of y.
        dy: View<'a, B, T>,
        /// The gradient of x.
        dx: ViewMut<'a, B, T>,
    },
    /// dx overwrites dy, as the caller asked.
    InPlace(ViewMut<'a, B, T>),
}
