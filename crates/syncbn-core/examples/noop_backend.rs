//! A backend that computes nothing: the first reading for whoever writes one. It has all that a backend must have.

use std::convert::Infallible;

use syncbn_core::backend::{GradInputArgs, GradSumsArgs, MomentsArgs, NormalizeArgs};
use syncbn_core::functional::{Forward, Statistics};
use syncbn_core::{Backend, Dtype, Kernels, Pass, Scalar, saved_len};
use syncbn_core::{Config, ErrorKind, FunctionalBatchNorm, SingleRank, View, ViewMut};

type Done = Result<(), Infallible>; // nothing can go wrong on this device

#[derive(Clone)]
struct Noop;

impl Backend for Noop {
    type Queue = (); // what work is given to: a CUDA stream, for instance
    type Workspace = (); // scratch: this rank's sums per channel, and then the group's
    type Saved = usize; // owned memory for what a forward pass saves
    type Peers = Infallible; // no kernels that reach other ranks' memory
    type Mem<'a, T: Scalar> = usize; // borrowed memory: here only its number of elements
    type MemMut<'a, T: Scalar> = usize;
    type Error = Infallible;

    // Borrowed memory: its length, the same memory for a shorter time, and memory without elements.
    fn mem_len<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn mem_mut_len<T: Scalar>(mem: &usize) -> usize {
        *mem
    }
    fn reborrow<T: Scalar>(mem: &usize) -> Self::Mem<'_, T> {
        *mem
    }
    fn reborrow_mut<T: Scalar>(mem: &mut usize) -> Self::MemMut<'_, T> {
        *mem
    }
    fn as_mem<T: Scalar>(mem: &usize) -> Self::Mem<'_, T> {
        *mem
    }
    fn empty<'a, T: Scalar>() -> Self::Mem<'a, T> {
        0
    }
    fn empty_mut<'a, T: Scalar>() -> Self::MemMut<'a, T> {
        0
    }

    // Copies between host and device. `read` waits for the queue.
    fn read<T: Scalar>(&self, (): &(), _: usize, _values: &mut [T]) -> Done {
        Ok(())
    }
    fn write<T: Scalar>(&self, (): &(), _: usize, _values: &[T]) -> Done {
        Ok(())
    }

    // What a pass needs besides the caller's memory.
    fn workspace(&self, (): &(), _channels: usize, _params: Dtype) -> Done {
        Ok(())
    }
    fn saved(&self, (): &(), channels: usize) -> Result<usize, Infallible> {
        Ok(saved_len(channels))
    }
    fn saved_mem(saved: &usize) -> usize {
        *saved
    }
    fn saved_mem_mut(saved: &mut usize) -> usize {
        *saved
    }

    // The sums in the form that communicators in host memory add: see `Pass`. `read_message` waits for the queue.
    fn read_message(&self, (): &(), _: Pass, _workspace: &mut (), _message: &mut [f64]) -> Done {
        Ok(())
    }
    fn write_message(&self, (): &(), _: Pass, _workspace: &mut (), _message: &[f64]) -> Done {
        Ok(())
    }
}

impl Kernels<f32> for Noop {
    fn moments(&self, (): &(), _: MomentsArgs<'_, Self, f32>) -> Done {
        Ok(()) // count, mean and M2 of x, to the workspace
    }
    fn normalize(&self, (): &(), _: NormalizeArgs<'_, Self, f32>) -> Done {
        Ok(()) // y, the saved statistics and the running ones, from the workspace
    }
    fn grad_sums(&self, (): &(), _: GradSumsArgs<'_, Self, f32>) -> Done {
        Ok(()) // sum_dy and sum_dy_xmu, to the workspace; d_weight and d_bias
    }
    fn grad_input(&self, (): &(), _: GradInputArgs<'_, Self, f32>) -> Done {
        Ok(()) // dx, from the workspace
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Core checks shapes, orders the steps and names errors, whatever the kernels do.
    let norm = FunctionalBatchNorm::<Noop, f32>::new("norm", Config::new(3), Noop, &(), SingleRank)?;
    let pass = |shape: &[usize]| {
        let x = View::channels_first(shape.iter().product(), shape)?;
        let y = ViewMut::channels_first(shape.iter().product(), shape)?;
        let args = Forward::<Noop, f32>::new(x, y, Statistics::Group { running: None }, saved_len(3));
        Ok::<_, Box<dyn std::error::Error>>(norm.forward(&(), args))
    };
    assert!(pass(&[2, 3, 8])?.is_ok());
    let error = pass(&[2, 4, 8])?.err().ok_or("four channels were accepted")?;
    assert!(matches!(*error.kind, ErrorKind::Channels { expected: 3, got: 4, .. }));
    Ok(())
}
