//! The device that the tests of this crate share, and a layer with the memory of its step.

#![allow(dead_code, clippy::unwrap_used, reason = "helpers of several tests, which fail where these do")]

use syncbn_core::{
    Backend, Element, Error, Geometry, Gradients, Kernels, ParamGradients, SavedStatistics, Scalar, Storage,
    SyncBatchNorm, View, ViewMut,
};
use syncbn_testkit::report::absent;
use syncbn_wgpu::wgpu::{self, BufferUsages, Device};
use syncbn_wgpu::{Buffer, Queue, Wgpu, WgpuError};

/// What skipped tests are told of: the file that they are in.
const TESTS: &str = concat!(env!("CARGO_CRATE_NAME"), "::", env!("CARGO_CRATE_NAME"));

/// The machine's GPU; `None`, with the reason printed, where there is none. With `SYNCBN_REQUIRE=wgpu` that is a failure.
pub(crate) fn gpu() -> Option<Wgpu> {
    Wgpu::open().map_err(|error| absent("wgpu", TESTS, &error)).ok()
}

/// An application's own way to a device, if there is one.
pub(crate) fn adapter() -> Option<wgpu::Adapter> {
    gpu()?;
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    Some(pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default())).unwrap())
}

/// A device with these limits.
pub(crate) fn own_device(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> (Device, wgpu::Queue) {
    let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    pollster::block_on(adapter.request_device(&descriptor)).unwrap()
}

/// A buffer of the application's own.
pub(crate) fn buffer(wgpu: &Wgpu, size: u64, usage: BufferUsages) -> wgpu::Buffer {
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    wgpu.device().create_buffer(&descriptor)
}

/// So many numbers, the same for the same seed.
pub(crate) fn numbers(len: usize, seed: f32) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * seed).sin() * 3.0 + seed).collect()
}

/// A layer's step on memory of its own.
pub(crate) struct Rig<T: Element> {
    pub(crate) wgpu: Wgpu,
    pub(crate) queue: Queue,
    pub(crate) geometry: Geometry,
    pub(crate) x: Buffer<T>,
    pub(crate) dy: Buffer<T>,
    pub(crate) y: Buffer<T>,
    pub(crate) dx: Buffer<T>,
}

impl<T: Element<Param = f32>> Rig<T>
where
    Wgpu: Kernels<T>,
{
    pub(crate) fn new(wgpu: &Wgpu, geometry: Geometry, x: &[T]) -> Self {
        let queue = wgpu.queue();
        let dy: Vec<T> = numbers(x.len(), 0.37).into_iter().map(|v| T::from_f64(v.into())).collect();
        let place = |values: &[T]| wgpu.upload(&queue, values).unwrap();
        let blank = vec![T::default(); x.len()];
        let (x, dy, y, dx) = (place(x), place(&dy), place(&blank), place(&blank));
        Self { wgpu: wgpu.clone(), queue, geometry, x, dy, y, dx }
    }

    pub(crate) fn forward(
        &mut self,
        layer: &mut SyncBatchNorm<Wgpu, f32>,
    ) -> Result<SavedStatistics<Wgpu>, Error> {
        let x = View::new(Wgpu::mem(&self.x), self.geometry);
        let y = ViewMut::new(Wgpu::mem_mut(&mut self.y), self.geometry);
        layer.forward(&self.queue, x, y)
    }

    pub(crate) fn backward(
        &mut self,
        layer: &mut SyncBatchNorm<Wgpu, f32>,
        saved: &SavedStatistics<Wgpu>,
    ) -> Result<(), Error> {
        let x = View::new(Wgpu::mem(&self.x), self.geometry);
        let dy = View::new(Wgpu::mem(&self.dy), self.geometry);
        let dx = ViewMut::new(Wgpu::mem_mut(&mut self.dx), self.geometry);
        let gradients = Gradients::out_of_place(dy, dx);
        layer.backward(&self.queue, saved, x, gradients, ParamGradients::default())
    }

    pub(crate) fn read(&self, buffer: &Buffer<T>) -> Vec<T> {
        download(&self.wgpu, &self.queue, buffer).unwrap()
    }
}

/// The values of a buffer.
pub(crate) fn download<T: Scalar>(
    wgpu: &Wgpu,
    queue: &Queue,
    buffer: &Buffer<T>,
) -> Result<Vec<T>, WgpuError> {
    let mut values = vec![T::default(); buffer.len()];
    wgpu.read(queue, Wgpu::mem(buffer), &mut values)?;
    Ok(values)
}

/// The backend's error, in words with its sources.
pub(crate) fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}
