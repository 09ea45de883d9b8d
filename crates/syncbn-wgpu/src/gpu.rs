//! A device with its queue, limits, compiled kernels and constants.
//!
//! Recording and submitting work, of which each thread has its own, is in queue.rs.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::WgpuError;
use crate::lost;
use crate::memory::{Slice, empty, filled};
use crate::module::{Access, Key, Module, constants_layout};
use crate::params::Params;
use crate::plan::THREADS;
use crate::scope::caught;

/// How many sets of `Params` are kept on the device. When there are more, all are dropped.
const MOST_CONSTANTS: usize = 4096;

/// A kernel with its buffers, ready to be recorded.
#[derive(Debug)]
pub(crate) struct Dispatch {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) buffers: wgpu::BindGroup,
    pub(crate) constants: wgpu::BindGroup,
    pub(crate) grid: (u32, u32),
}

/// A device and its queue, checked once. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gpu(Arc<Inner>);

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    limits: wgpu::Limits,
    /// How many workgroups fill the device, if two fit on each of its cores.
    parallelism: usize,
    modules: Mutex<HashMap<Key, Arc<Module>>>,
    constants_layout: wgpu::BindGroupLayout,
    constants: Mutex<HashMap<Vec<u8>, wgpu::BindGroup>>,
    /// Bound where a kernel does not use a binding: one for reading, one for writing.
    blanks: [wgpu::Buffer; 2],
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device().adapter_info().name)
    }
}

impl Gpu {
    pub(crate) fn new(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self, WgpuError> {
        let limits = device.limits();
        check_limits(&limits)?;
        let parallelism = match device.adapter_info().device_type {
            wgpu::DeviceType::Cpu => 2,
            wgpu::DeviceType::IntegratedGpu => 64,
            _ => 256,
        };
        check_queue(&device, &queue)?;
        let during = "preparing the device";
        let constants_layout = caught(&device, during, || constants_layout(&device))?;
        let blank = || filled(&device, "blank", wgpu::BufferUsages::STORAGE, &[0; 64]);
        let blanks = [blank()?, blank()?];
        Ok(Self(Arc::new(Inner {
            modules: Mutex::default(),
            constants: Mutex::default(),
            device,
            queue,
            limits,
            parallelism,
            constants_layout,
            blanks,
        })))
    }

    pub(crate) fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    pub(crate) fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// Whether both are the same device. wgpu's own comparison ignores that they may be of different instances.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn parallelism(&self) -> usize {
        self.0.parallelism
    }

    pub(crate) fn module(&self, key: Key) -> Result<Arc<Module>, WgpuError> {
        let find = || lock(&self.0.modules).get(&key).cloned();
        if let Some(module) = find() {
            return Ok(module);
        }
        let module = Arc::new(Module::new(&self.0.device, &self.0.constants_layout, key)?);
        Ok(lock(&self.0.modules).entry(key).or_insert(module).clone())
    }

    /// A kernel with the buffers that it reads and writes, in the order of its bindings; `None` for one that it does not use.
    pub(crate) fn bind(
        &self,
        key: Key,
        params: Params,
        bindings: &[(&'static str, Option<Slice<'_>>)],
    ) -> Result<Dispatch, WgpuError> {
        let module = self.module(key)?;
        let accesses = module.accesses();
        check_sharing(accesses, bindings)?;
        let mut entries = Vec::with_capacity(bindings.len());
        for (i, ((name, slice), access)) in bindings.iter().zip(accesses).enumerate() {
            let binding = match slice {
                Some(slice) if slice.size > 0 => self.binding(name, *slice)?,
                _ => self.0.blanks[usize::from(*access == Access::Write)].as_entire_buffer_binding(),
            };
            entries.push(wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(binding),
            });
        }
        let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &module.layout, entries: &entries };
        let buffers =
            caught(&self.0.device, "binding buffers", || self.0.device.create_bind_group(&descriptor))?;
        let constants = self.constants(params)?;
        let most = self.0.limits.max_compute_workgroups_per_dimension;
        let grid = (params.blocks.min(most), params.blocks.div_ceil(most));
        at_least("max_compute_workgroups_per_dimension", most, grid.1)?;
        Ok(Dispatch { pipeline: module.pipeline.clone(), buffers, constants, grid })
    }

    /// The part of a buffer that a kernel uses, checked against the device's limits.
    fn binding<'b>(
        &self,
        tensor: &'static str,
        slice: Slice<'b>,
    ) -> Result<wgpu::BufferBinding<'b>, WgpuError> {
        let Slice { buffer, offset, size } = slice;
        let alignment = u64::from(self.0.limits.min_storage_buffer_offset_alignment);
        if !offset.is_multiple_of(alignment) {
            let limit = "min_storage_buffer_offset_alignment";
            return Err(WgpuError::Alignment { tensor, offset, limit, alignment });
        }
        let size = size.saturating_add(3) / 4 * 4;
        let most = self.0.limits.max_storage_buffer_binding_size;
        if size > most {
            return Err(WgpuError::Limit {
                limit: "max_storage_buffer_binding_size",
                needed: size,
                got: most,
            });
        }
        slice.fits(tensor, size, wgpu::BufferUsages::STORAGE)?;
        Ok(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
    }

    /// A kernel's `Params` on the device: one buffer for each set of values.
    fn constants(&self, params: Params) -> Result<wgpu::BindGroup, WgpuError> {
        let bytes = bytemuck::bytes_of(&params);
        if let Some(group) = lock(&self.0.constants).get(bytes) {
            return Ok(group.clone());
        }
        let buffer = filled(&self.0.device, "params", wgpu::BufferUsages::UNIFORM, bytes)?;
        let entry = wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() };
        let group = caught(&self.0.device, "binding constants", || {
            self.0.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("params"),
                layout: &self.0.constants_layout,
                entries: &[entry],
            })
        })?;
        let mut constants = lock(&self.0.constants);
        if constants.len() >= MOST_CONSTANTS {
            constants.clear();
        }
        constants.insert(bytes.to_vec(), group.clone());
        Ok(group)
    }

    /// Scratch of so many vectors of four `f32`.
    pub(crate) fn scratch(&self, label: &'static str, vectors: usize) -> Result<wgpu::Buffer, WgpuError> {
        let size = (vectors as u64).saturating_mul(16).max(16);
        let most = self.0.limits.max_storage_buffer_binding_size;
        if size > most {
            return Err(WgpuError::Limit {
                limit: "max_storage_buffer_binding_size",
                needed: size,
                got: most,
            });
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        empty(&self.0.device, label, usage, size)
    }

    /// A buffer that the host can read.
    pub(crate) fn staging(&self, size: u64) -> Result<wgpu::Buffer, WgpuError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        empty(&self.0.device, "staging", usage, size)
    }
}

/// WebGPU lets a kernel read a buffer or write it, and not both, whichever parts are bound.
fn check_sharing(
    accesses: &[Access],
    bindings: &[(&'static str, Option<Slice<'_>>)],
) -> Result<(), WgpuError> {
    let with = |wanted: Access| {
        let of_access = bindings.iter().zip(accesses).filter(move |(_, access)| **access == wanted);
        of_access
            .filter_map(|((name, slice), _)| slice.filter(|slice| slice.size > 0).map(|slice| (*name, slice)))
    };
    for (written, to) in with(Access::Write) {
        for (read, from) in with(Access::Read) {
            if from.buffer == to.buffer {
                return Err(WgpuError::SharedBuffer { read, written });
            }
        }
    }
    Ok(())
}

/// An error if the queue is not the device's own: polling the device would then never report the queue's work as done.
///
/// wgpu has no call for this. Polling a device runs the callbacks of its own queue's work and no others, so a callback is registered
/// and the device polled. Another thread that polls the same device may run the callback first; then this is repeated.
fn check_queue(device: &wgpu::Device, queue: &wgpu::Queue) -> Result<(), WgpuError> {
    let during = "preparing the device";
    lost::check(device, during)?;
    for pause in [0, 1, 10, 100, 1000] {
        let called_by = Arc::new(Mutex::new(None));
        let caller = called_by.clone();
        queue.on_submitted_work_done(move || *lock(&caller) = Some(thread::current().id()));
        let before = *lock(&called_by);
        caught(device, during, || device.poll(wgpu::PollType::wait_indefinitely()))?
            .map_err(|_| WgpuError::DeviceLost { during })?;
        if before.is_none() && *lock(&called_by) == Some(thread::current().id()) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(pause));
    }
    Err(WgpuError::ForeignQueue)
}

fn check_limits(limits: &wgpu::Limits) -> Result<(), WgpuError> {
    let threads = THREADS as u32;
    at_least("max_compute_invocations_per_workgroup", limits.max_compute_invocations_per_workgroup, threads)?;
    at_least("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension, 1)?;
    at_least("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x, threads)?;
    at_least("max_compute_workgroup_storage_size", limits.max_compute_workgroup_storage_size, 11 << 10)?;
    at_least("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage, 6)?;
    at_least("max_bind_groups", limits.max_bind_groups, 2)
}

fn at_least(limit: &'static str, got: u32, needed: u32) -> Result<(), WgpuError> {
    let (got, needed) = (u64::from(got), u64::from(needed));
    if got >= needed { Ok(()) } else { Err(WgpuError::Limit { limit, needed, got }) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
