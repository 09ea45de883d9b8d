//! The implementations of core's traits. Each kernel is in the file of its name.

use std::convert::Infallible;

use syncbn_core::backend::{GradInputArgs, GradSumsArgs, MomentsArgs, NormalizeArgs};
use syncbn_core::{Backend, Dtype, Geometry, Kernels, Pass, Scalar, Storage, bf16, f16};

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::memory::{Buffer, Mem, MemMut};
use crate::queue::Queue;
use crate::workspace::{Saved, Workspace};
use crate::{copy, grad_input, grad_sums, message, moments, normalize};

impl Backend for Wgpu {
    type Queue = Queue;
    type Workspace = Workspace;
    type Saved = Saved;
    type Peers = Infallible;
    type Mem<'a, T: Scalar> = Mem<'a, T>;
    type MemMut<'a, T: Scalar> = MemMut<'a, T>;
    type Error = WgpuError;

    fn mem_len<T: Scalar>(mem: &Mem<'_, T>) -> usize {
        mem.len()
    }
    fn mem_mut_len<T: Scalar>(mem: &MemMut<'_, T>) -> usize {
        mem.len()
    }
    fn reborrow<'s, T: Scalar>(mem: &'s Mem<'_, T>) -> Mem<'s, T> {
        mem.reborrow()
    }
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut MemMut<'_, T>) -> MemMut<'s, T> {
        mem.reborrow_mut()
    }
    fn as_mem<'s, T: Scalar>(mem: &'s MemMut<'_, T>) -> Mem<'s, T> {
        mem.as_mem()
    }

    fn empty<'a, T: Scalar>() -> Mem<'a, T> {
        Mem::empty()
    }
    fn empty_mut<'a, T: Scalar>() -> MemMut<'a, T> {
        MemMut::empty()
    }

    fn read<T: Scalar>(&self, queue: &Queue, mem: Mem<'_, T>, values: &mut [T]) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        copy::read(self.gpu(), queue, &mem, values)
    }
    /// Waits for the device if the memory ends in the middle of a 4-byte word: wgpu copies whole words, so the other half is read first.
    fn write<T: Scalar>(&self, queue: &Queue, mem: MemMut<'_, T>, values: &[T]) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        copy::write(self.gpu(), queue, &mem, values)
    }

    fn workspace(&self, queue: &Queue, channels: usize, params: Dtype) -> Result<Workspace, WgpuError> {
        queue.check(self.gpu())?;
        Workspace::new(self.gpu(), channels, params)
    }
    fn saved(&self, queue: &Queue, channels: usize) -> Result<Saved, WgpuError> {
        queue.check(self.gpu())?;
        self.pool().take(self.gpu(), channels)
    }
    fn saved_mem(saved: &Saved) -> Mem<'_, f64> {
        saved.mem()
    }
    fn saved_mem_mut(saved: &mut Saved) -> MemMut<'_, f64> {
        saved.mem_mut()
    }

    fn read_message(
        &self,
        queue: &Queue,
        pass: Pass,
        workspace: &mut Workspace,
        message: &mut [f64],
    ) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        message::read(self.gpu(), queue, pass, workspace, message)
    }
    fn write_message(
        &self,
        queue: &Queue,
        pass: Pass,
        workspace: &mut Workspace,
        message: &[f64],
    ) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        message::write(self.gpu(), queue, pass, workspace, message)
    }

    fn flush(&self, queue: &Queue) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        queue.flush()
    }
}

impl Storage for Wgpu {
    type Buffer<T: Scalar> = Buffer<T>;

    fn upload<T: Scalar>(&self, queue: &Queue, values: &[T]) -> Result<Buffer<T>, WgpuError> {
        queue.check(self.gpu())?;
        Buffer::upload(self.device(), values)
    }
    fn mem<T: Scalar>(buffer: &Buffer<T>) -> Mem<'_, T> {
        buffer.mem()
    }
    fn mem_mut<T: Scalar>(buffer: &mut Buffer<T>) -> MemMut<'_, T> {
        buffer.mem_mut()
    }
}

macro_rules! kernels {
    ($($type:ty),*) => {$(
        impl Kernels<$type> for Wgpu {
            /// Compiles the kernels, and puts one set of saved statistics into the pool.
            fn prepare(&self, queue: &Queue, geometry: &Geometry, _: bool) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                self.compile::<$type>(geometry)?;
                self.saved(queue, geometry.channels()).map(drop)
            }

            fn moments(&self, queue: &Queue, args: MomentsArgs<'_, Self, $type>) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                moments::enqueue(self, queue, args)
            }
            fn normalize(&self, queue: &Queue, args: NormalizeArgs<'_, Self, $type>) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                normalize::enqueue(self, queue, args)
            }
            fn grad_sums(&self, queue: &Queue, args: GradSumsArgs<'_, Self, $type>) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                grad_sums::enqueue(self, queue, args)
            }
            fn grad_input(&self, queue: &Queue, args: GradInputArgs<'_, Self, $type>) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                grad_input::enqueue(self, queue, args)
            }
        }
    )*};
}

kernels!(f32, f16, bf16);
