//! What the kernels need besides the caller's memory: the sums of a layer, and the saved statistics of its forward passes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::memory::Slice;
use crate::plan::most_partials;

/// A layer's sums.
#[derive(Debug)]
pub struct Sums {
    pub(crate) channels: usize,
    /// The count; then two vectors of four numbers per channel.
    pub(crate) merged: wgpu::Buffer,
    /// Where workgroups leave their parts.
    partials: wgpu::Buffer,
    pub(crate) staging: wgpu::Buffer,
    /// What `moments` has left in `partials`.
    pub(crate) parts: Option<Parts>,
    /// Whether the sums in `merged` are the group's, and what `grad_input` needs of them is still to be computed.
    pub(crate) terms_missing: bool,
    /// The powers of two that the last backward message's numbers were multiplied by, per channel.
    pub(crate) exponents: RefCell<Vec<i32>>,
}

/// The moments of a tensor's splits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) splits: usize,
    /// Elements per channel.
    pub(crate) count: usize,
}

impl Sums {
    pub(crate) fn new(gpu: &Gpu, channels: usize) -> Result<Self, WgpuError> {
        let vectors = channels.saturating_mul(2).saturating_add(1);
        let merged = gpu.scratch("sums", vectors)?;
        let partials = most_partials(gpu.parallelism(), channels).saturating_mul(2);
        Ok(Self {
            channels,
            partials: gpu.scratch("partial sums", partials)?,
            staging: gpu.staging(merged.size())?,
            merged,
            parts: None,
            terms_missing: false,
            exponents: RefCell::default(),
        })
    }

    pub(crate) fn merged(&self) -> Slice<'_> {
        Slice { buffer: &self.merged, offset: 0, size: self.merged.size() }
    }

    pub(crate) fn partials(&self) -> Slice<'_> {
        Slice { buffer: &self.partials, offset: 0, size: self.partials.size() }
    }
}

/// The statistics of one forward pass, on loan from the device's pool.
#[derive(Debug)]
pub struct Saved {
    buffer: Option<wgpu::Buffer>,
    channels: usize,
    pool: Arc<Pool>,
}

impl Saved {
    pub(crate) fn slice(&self) -> Option<Slice<'_>> {
        self.buffer.as_ref().map(|buffer| Slice { buffer, offset: 0, size: buffer.size() })
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
            None => gpu.scratch("saved statistics", channels.saturating_add(1))?,
        };
        Ok(Saved { buffer: Some(buffer), channels, pool: self.clone() })
    }
}

/// The two `f32` whose unevaluated sum is nearest to the value.
pub(crate) fn halves(value: f64) -> (f32, f32) {
    let high = value as f32;
    let low = (value - f64::from(high)) as f32;
    // Infinity minus itself is not to become a NaN where there was none.
    if high.is_finite() { (high, low) } else { (high, 0.0) }
}
