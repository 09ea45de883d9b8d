//! The ranks that train together, for layers on any of candle's devices.

#[cfg(feature = "cuda")]
mod cuda;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use syncbn_core::{Backend, CommError, HostCommunicator, SingleRank, ViaHost};
use syncbn_cpu::Cpu;

/// One rank's membership of a group; clones are the same membership. All layers of a model share one.
///
/// ```
/// use std::num::NonZeroUsize;
/// use std::time::Duration;
/// use syncbn_candle::Group;
/// use syncbn_comm::threads;
///
/// let two = NonZeroUsize::new(2).unwrap();
/// let ranks = threads::run(two, Duration::from_secs(60), |comm| Group::via_host(comm).rank())?;
/// assert_eq!(ranks, [0, 1]);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Group {
    member: Arc<dyn Member>,
    /// The same membership, for layers of each kind of device that the communicator reaches.
    pub(crate) cpu: Option<syncbn_core::Group<Cpu>>,
    #[cfg(feature = "cuda")]
    pub(crate) cuda: Option<syncbn_core::Group<syncbn_cuda::Cuda>>,
}

impl Group {
    /// The group of one rank: plain batch norm.
    #[must_use]
    pub fn single_rank() -> Self {
        Self {
            #[cfg(feature = "cuda")]
            cuda: Some(syncbn_core::Group::new(SingleRank)),
            ..syncbn_core::Group::<Cpu>::new(SingleRank).into()
        }
    }

    /// The ranks that a communicator in host memory reaches, such as threads or processes. On CUDA every sum goes through host
    /// memory, and the host waits for it.
    #[must_use]
    pub fn via_host(communicator: impl HostCommunicator + 'static) -> Self {
        let communicator = Arc::new(communicator);
        Self {
            #[cfg(feature = "cuda")]
            cuda: Some(syncbn_core::Group::new(ViaHost(Arc::clone(&communicator)))),
            ..syncbn_core::Group::<Cpu>::new(ViaHost(communicator)).into()
        }
    }

    /// This rank, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.member.rank()
    }

    /// The number of ranks.
    #[must_use]
    pub fn world_size(&self) -> NonZeroUsize {
        self.member.world_size()
    }

    /// Tells the group which of the trainer's steps begins; call it once a step on every rank, so that a rank that has left out
    /// a step is found at the next sum.
    pub fn set_step(&self, step: u64) {
        self.member.set_step(step);
    }

    /// The trainer's step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.member.step()
    }

    /// Whether the group still works, without waiting.
    ///
    /// # Errors
    ///
    /// The failure that has poisoned the group.
    pub fn status(&self) -> Result<(), CommError> {
        self.member.status()
    }
}

/// Layers on the CPU.
impl From<syncbn_core::Group<Cpu>> for Group {
    fn from(cpu: syncbn_core::Group<Cpu>) -> Self {
        Self {
            member: Arc::new(cpu.clone()),
            cpu: Some(cpu),
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }
}

/// A membership, whatever its backend.
trait Member: fmt::Debug + Send + Sync {
    fn rank(&self) -> usize;
    fn world_size(&self) -> NonZeroUsize;
    fn set_step(&self, step: u64);
    fn step(&self) -> u64;
    fn status(&self) -> Result<(), CommError>;
}

impl<B: Backend> Member for syncbn_core::Group<B> {
    fn rank(&self) -> usize {
        self.rank()
    }
    fn world_size(&self) -> NonZeroUsize {
        self.world_size()
    }
    fn set_step(&self, step: u64) {
        self.set_step(step);
    }
    fn step(&self) -> u64 {
        self.step()
    }
    fn status(&self) -> Result<(), CommError> {
        self.status()
    }
}
