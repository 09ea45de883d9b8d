//! What a caller or a device gets wrong is a typed error, and neither a panic nor an error of wgpu's that nobody has caught.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail where these do")]

mod common;

use common::{Rig, adapter, buffer, gpu, numbers, own_device, told};
use syncbn_core::{
    Backend, Config, Dtype, Error, ErrorKind, Geometry, Kernels, Storage, SyncBatchNorm, View, ViewMut, f16,
};
use syncbn_wgpu::wgpu::{self, BufferUsages, Limits};
use syncbn_wgpu::{Mem, MemMut, Wgpu, WgpuError};

const LEN: usize = 24;

fn geometry() -> Geometry {
    Geometry::channels_first(&[2, 3, 4]).unwrap()
}

/// A forward pass of x from here to y there.
fn forward(wgpu: &Wgpu, x: (&wgpu::Buffer, u64), y: (&wgpu::Buffer, u64)) -> Result<(), Error> {
    let queue = wgpu.queue();
    let mut layer = SyncBatchNorm::<_, f32>::local("bn", Config::new(3), wgpu.clone(), &queue)?;
    let before = layer.state(&queue)?;
    let x = View::<Wgpu, f32>::new(Mem::new(x.0, x.1, LEN), geometry());
    let y = ViewMut::<Wgpu, f32>::new(MemMut::new(y.0, y.1, LEN), geometry());
    let result = layer.forward(&queue, x, y).map(drop);
    if result.is_err() {
        assert_eq!(layer.state(&queue)?, before, "a call that fails changes nothing");
    }
    result
}

fn backend(error: &Error) -> &WgpuError {
    match &*error.kind {
        ErrorKind::Backend { source, .. } => source.downcast_ref().unwrap(),
        other => panic!("not the backend's error: {other:?}"),
    }
}

#[test]
fn memory_that_a_kernel_cannot_bind_is_refused_by_name() {
    let Some(wgpu) = gpu() else { return };
    let good = || buffer(&wgpu, 4096, BufferUsages::STORAGE);
    let (x, y) = (good(), good());
    forward(&wgpu, (&x, 256), (&y, 1024)).unwrap();

    let error = forward(&wgpu, (&x, 4), (&y, 0)).unwrap_err();
    assert!(matches!(backend(&error), WgpuError::Alignment { tensor: "x", offset: 4, .. }), "{error}");
    assert!(told(&error).contains("min_storage_buffer_offset_alignment"), "{}", told(&error));
    let short = buffer(&wgpu, 64, BufferUsages::STORAGE);
    let error = forward(&wgpu, (&x, 0), (&short, 0)).unwrap_err();
    assert!(matches!(backend(&error), WgpuError::OutOfBuffer { tensor: "y", end: 96, size: 64 }), "{error}");
    let uniform = buffer(&wgpu, 4096, BufferUsages::UNIFORM);
    let error = forward(&wgpu, (&uniform, 0), (&y, 0)).unwrap_err();
    assert!(matches!(backend(&error), WgpuError::Usage { tensor: "x", .. }), "{error}");
    let error = forward(&wgpu, (&x, 0), (&x, 1024)).unwrap_err();
    assert!(matches!(backend(&error), WgpuError::SharedBuffer { read: "x", written: "y" }), "{error}");
}

#[test]
fn memory_of_another_device_is_refused() {
    let Some(adapter) = adapter() else { return };
    let [mine, other] = [(); 2].map(|()| {
        let (device, queue) = own_device(&adapter, Limits::default());
        Wgpu::new(device, queue).unwrap()
    });
    let foreign = buffer(&other, 4096, BufferUsages::STORAGE);
    let y = buffer(&mine, 4096, BufferUsages::STORAGE);
    let error = forward(&mine, (&foreign, 0), (&y, 0)).unwrap_err();
    assert!(matches!(backend(&error), WgpuError::Refused { .. }), "{error}");
    forward(&mine, (&buffer(&mine, 4096, BufferUsages::STORAGE), 0), (&y, 0)).unwrap();
}

#[test]
fn a_tensor_beyond_one_binding_is_refused_with_the_limit() {
    let limits = Limits { max_storage_buffer_binding_size: 1 << 20, ..Limits::default() };
    let Some(adapter) = adapter() else { return };
    let (device, queue) = own_device(&adapter, limits);
    let wgpu = Wgpu::new(device, queue).unwrap();
    let geometry = Geometry::channels_first(&[1, 3, 100_000]).unwrap();
    let mut rig = Rig::<f32>::new(&wgpu, geometry, &numbers(300_000, 0.3));
    let mut layer = SyncBatchNorm::local("bn", Config::new(3), wgpu.clone(), &rig.queue).unwrap();
    let error = rig.forward(&mut layer).unwrap_err();
    let named = "max_storage_buffer_binding_size is 1048576, 1200000 is needed";
    assert!(told(&error).contains(named), "{}", told(&error));
}

#[test]
fn webgpus_default_limits_are_enough() {
    let Some(adapter) = adapter() else { return };
    let (device, queue) = own_device(&adapter, Limits::default());
    let wgpu = Wgpu::new(device, queue).unwrap();
    let mut rig = Rig::<f32>::new(&wgpu, geometry(), &numbers(LEN, 0.7));
    let mut layer = SyncBatchNorm::local("bn", Config::new(3), wgpu.clone(), &rig.queue).unwrap();
    let saved = rig.forward(&mut layer).unwrap();
    rig.backward(&mut layer, &saved).unwrap();
    assert!(rig.read(&rig.dx).iter().any(|&v| v != 0.0));
}

#[test]
fn limits_below_what_kernels_need_are_named() {
    let limits = Limits { max_storage_buffers_per_shader_stage: 4, ..Limits::default() };
    let Some(adapter) = adapter() else { return };
    let (device, queue) = own_device(&adapter, limits);
    let error = Wgpu::new(device, queue).unwrap_err();
    assert!(error.to_string().contains("max_storage_buffers_per_shader_stage is 4, 6 is needed"), "{error}");
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let most = wgpu.device().limits().max_storage_buffer_binding_size;
    let channels = usize::try_from(most / 16).unwrap();
    let error = wgpu.workspace(&queue, channels, Dtype::F32).err().unwrap();
    assert!(matches!(error, WgpuError::Limit { .. } | WgpuError::OutOfMemory { .. }), "{error}");
}

#[test]
fn a_lost_device_is_told_by_the_next_call() {
    let Some(wgpu) = gpu() else { return };
    lost::<f32>(&wgpu);
    let Some(wgpu) = gpu() else { return };
    lost::<f16>(&wgpu);
}

fn lost<T: syncbn_core::Element<Param = f32>>(wgpu: &Wgpu)
where
    Wgpu: Kernels<T>,
{
    let x: Vec<T> = numbers(LEN, 0.7).into_iter().map(|v| T::from_f64(v.into())).collect();
    let mut rig = Rig::<T>::new(wgpu, geometry(), &x);
    let mut layer = SyncBatchNorm::local("bn", Config::new(3), wgpu.clone(), &rig.queue).unwrap();
    let saved = rig.forward(&mut layer).unwrap();
    wgpu.device().destroy();
    let is_lost = |error: &Error| matches!(backend(error), WgpuError::DeviceLost { .. });
    let error = rig.forward(&mut layer).unwrap_err();
    assert!(is_lost(&error), "{}", told(&error));
    let error = rig.backward(&mut layer, &saved).unwrap_err();
    assert!(is_lost(&error), "{}", told(&error));
    let error = layer.state(&rig.queue).unwrap_err();
    assert!(is_lost(&error), "{}", told(&error));
    assert!(matches!(wgpu.upload(&rig.queue, &[1.0_f32]), Err(WgpuError::DeviceLost { .. })));
    assert!(matches!(common::download(wgpu, &rig.queue, &rig.y), Err(WgpuError::DeviceLost { .. })));
}
