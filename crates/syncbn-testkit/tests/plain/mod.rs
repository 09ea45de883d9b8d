//! A simple backend, one thread and three loops, with a switch for every [`Flaw`]: the kit's own tests use it.

mod flaw;
mod inside;
mod kernels;
mod memory;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use syncbn_comm::ThreadComm;

pub(crate) use flaw::Flaw;
#[allow(unused_imports)] // not every test that includes this file has such a group
pub(crate) use inside::{Peers, group as inside_group};
use memory::Seen;
#[allow(unused_imports)] // nor such parts
pub(crate) use memory::{Part, Shared};

/// The device.
#[derive(Clone, Debug)]
pub(crate) struct Plain {
    flaw: Flaw,
    /// Over how many threads a reduction would be divided; no result may depend on it.
    threads: usize,
    /// A second way to the other ranks, which no kernel has a use for unless it meddles with their gradients.
    peers: Arc<OnceLock<ThreadComm>>,
    seen: Arc<Mutex<Seen>>,
}

#[allow(dead_code)] // not every test that includes this file has flaws
impl Plain {
    pub(crate) fn new(flaw: Flaw) -> Self {
        Self { flaw, threads: 1, peers: Arc::default(), seen: Arc::default() }
    }

    pub(crate) fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn meet(&self, peers: ThreadComm) {
        let _ = self.peers.set(peers);
    }

    fn meddle_if(&self, flaw: Flaw) {
        if self.flaw == flaw {
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).meddle();
        }
    }
}
