//! Where batch norm runs: what the demo needs to know of a backend, which is how each rank opens it, and how ranks meet.

use std::num::NonZeroUsize;
use std::time::Duration;

use syncbn_comm::ThreadGroup;
use syncbn_core::{Backend, Group, Kernels, Storage, ViaHost};
use syncbn_cpu::Cpu;

use crate::Result;

/// How long a rank waits for the others in a collective.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// A backend, and the ranks that use it.
pub trait Device: Sync {
    /// The backend that it opens.
    type Backend: Storage + Kernels<f32>;

    /// Called on the rank's own thread: its backend, and a queue of its own.
    fn open(&self, rank: usize) -> Result<(Self::Backend, Queue<Self::Backend>)>;

    /// The size that its groups have; `None`: any.
    fn world_size(&self) -> Option<NonZeroUsize> {
        None
    }

    /// Whether this process has rank 0, and so the word.
    fn speaks(&self) -> bool {
        true
    }

    /// The ranks of a new group that this process runs, each a thread. The default: all of them, meeting in host memory.
    fn group(&self, world_size: NonZeroUsize) -> Result<Vec<Place<Self::Backend>>> {
        let place = |(rank, comm)| Place { rank, join: Box::new(move |_: &_| Ok(Group::new(ViaHost(comm)))) };
        Ok(ThreadGroup::new(world_size, TIMEOUT)?.into_iter().enumerate().map(place).collect())
    }
}

/// What a backend takes work from.
pub type Queue<B> = <B as Backend>::Queue;

/// A rank of a group, to be joined in its own thread.
pub struct Place<B: Backend> {
    /// The rank, from 0.
    pub rank: usize,
    /// Joins the others.
    pub join: Box<Join<B>>,
}

/// How a rank joins its group.
pub type Join<B> = dyn FnOnce(&B) -> Result<Group<B>> + Send;

/// The processor, for every rank.
pub struct Host;

impl Device for Host {
    type Backend = Cpu;

    fn open(&self, _: usize) -> Result<(Cpu, ())> {
        Ok((Cpu, ()))
    }
}
