//! The group that laws use unless a harness has its own: threads of this process, summing in host memory.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use syncbn_comm::threads::{ThreadComm, ThreadGroup};
use syncbn_core::{Backend, Communicator, SingleRank, ViaHost};

use crate::harness::Join;

/// How long a rank waits for its peers before a law counts as broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// One place per rank.
pub(crate) fn group<B: Backend>(world_size: NonZeroUsize) -> Vec<Join<B>> {
    if world_size == NonZeroUsize::MIN {
        return vec![Box::new(|_, _| Ok(Arc::new(SingleRank)))];
    }
    let place =
        |comm| -> Join<B> { Box::new(move |_, _| Ok(Arc::new(ViaHost(comm)) as Arc<dyn Communicator<B>>)) };
    host_group(world_size.get()).into_iter().map(place).collect()
}

/// The ranks of a group in host memory.
pub(crate) fn host_group(world_size: usize) -> Vec<ThreadComm> {
    ThreadGroup::new(NonZeroUsize::new(world_size).unwrap_or(NonZeroUsize::MIN), PATIENCE).unwrap()
}
