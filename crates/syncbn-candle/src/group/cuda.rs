//! Groups of ranks with a GPU each.

use std::sync::Arc;
use std::time::Duration;

use candle_core::{Device, Result};
use syncbn_core::{CommError, HostCommunicator, ViaHost};
use syncbn_cuda::Cuda;
use syncbn_cuda::peers::PeerCommunicator;

use super::Group;
use crate::device::OnDevice;
use crate::error::Error;

impl Group {
    /// Ranks of one host that meet inside their kernels, each on a GPU of its own; no sum waits for the host then. They find each
    /// other through a communicator in host memory, which also carries sums where the GPUs do not reach each other, gradients, and
    /// the layers on the CPU. Collective, with the same time-out on every rank.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use candle_core::Device;
    /// use syncbn_candle::Group;
    ///
    /// # fn join(communicator: impl syncbn_core::HostCommunicator + 'static, local_rank: usize) -> candle_core::Result<()> {
    /// let device = Device::new_cuda(local_rank)?;
    /// let group = Group::peers(&device, communicator, Duration::from_secs(60))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A device that is not CUDA; those of the communicator.
    pub fn peers(
        device: &Device,
        communicator: impl HostCommunicator + 'static,
        timeout: Duration,
    ) -> Result<Self> {
        let (cuda, _) = <Cuda as OnDevice>::backend(device)?;
        let communicator = Arc::new(communicator);
        let peers = PeerCommunicator::new(&cuda, ViaHost(Arc::clone(&communicator)), timeout);
        let peers = syncbn_core::Group::<Cuda>::new(peers.map_err(failed)?);
        let cpu = syncbn_core::Group::new(ViaHost(communicator));
        Ok(Self { cpu: Some(cpu), ..peers.into() })
    }

    /// This process's GPU and rank, by the environment of torchrun, mpirun or srun: over NCCL, and inside the kernels where all ranks
    /// are of one host. Collective, with the same time-out on every rank.
    ///
    /// # Errors
    ///
    /// [`Error::Cuda`]: no launcher's environment, no GPU of the local rank, no NCCL, ranks that do not come.
    pub fn from_env(timeout: Duration) -> Result<(Device, Self)> {
        let (cuda, peers) = PeerCommunicator::from_env(timeout).map_err(Error::from)?;
        let device = Device::new_cuda(cuda.context().ordinal())?;
        Ok((device, syncbn_core::Group::<Cuda>::new(peers).into()))
    }
}

fn failed(source: CommError) -> candle_core::Error {
    Error::Group { operation: "joining the ranks", source }.into()
}

/// Layers on CUDA.
impl From<syncbn_core::Group<Cuda>> for Group {
    fn from(cuda: syncbn_core::Group<Cuda>) -> Self {
        Self { member: Arc::new(cuda.clone()), cpu: None, cuda: Some(cuda) }
    }
}
