//! A communicator that is its process's alone: a process that was forked from a rank is none.
//!
//! The child has copies of its parent's connections. Collectives in it are refused, and what it drops tells no peer that the
//! rank has left.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::{fmt, mem, process};

use syncbn_core::{CollectiveId, CommError, CommErrorKind, HostCommunicator, Membership};

pub(crate) struct OwnProcess<C: HostCommunicator> {
    /// There until it is dropped.
    communicator: Option<C>,
    rank: usize,
    world_size: NonZeroUsize,
    process: u32,
}

#[derive(Debug)]
struct Forked {
    parent: u32,
}

impl fmt::Display for Forked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { parent } = self;
        write!(
            f,
            "process {parent} is this rank, and this process was forked from it: make a process group of its own"
        )
    }
}

impl std::error::Error for Forked {}

impl<C: HostCommunicator> OwnProcess<C> {
    pub(crate) fn new(communicator: C) -> Self {
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        Self { communicator: Some(communicator), rank, world_size, process: process::id() }
    }

    fn is_forked(&self) -> bool {
        process::id() != self.process
    }

    fn get(&self, call: Option<&CollectiveId>) -> Result<&C, CommError> {
        self.communicator.as_ref().filter(|_| !self.is_forked()).ok_or_else(|| CommError {
            rank: self.rank,
            world_size: self.world_size.get(),
            call: call.cloned(),
            late: false,
            kind: CommErrorKind::Transport(Arc::new(Forked { parent: self.process })),
        })
    }
}

impl<C: HostCommunicator> HostCommunicator for OwnProcess<C> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> NonZeroUsize {
        self.world_size
    }

    fn all_reduce_sum(&self, id: &CollectiveId, values: &mut [f64]) -> Result<(), CommError> {
        self.get(Some(id))?.all_reduce_sum(id, values)
    }

    fn poison(&self, cause: &CommError) {
        if let Ok(communicator) = self.get(None) {
            communicator.poison(cause);
        }
    }

    fn status(&self) -> Result<(), CommError> {
        self.get(None)?.status()
    }

    fn membership(&self) -> Option<Arc<Membership>> {
        self.communicator.as_ref().and_then(C::membership)
    }
}

impl<C: HostCommunicator> Drop for OwnProcess<C> {
    fn drop(&mut self) {
        let communicator = self.communicator.take();
        if self.is_forked() {
            mem::forget(communicator);
        }
    }
}
