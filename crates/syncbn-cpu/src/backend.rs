//! The core's traits, each method one call into the file of its name.

use std::convert::Infallible;

use syncbn_core::backend::{
    BackwardArgs, ForwardArgs, GradInputArgs, GradSumsArgs, MomentsArgs, NormalizeArgs,
};
use syncbn_core::meeting::{backward_by_kernels, forward_by_kernels};
use syncbn_core::{Backend, Dtype, Kernels, Meeting, Pass, PassError, Scalar, Stage, Storage, bf16, f16};

use crate::device::Cpu;
use crate::error::CpuError;
use crate::memory::{copied, copy_in};
use crate::workspace::{self, Workspace};
use crate::{backward, forward, grad_input, grad_sums, moments, normalize};

impl Backend for Cpu {
    type Queue = ();
    type Workspace = Workspace;
    type Saved = Vec<f64>;
    type Peers = Infallible;
    type Mem<'a, T: Scalar> = &'a [T];
    type MemMut<'a, T: Scalar> = &'a mut [T];
    type Error = CpuError;

    fn mem_len<T: Scalar>(mem: &&[T]) -> usize {
        mem.len()
    }

    fn mem_mut_len<T: Scalar>(mem: &&mut [T]) -> usize {
        mem.len()
    }

    fn reborrow<'s, T: Scalar>(mem: &'s &[T]) -> &'s [T] {
        mem
    }

    #[allow(clippy::mut_mut)] // a borrow of the borrowed slice, as the trait has it
    fn reborrow_mut<'s, T: Scalar>(mem: &'s mut &mut [T]) -> &'s mut [T] {
        mem
    }

    fn as_mem<'s, T: Scalar>(mem: &'s &mut [T]) -> &'s [T] {
        mem
    }

    fn empty<'a, T: Scalar>() -> &'a [T] {
        &[]
    }

    fn empty_mut<'a, T: Scalar>() -> &'a mut [T] {
        &mut []
    }

    fn read<T: Scalar>(&self, (): &(), mem: &[T], values: &mut [T]) -> Result<(), CpuError> {
        copy_in(values, mem, "values")
    }

    fn write<T: Scalar>(&self, (): &(), mem: &mut [T], values: &[T]) -> Result<(), CpuError> {
        copy_in(mem, values, "values")
    }

    fn workspace(&self, (): &(), channels: usize, params: Dtype) -> Result<Workspace, CpuError> {
        Workspace::new(channels, params)
    }

    fn saved(&self, (): &(), channels: usize) -> Result<Vec<f64>, CpuError> {
        workspace::saved(channels)
    }

    fn saved_mem(saved: &Vec<f64>) -> &[f64] {
        saved
    }

    fn saved_mem_mut(saved: &mut Vec<f64>) -> &mut [f64] {
        saved
    }

    fn read_message(
        &self,
        (): &(),
        pass: Pass,
        workspace: &mut Workspace,
        message: &mut [f64],
    ) -> Result<(), CpuError> {
        workspace.read_message(pass, message)
    }

    fn write_message(
        &self,
        (): &(),
        pass: Pass,
        workspace: &mut Workspace,
        message: &[f64],
    ) -> Result<(), CpuError> {
        workspace.write_message(pass, message)
    }
}

impl Storage for Cpu {
    type Buffer<T: Scalar> = Vec<T>;

    fn upload<T: Scalar>(&self, (): &(), values: &[T]) -> Result<Vec<T>, CpuError> {
        copied(values, "a layer's parameters")
    }

    fn mem<T: Scalar>(buffer: &Vec<T>) -> &[T] {
        buffer
    }

    fn mem_mut<T: Scalar>(buffer: &mut Vec<T>) -> &mut [T] {
        buffer
    }
}

macro_rules! kernels {
    ($($type:ty),*) => {$(
        impl Kernels<$type> for Cpu {
            fn moments(&self, (): &(), args: MomentsArgs<'_, Self, $type>) -> Result<(), CpuError> {
                moments::moments(args)
            }

            fn normalize(&self, (): &(), args: NormalizeArgs<'_, Self, $type>) -> Result<(), CpuError> {
                normalize::normalize(args)
            }

            fn grad_sums(&self, (): &(), args: GradSumsArgs<'_, Self, $type>) -> Result<(), CpuError> {
                grad_sums::grad_sums(args)
            }

            fn grad_input(&self, (): &(), args: GradInputArgs<'_, Self, $type>) -> Result<(), CpuError> {
                grad_input::grad_input(args)
            }

            fn forward(
                &self,
                (): &(),
                args: ForwardArgs<'_, Self, $type>,
                meeting: Meeting<'_, Self>,
            ) -> Result<(), PassError<CpuError>> {
                match (meeting, forward::blocks(&args)) {
                    (Meeting::Alone, Some(blocks)) => {
                        forward::alone(args, blocks).map_err(PassError::at(Stage::Normalize))
                    }
                    (meeting, _) => forward_by_kernels(self, &(), args, meeting),
                }
            }

            fn backward(
                &self,
                (): &(),
                args: BackwardArgs<'_, Self, $type>,
                meeting: Meeting<'_, Self>,
            ) -> Result<(), PassError<CpuError>> {
                match (meeting, backward::blocks(&args)) {
                    (Meeting::Alone, Some(blocks)) => {
                        backward::alone(args, blocks).map_err(PassError::at(Stage::GradInput))
                    }
                    (meeting, _) => backward_by_kernels(self, &(), args, meeting),
                }
            }
        }
    )*};
}

kernels!(f32, f64, f16, bf16);
