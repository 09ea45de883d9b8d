//! The traits of syncbn-core. Each method is one call into the file of its name.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use syncbn_core::backend::{
    BackwardArgs, ForwardArgs, GradInputArgs, GradSource, GradSumsArgs, MomentsArgs, NormalizeArgs, Source,
};
use syncbn_core::{
    Backend, Dtype, Element, Geometry, Kernels, Meeting, Pass, PassError, Scalar, Stage, Storage,
};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::meet::{self, Meet};
use crate::memory::Buffer;
use crate::moments::Wanted;
use crate::one_launch::OneLaunch;
use crate::peers::Peers;
use crate::plan::LaunchPlan;
use crate::raw::memory::{Mem, MemMut};
use crate::raw::transfer;
use crate::workspace::{Saved, Workspace};
use crate::{backward, forward, grad_input, grad_sums, module, moments, normalize};

const KERNELS: [&Kernel; 4] = [&moments::KERNEL, &normalize::KERNEL, &grad_sums::KERNEL, &grad_input::KERNEL];
/// Whole passes in one launch.
const PASSES: [&Kernel; 2] = [&forward::KERNEL, &backward::KERNEL];

/// Compiles every specialization of every kernel for an architecture such as `sm_90`. No device is needed. Returns the number of
/// specializations.
///
/// # Errors
///
/// [`CudaError::MissingLibrary`] without NVRTC; [`CudaError::Compile`] with the kernel's name and NVRTC's log.
pub fn compile_all(architecture: &str) -> Result<usize, CudaError> {
    module::compile_all(&[&KERNELS[..], &PASSES].concat(), meet::SPECIALIZATION, architecture)
}

impl Backend for Cuda {
    type Queue = Arc<CudaStream>;
    type Workspace = Workspace;
    type Saved = Saved;
    type Peers = Peers;
    type Mem<'a, T: Scalar> = Mem<'a, T>;
    type MemMut<'a, T: Scalar> = MemMut<'a, T>;
    type Error = CudaError;

    fn mem_len<T: Scalar>(mem: &Mem<'_, T>) -> usize {
        mem.region.len
    }
    fn mem_mut_len<T: Scalar>(mem: &MemMut<'_, T>) -> usize {
        mem.region.len
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

    fn read<T: Scalar>(
        &self,
        queue: &Arc<CudaStream>,
        mem: Mem<'_, T>,
        values: &mut [T],
    ) -> Result<(), CudaError> {
        self.check_queue(queue)?;
        transfer::read(queue, &mem, values)
    }
    fn write<T: Scalar>(
        &self,
        queue: &Arc<CudaStream>,
        mut mem: MemMut<'_, T>,
        values: &[T],
    ) -> Result<(), CudaError> {
        self.check_queue(queue)?;
        transfer::write(queue, &mut mem, values)
    }

    fn workspace(
        &self,
        queue: &Arc<CudaStream>,
        channels: usize,
        params: Dtype,
    ) -> Result<Workspace, CudaError> {
        self.check_queue(queue)?;
        Workspace::new(queue, channels, params, self.multiprocessors())
    }
    fn saved(&self, queue: &Arc<CudaStream>, channels: usize) -> Result<Saved, CudaError> {
        self.check_queue(queue)?;
        self.pool().take(queue, channels)
    }
    fn saved_mem(saved: &Saved) -> Mem<'_, f64> {
        saved.mem()
    }
    fn saved_mem_mut(saved: &mut Saved) -> MemMut<'_, f64> {
        saved.mem_mut()
    }

    fn read_message(
        &self,
        queue: &Arc<CudaStream>,
        pass: Pass,
        workspace: &mut Workspace,
        message: &mut [f64],
    ) -> Result<(), CudaError> {
        self.read(queue, workspace.message(pass), message)
    }
    fn write_message(
        &self,
        queue: &Arc<CudaStream>,
        pass: Pass,
        workspace: &mut Workspace,
        message: &[f64],
    ) -> Result<(), CudaError> {
        self.write(queue, workspace.message_mut(pass), message)
    }
}

impl Storage for Cuda {
    type Buffer<T: Scalar> = Buffer<T>;

    fn upload<T: Scalar>(&self, queue: &Arc<CudaStream>, values: &[T]) -> Result<Buffer<T>, CudaError> {
        self.check_queue(queue)?;
        Buffer::upload(queue, values)
    }
    fn mem<T: Scalar>(buffer: &Buffer<T>) -> Mem<'_, T> {
        buffer.mem()
    }
    fn mem_mut<T: Scalar>(buffer: &mut Buffer<T>) -> MemMut<'_, T> {
        buffer.mem_mut()
    }
}

impl<T: Element> Kernels<T> for Cuda {
    /// Compiles and loads the kernels for fully aligned memory, and allocates one set of saved statistics.
    fn prepare(&self, queue: &Arc<CudaStream>, geometry: &Geometry, inside: bool) -> Result<(), CudaError> {
        for &peers in &[false, true][..=usize::from(inside)] {
            for kernel in KERNELS {
                let plan = LaunchPlan::new(geometry, size_of::<T>(), &[0], self.multiprocessors(), kernel)?;
                self.kernel::<T>(kernel, &plan, peers)?;
            }
            for kernel in PASSES {
                OneLaunch::find::<T>(self, geometry, &[0], 0, kernel, peers)?;
            }
        }
        if inside {
            self.function(meet::SPECIALIZATION)?;
        }
        self.saved(queue, geometry.channels()).map(drop)
    }

    fn moments(&self, queue: &Arc<CudaStream>, args: MomentsArgs<'_, Self, T>) -> Result<(), CudaError> {
        moments::enqueue(self, self.open_queue(queue)?, args, Wanted::Message)
    }
    fn normalize(&self, queue: &Arc<CudaStream>, args: NormalizeArgs<'_, Self, T>) -> Result<(), CudaError> {
        normalize::enqueue(self, self.open_queue(queue)?, args, None)
    }
    fn grad_sums(&self, queue: &Arc<CudaStream>, args: GradSumsArgs<'_, Self, T>) -> Result<(), CudaError> {
        grad_sums::enqueue(self, self.open_queue(queue)?, args, None)
    }
    fn grad_input(&self, queue: &Arc<CudaStream>, args: GradInputArgs<'_, Self, T>) -> Result<(), CudaError> {
        grad_input::enqueue(self, self.open_queue(queue)?, args, None)
    }

    /// One launch where a tensor fits and the host sums nothing. A rank alone needs no message.
    fn forward(
        &self,
        queue: &Arc<CudaStream>,
        args: ForwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<CudaError>> {
        let queue = self.open_queue(queue).map_err(PassError::at(Stage::Moments))?;
        let (wanted, peers) = match &meeting {
            Meeting::Alone => (Wanted::Own, None),
            Meeting::Between(_) => (Wanted::Message, None),
            Meeting::Inside(peers) => (Wanted::Sent(peers), Some(peers)),
        };
        if !matches!(wanted, Wanted::Message)
            && let Some(one) =
                forward::find(self, &args, peers.is_some()).map_err(PassError::at(Stage::Moments))?
        {
            return forward::enqueue(queue, args, &one, peers).map_err(PassError::at(Stage::Moments));
        }
        let ForwardArgs { x, y, weight, bias, eps, running, saved, workspace } = args;
        let moments = MomentsArgs { x: x.reborrow(), workspace: &mut *workspace };
        moments::enqueue(self, queue, moments, wanted).map_err(PassError::at(Stage::Moments))?;
        let (group, peers) = match meeting {
            Meeting::Alone => (false, None),
            Meeting::Between(sum) => sum(workspace).map(|()| (true, None)).map_err(PassError::Sum)?,
            Meeting::Inside(peers) => (true, Some(peers)),
        };
        let source = Source::Batch { workspace, group, saved, running };
        let args = NormalizeArgs { x, y, source, weight, bias, eps };
        normalize::enqueue(self, queue, args, peers.as_ref()).map_err(PassError::at(Stage::Normalize))
    }

    fn backward(
        &self,
        queue: &Arc<CudaStream>,
        args: BackwardArgs<'_, Self, T>,
        meeting: Meeting<'_, Self>,
    ) -> Result<(), PassError<CudaError>> {
        let queue = self.open_queue(queue).map_err(PassError::at(Stage::GradSums))?;
        let (sum, peers) = match meeting {
            Meeting::Alone => (None, None),
            Meeting::Between(sum) => (Some(sum), None),
            Meeting::Inside(peers) => (None, Some(peers)),
        };
        let one = match sum {
            None => backward::find(self, &args, peers.is_some()).map_err(PassError::at(Stage::GradSums))?,
            Some(_) => None,
        };
        let BackwardArgs { x, mut gradients, saved, weight, mut d_weight, mut d_bias, workspace } = args;
        if let Some(one) = &one
            && let Some(grad) = gradients.as_grad()
        {
            let (x, saved) = (x.reborrow(), saved.reborrow());
            let weight = weight.as_ref().map(Mem::reborrow);
            let args = GradInputArgs { x, grad, saved, source: GradSource::Batch { workspace }, weight };
            let d_weight = d_weight.as_mut().map(MemMut::reborrow_mut);
            let d_bias = d_bias.as_mut().map(MemMut::reborrow_mut);
            return backward::enqueue(queue, args, d_weight, d_bias, one, peers.as_ref())
                .map_err(PassError::at(Stage::GradSums));
        }
        let sums = GradSumsArgs {
            x: x.reborrow(),
            dy: gradients.dy(),
            saved: saved.reborrow(),
            d_weight: d_weight.as_mut().map(MemMut::reborrow_mut),
            d_bias: d_bias.as_mut().map(MemMut::reborrow_mut),
            workspace: &mut *workspace,
        };
        grad_sums::enqueue(self, queue, sums, peers.as_ref()).map_err(PassError::at(Stage::GradSums))?;
        if let Some(sum) = sum {
            sum(workspace).map_err(PassError::Sum)?;
        }
        let at = PassError::at(Stage::GradInput);
        let Some(grad) = gradients.as_grad() else {
            // It does not need its peers' numbers, but it must not run ahead of them.
            let meet = |peers| meet::enqueue(self, queue, peers, Meet::Receives);
            return peers.as_ref().map_or(Ok(()), meet).map_err(at);
        };
        let args = GradInputArgs {
            x: x.reborrow(),
            grad,
            saved: saved.reborrow(),
            source: GradSource::Batch { workspace },
            weight: weight.as_ref().map(Mem::reborrow),
        };
        grad_input::enqueue(self, queue, args, peers.as_ref()).map_err(at)
    }
}
