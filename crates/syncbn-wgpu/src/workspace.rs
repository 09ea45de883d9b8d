//! The scratch of a pass, and the saved statistics of a forward pass.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use syncbn_core::{Dtype, saved_len};

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::memory::{Mem, MemMut, Slice};
use crate::plan::most_partials;

/// The scratch of a pass: the sums of a rank, and then of the group.
#[derive(Debug)]
pub struct Workspace {
    gpu: Gpu,
    pub(crate) channels: usize,
    /// The type of the parameters, which a message's form depends on.
    pub(crate) params: Dtype,
    /// The count; then two vectors of four numbers per channel.
    pub(crate) merged: wgpu::Buffer,
    /// The sums of each workgroup.
    partials: wgpu::Buffer,
    pub(crate) staging: wgpu::Buffer,
    /// The shape of the moments in `partials`.
    pub(crate) parts: Option<Parts>,
    /// Whether `merged` has the group's sums, from which the terms of `grad_input` are still to be computed.
    pub(crate) terms_missing: bool,
    /// The powers of two that the last backward message's numbers were multiplied by, per channel.
    pub(crate) exponents: Vec<i32>,
}

/// The moments of a tensor's splits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) splits: usize,
    /// Elements per channel.
    pub(crate) count: usize,
}

impl Workspace {
    pub(crate) fn new(gpu: &Gpu, channels: usize, params: Dtype) -> Result<Self, WgpuError> {
        let vectors = channels.saturating_mul(2).saturating_add(1);
        let merged = gpu.scratch("sums", vectors)?;
        let partials = most_partials(gpu.parallelism(), channels).saturating_mul(2);
        Ok(Self {
            gpu: gpu.clone(),
            channels,
            params,
            partials: gpu.scratch("partial sums", partials)?,
            staging: gpu.staging(merged.size())?,
            merged,
            parts: None,
            terms_missing: false,
            exponents: Vec::new(),
        })
    }

    /// An error if it is of another device, or for another number of channels.
    pub(crate) fn check(&self, gpu: &Gpu, channels: usize) -> Result<(), WgpuError> {
        if !self.gpu.is(gpu) {
            return Err(WgpuError::ForeignWorkspace);
        }
        if self.channels == channels {
            return Ok(());
        }
        Err(WgpuError::Channels { expected: channels, got: self.channels })
    }

    pub(crate) fn merged(&self) -> Slice<'_> {
        Slice { buffer: &self.merged, offset: 0, size: self.merged.size() }
    }

    pub(crate) fn partials(&self) -> Slice<'_> {
        Slice { buffer: &self.partials, offset: 0, size: self.partials.size() }
    }
}

/// The statistics of one forward pass, on loan from the device's pool: [`saved_len`] words of 8 bytes.
///
/// WGSL has no `f64`, so the words are pairs of `f32`. With C channels, word 2c is channel c's mean, high and low; word 2c + 1 its
/// `invstd` and exponent; word 2C + c its biased variance, high and low; and word 3C the count, high and low. A pair's value is the
/// unevaluated sum of its halves. Mean and variance are those of the channel's numbers times 2^-exponent, and `invstd` follows
/// from them. The exponent is 0 unless squares of the numbers would leave the range of `f32`.
#[derive(Debug)]
pub struct Saved {
    buffer: Option<wgpu::Buffer>,
    channels: usize,
    pool: Arc<Pool>,
}

impl Saved {
    pub(crate) fn mem(&self) -> Mem<'_, f64> {
        self.buffer.as_ref().map_or_else(Mem::empty, |buffer| Mem::new(buffer, 0, saved_len(self.channels)))
    }

    pub(crate) fn mem_mut(&mut self) -> MemMut<'_, f64> {
        let len = saved_len(self.channels);
        self.buffer.as_ref().map_or_else(MemMut::empty, |buffer| MemMut::new(buffer, 0, len))
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            let mut free = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            free.entry(self.channels).or_default().push(buffer);
        }
    }
}

/// Saved statistics that are not in use, by channels. Work on a device runs in the order of its submissions, and wgpu keeps
/// what it still needs, so the next forward may have them at once.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<HashMap<usize, Vec<wgpu::Buffer>>>);

impl Pool {
    pub(crate) fn take(self: &Arc<Self>, gpu: &Gpu, channels: usize) -> Result<Saved, WgpuError> {
        let pooled =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&channels).and_then(Vec::pop);
        let buffer = match pooled {
            Some(buffer) => buffer,
            None => gpu.scratch("saved statistics", saved_len(channels).div_ceil(2))?,
        };
        Ok(Saved { buffer: Some(buffer), channels, pool: self.clone() })
    }
}
