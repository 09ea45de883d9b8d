//! The core's traits, each method one call into the file of its name.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::backend::{GradInputArgs, GradSumsArgs, NormalizeArgs};
use syncbn_core::{Backend, Element, Geometry, Kernels, Pass, Scalar, Storage, View};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::raw::memory::{Buffer, Mem, MemMut};
use crate::scratch::{Saved, Sums};
use crate::tile::Plan;
use crate::{grad_input, grad_sums, moments, normalize};

impl Backend for Cuda {
    type Queue = Arc<CudaStream>;
    type Sums = Sums;
    type Saved = Saved;
    type Mem<'a, T: Scalar> = Mem<'a, T>;
    type MemMut<'a, T: Scalar> = MemMut<'a, T>;
    type Error = CudaError;

    fn mem_len<T: Scalar>(mem: &Mem<'_, T>) -> usize {
        mem.place.len
    }
    fn mem_mut_len<T: Scalar>(mem: &MemMut<'_, T>) -> usize {
        mem.place.len
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

    fn sums(&self, queue: &Arc<CudaStream>, channels: usize) -> Result<Sums, CudaError> {
        self.check_queue(queue)?;
        Sums::new(self, queue, channels)
    }

    fn saved(&self, queue: &Arc<CudaStream>, channels: usize) -> Result<Saved, CudaError> {
        self.check_queue(queue)?;
        self.pool().take(queue, channels)
    }

    fn read_sums(
        &self,
        queue: &Arc<CudaStream>,
        _pass: Pass,
        sums: &Sums,
        message: &mut [f64],
    ) -> Result<(), CudaError> {
        sums.check(queue)?;
        sums.scratch.read(queue, message)
    }

    fn write_sums(
        &self,
        queue: &Arc<CudaStream>,
        _pass: Pass,
        sums: &mut Sums,
        message: &[f64],
    ) -> Result<(), CudaError> {
        sums.check(queue)?;
        sums.scratch.write(queue, message)
    }
}

impl Storage for Cuda {
    type Buffer<T: Scalar> = Buffer<T>;

    fn upload<T: Scalar>(&self, queue: &Arc<CudaStream>, values: &[T]) -> Result<Buffer<T>, CudaError> {
        self.check_queue(queue)?;
        Buffer::upload(queue, values)
    }
    fn write<T: Scalar>(
        &self,
        queue: &Arc<CudaStream>,
        buffer: &mut Buffer<T>,
        values: &[T],
    ) -> Result<(), CudaError> {
        self.check_queue(queue)?;
        buffer.write(queue, values)
    }
    fn download<T: Scalar>(&self, queue: &Arc<CudaStream>, buffer: &Buffer<T>) -> Result<Vec<T>, CudaError> {
        self.check_queue(queue)?;
        buffer.download(queue)
    }
    fn mem<T: Scalar>(buffer: &Buffer<T>) -> Mem<'_, T> {
        buffer.mem()
    }
    fn mem_mut<T: Scalar>(buffer: &mut Buffer<T>) -> MemMut<'_, T> {
        buffer.mem_mut()
    }
}

impl<T: Element> Kernels<T> for Cuda {
    /// Compiles the four kernels for memory of full alignment, and puts one set of saved statistics into the pool.
    fn prepare(&self, queue: &Arc<CudaStream>, geometry: &Geometry) -> Result<(), CudaError> {
        for kernel in [&moments::KERNEL, &normalize::KERNEL, &grad_sums::KERNEL, &grad_input::KERNEL] {
            let plan = Plan::new(geometry, size_of::<T>(), &[0], self.multiprocessors(), kernel)?;
            self.kernel::<T>(kernel, &plan)?;
        }
        self.saved(queue, geometry.channels()).map(drop)
    }

    fn moments(
        &self,
        queue: &Arc<CudaStream>,
        x: View<'_, Self, T>,
        out: &mut Sums,
    ) -> Result<(), CudaError> {
        moments::enqueue(self, queue, &x, out)
    }
    fn normalize(&self, queue: &Arc<CudaStream>, args: NormalizeArgs<'_, Self, T>) -> Result<(), CudaError> {
        normalize::enqueue(self, queue, args)
    }
    fn grad_sums(&self, queue: &Arc<CudaStream>, args: GradSumsArgs<'_, Self, T>) -> Result<(), CudaError> {
        grad_sums::enqueue(self, queue, args)
    }
    fn grad_input(&self, queue: &Arc<CudaStream>, args: GradInputArgs<'_, Self, T>) -> Result<(), CudaError> {
        grad_input::enqueue(self, queue, args)
    }
}
