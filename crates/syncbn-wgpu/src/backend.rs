//! The core's traits, each method one call into the file of its name.

use syncbn_core::backend::{GradInputArgs, GradSumsArgs, NormalizeArgs};
use syncbn_core::{Backend, Geometry, Kernels, Pass, Scalar, Storage, View, bf16, f16};

use crate::device::Wgpu;
use crate::error::WgpuError;
use crate::memory::{Buffer, Mem, MemMut, values_of};
use crate::module::{Kernel, Key};
use crate::plan::{Plan, Work};
use crate::queue::Queue;
use crate::workspace::{Saved, Sums};
use crate::{grad_input, grad_sums, moments, normalize};

impl Backend for Wgpu {
    type Queue = Queue;
    type Sums = Sums;
    type Saved = Saved;
    type Mem<'a, T: Scalar> = Mem<'a, T>;
    type MemMut<'a, T: Scalar> = MemMut<'a, T>;
    type Error = WgpuError;

    fn mem_len<T: Scalar>(mem: &Mem<'_, T>) -> usize {
        mem.len
    }
    fn mem_mut_len<T: Scalar>(mem: &MemMut<'_, T>) -> usize {
        mem.len
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

    fn sums(&self, queue: &Queue, channels: usize) -> Result<Sums, WgpuError> {
        queue.check(self.gpu())?;
        Sums::new(self.gpu(), channels)
    }
    fn saved(&self, queue: &Queue, channels: usize) -> Result<Saved, WgpuError> {
        queue.check(self.gpu())?;
        self.pool().take(self.gpu(), channels)
    }

    fn read_sums(
        &self,
        queue: &Queue,
        pass: Pass,
        sums: &Sums,
        message: &mut [f64],
    ) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        sums.read(self.gpu(), queue, pass, message)
    }
    fn write_sums(
        &self,
        queue: &Queue,
        pass: Pass,
        sums: &mut Sums,
        message: &[f64],
    ) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        sums.write(queue, pass, message)
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
    fn write<T: Scalar>(&self, queue: &Queue, buffer: &mut Buffer<T>, values: &[T]) -> Result<(), WgpuError> {
        queue.check(self.gpu())?;
        queue.write(buffer.inner(), &buffer.bytes_for(values)?)
    }
    fn download<T: Scalar>(&self, queue: &Queue, buffer: &Buffer<T>) -> Result<Vec<T>, WgpuError> {
        queue.check(self.gpu())?;
        let size = buffer.inner().size();
        let staging = self.gpu().staging(size)?;
        queue.read(buffer.inner(), &staging, size, |bytes| values_of(bytes, buffer.len()))
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
            fn prepare(&self, queue: &Queue, geometry: &Geometry) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                for (kernel, work) in [
                    (Kernel::Moments, Work::Sum),
                    (Kernel::Normalize, Work::Write),
                    (Kernel::GradSums, Work::Sum),
                    (Kernel::GradInput { in_place: false }, Work::Write),
                    (Kernel::GradInput { in_place: true }, Work::Write),
                ] {
                    let plan = Plan::new(geometry, size_of::<$type>(), self.gpu().parallelism(), work)?;
                    self.gpu().module(self.key::<$type>(kernel, plan.form))?;
                }
                for kernel in [Kernel::Statistics, Kernel::GradientTerms] {
                    self.gpu().module(Key::per_channel(kernel))?;
                }
                self.saved(queue, geometry.channels()).map(drop)
            }

            fn moments(
                &self,
                queue: &Queue,
                x: View<'_, Self, $type>,
                out: &mut Sums,
            ) -> Result<(), WgpuError> {
                queue.check(self.gpu())?;
                moments::enqueue(self, queue, &x, out)
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
