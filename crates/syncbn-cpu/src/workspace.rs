//! What a pass needs besides its tensors: a layer's scratch, and the statistics that a forward pass saves.

use syncbn_core::host_memory::{message_to_batches, moments_to_message};
use syncbn_core::statistics::{Batch, Moments};
use syncbn_core::{Dtype, Pass, saved_len};

use crate::error::CpuError;
use crate::memory::{filled, same_length};

/// The scratch of a pass: the per-channel sums of one rank and then of the group, and that of the reduction that makes them.
#[derive(Debug)]
pub struct Workspace {
    params: Dtype,
    /// This rank's moments per channel.
    pub(crate) moments: Vec<Moments>,
    /// The group's statistics per channel.
    pub(crate) group: Vec<Batch>,
    /// `[sum_dy | sum_dy_xmu]`: this rank's, then the group's.
    pub(crate) sums: Vec<f64>,
    /// The results of single tiles, before they are merged.
    pub(crate) partials: Vec<[f64; 2]>,
}

impl Workspace {
    pub(crate) fn new(channels: usize, params: Dtype) -> Result<Self, CpuError> {
        let what = "sums";
        Ok(Self {
            params,
            moments: filled(Moments::default(), channels, what)?,
            group: filled(Batch::default(), channels, what)?,
            sums: filled(0.0, channels.saturating_mul(2), what)?,
            partials: Vec::new(),
        })
    }

    /// The sums that a backward pass uses: `sum_dy` and `sum_dy_xmu` of one channel.
    pub(crate) fn sums_of(&self, channel: usize) -> (f64, f64) {
        (self.sums[channel], self.sums[self.moments.len() + channel])
    }

    /// Writes this rank's part of the sum over ranks.
    pub(crate) fn read_message(&self, pass: Pass, message: &mut [f64]) -> Result<(), CpuError> {
        let Self { params, moments, sums, .. } = self;
        same_length(pass.message_len(moments.len(), *params), message.len(), "message")?;
        match pass {
            Pass::Forward => moments_to_message(moments, *params, message),
            Pass::Backward => message.copy_from_slice(sums),
        }
        Ok(())
    }

    /// Takes over the sum over ranks.
    pub(crate) fn write_message(&mut self, pass: Pass, message: &[f64]) -> Result<(), CpuError> {
        let Self { params, group, sums, .. } = self;
        same_length(pass.message_len(group.len(), *params), message.len(), "message")?;
        match pass {
            Pass::Forward => message_to_batches(message, *params, group),
            Pass::Backward => sums.copy_from_slice(message),
        }
        Ok(())
    }
}

/// Room for the statistics that a forward pass saves.
pub(crate) fn saved(channels: usize) -> Result<Vec<f64>, CpuError> {
    filled(0.0, saved_len(channels), "saved statistics")
}
