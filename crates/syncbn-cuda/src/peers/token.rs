//! What the kernels of one pass need to meet their peers.

use std::sync::Arc;

use crate::access::Access;
use crate::error::CudaError;
use crate::peers::direct::Direct;
use crate::raw::params::PeersParams;

/// A pass's way into the peers' memory. [`PeerCommunicator`](super::PeerCommunicator) makes it, and the kernels use it up.
#[derive(Clone, Debug)]
pub struct Peers {
    pub(super) direct: Arc<Direct>,
    pub(super) params: PeersParams,
}

impl Peers {
    /// The kernel's second parameter. Kernels that have it run one after the other on a device, whatever their streams and groups:
    /// so none that waits for a peer keeps from running what that peer waits for.
    pub(crate) fn params(&self, access: &Access<'_, '_>) -> Result<PeersParams, CudaError> {
        access.come_after("the device's turn to meet its peers", self.direct.cuda.turn()?)?;
        Ok(self.params)
    }
}
