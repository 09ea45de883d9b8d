//! The ranks that train together, for layers on any of candle's devices.

use std::num::NonZeroUsize;
use std::sync::Arc;

use syncbn_core::{CommError, HostCommunicator, SingleRank, ViaHost};
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
    pub(crate) cpu: syncbn_core::Group<Cpu>,
}

impl Group {
    /// The group of one rank: plain batch norm.
    #[must_use]
    pub fn single_rank() -> Self {
        syncbn_core::Group::new(SingleRank).into()
    }

    /// The ranks that a communicator in host memory reaches, such as threads or processes.
    #[must_use]
    pub fn via_host(communicator: impl HostCommunicator + 'static) -> Self {
        syncbn_core::Group::new(ViaHost(Arc::new(communicator))).into()
    }

    /// This rank, from 0.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.cpu.rank()
    }

    /// The number of ranks.
    #[must_use]
    pub fn world_size(&self) -> NonZeroUsize {
        self.cpu.world_size()
    }

    /// Tells the group which of the trainer's steps begins; call it once a step on every rank, so that a rank that has left out
    /// a step is found at the next sum.
    pub fn set_step(&self, step: u64) {
        self.cpu.set_step(step);
    }

    /// The trainer's step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.cpu.step()
    }

    /// Whether the group still works, without waiting.
    pub fn status(&self) -> Result<(), CommError> {
        self.cpu.status()
    }
}

impl From<syncbn_core::Group<Cpu>> for Group {
    fn from(cpu: syncbn_core::Group<Cpu>) -> Self {
        Self { cpu }
    }
}
