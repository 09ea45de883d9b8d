//! Which passes of a rank alone, or of ranks that meet inside their kernels, are one launch: those of tensors of which every block has
//! whole channels, and for all of which the multiprocessors have the shared memory. [`forward`](crate::forward) and
//! [`backward`](crate::backward) enqueue them.

use syncbn_core::{Element, Geometry};

use crate::device::Cuda;
use crate::error::CudaError;
use crate::kernel::Kernel;
use crate::plan::{LaunchPlan, Prefetch};
use crate::raw::driver::{Function, Launch};

/// A pass in one launch.
pub(crate) struct OneLaunch {
    pub(crate) plan: LaunchPlan,
    pub(crate) kernel: Function,
    /// All that a block reads.
    kept: Prefetch,
}

impl OneLaunch {
    /// The launch of this kernel for tensors that begin at these addresses, if the tensors fit; with `peers`, of the kernel in which ranks
    /// meet. It walks them as the kernel does that only sums, so the bits are the same.
    pub(crate) fn find<T: Element>(
        cuda: &Cuda,
        geometry: &Geometry,
        read: &[u64],
        written: u64,
        kernel: &'static Kernel,
        peers: bool,
    ) -> Result<Option<Self>, CudaError> {
        let size = size_of::<T>();
        let room = cuda.multiprocessors().saturating_mul(cuda.shared_memory());
        if geometry.is_empty() || geometry.len() > room / size {
            return Ok(None);
        }
        let plan = LaunchPlan::new(geometry, size, read, cuda.multiprocessors(), kernel)?;
        if plan.walk.blocks_per_channel > 1 || !written.is_multiple_of((plan.vec * size) as u64) {
            return Ok(None);
        }
        let function = cuda.kernel::<T>(kernel, &plan, peers)?;
        let kept = plan.keep(kernel, size, cuda.multiprocessors(), cuda.shared_memory(), function.shared);
        Ok(kept.map(|kept| Self { plan, kernel: function, kept }))
    }

    /// Rounds of a thread's loads.
    pub(crate) fn rounds(&self) -> i32 {
        self.kept.rounds
    }

    pub(crate) fn launch(&self) -> Launch {
        Launch { shared: self.kept.bytes, ..self.plan.launch() }
    }
}
