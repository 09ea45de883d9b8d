//! Where batch norm runs: what the demo needs to know of a backend, which is how each rank opens it.
//!
//! Deliberately not here: the rest of the network, which runs in host memory whatever the backend.

use syncbn_core::{Backend, Kernels, Storage};
use syncbn_cpu::Cpu;

use crate::Result;

/// A way of opening a backend once for each rank.
pub trait Device: Sync {
    /// The backend that it opens.
    type Backend: Storage + Kernels<f32>;

    /// Called on the rank's own thread: its backend, and a queue of its own.
    fn open(&self, rank: usize) -> Result<(Self::Backend, <Self::Backend as Backend>::Queue)>;
}

/// The processor, for every rank.
pub struct Host;

impl Device for Host {
    type Backend = Cpu;

    fn open(&self, _: usize) -> Result<(Cpu, ())> {
        Ok((Cpu, ()))
    }
}
