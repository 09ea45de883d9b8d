//! The machine's fastest GPU, whoever made it, shared by any number of ranks that meet in host memory.

use syncbn_wgpu::{Queue, Wgpu};

use crate::Result;
use crate::device::Device;

/// A GPU, with a queue of work for each rank.
pub struct Gpu(Wgpu);

impl Gpu {
    /// Opens it.
    pub fn new() -> Result<Self> {
        Ok(Self(Wgpu::open()?))
    }
}

impl Device for Gpu {
    type Backend = Wgpu;

    fn open(&self, _: usize) -> Result<(Wgpu, Queue)> {
        Ok((self.0.clone(), self.0.queue()))
    }
}
