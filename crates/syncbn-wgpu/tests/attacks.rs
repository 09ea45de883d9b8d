//! What an application may do wrong with wgpu's own objects: each is a typed error, and neither a panic nor a hang.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail where these do")]

mod common;

use std::sync::mpsc::channel;
use std::time::Duration;

use common::{adapter, buffer, download, gpu, numbers, own_device};
use syncbn_core::backend::MomentsArgs;
use syncbn_core::{Backend, Dtype, Geometry, Kernels, Pass, Storage, View};
use syncbn_wgpu::wgpu::{self, BufferUsages, CommandEncoderDescriptor, Limits};
use syncbn_wgpu::{Mem, Queue, Wgpu, WgpuError};

fn geometry() -> Geometry {
    Geometry::channels_first(&[2, 3, 4]).unwrap()
}

fn of_another_instance() -> Option<Wgpu> {
    let (device, queue) = own_device(&adapter()?, Limits::default());
    Some(Wgpu::new(device, queue).unwrap())
}

fn moments(wgpu: &Wgpu, queue: &Queue, x: &wgpu::Buffer) -> Result<(), WgpuError> {
    let mut workspace = wgpu.workspace(&wgpu.queue(), 3, Dtype::F32)?;
    let x = View::<Wgpu, f32>::new(Mem::new(x, 0, 24), geometry()).unwrap();
    wgpu.moments(queue, MomentsArgs { x, workspace: &mut workspace })
}

/// What the work returns, if it ends.
fn within_a_minute<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("the work does not end"))
}

#[test]
fn a_queue_that_is_recording_refuses_other_work() {
    let Some(wgpu) = gpu() else { return };
    within_a_minute(move || {
        let queue = wgpu.queue();
        let mut values = wgpu.upload(&queue, &numbers(24, 0.7)).unwrap();
        let errors = queue.record(|_| {
            [
                queue.record(|_| ()).unwrap_err(),
                download(&wgpu, &queue, &values).unwrap_err(),
                wgpu.write(&queue, Wgpu::mem_mut(&mut values), &numbers(24, 0.3)).unwrap_err(),
                moments(&wgpu, &queue, values.inner()).unwrap_err(),
                wgpu.flush(&queue).unwrap_err(),
            ]
        });
        for error in errors.unwrap() {
            assert!(matches!(error, WgpuError::Recording), "{error}");
        }
        assert_eq!(queue.hold(|| queue.record(|_| 1).unwrap()).unwrap(), 1);
        moments(&wgpu, &queue, values.inner()).unwrap();
    });
}

#[test]
fn a_recording_that_panics_leaves_the_queue_usable() {
    let Some(wgpu) = gpu() else { return };
    within_a_minute(move || {
        let queue = wgpu.queue();
        let work = std::panic::AssertUnwindSafe(|| queue.record(|_| panic!("the application's")));
        std::panic::catch_unwind(work).unwrap_err();
        queue.record(|_| ()).unwrap();
    });
}

#[test]
fn a_recording_that_exchanges_the_encoder_is_an_error() {
    let (Some(wgpu), Some(other)) = (gpu(), of_another_instance()) else { return };
    let queue = wgpu.queue();
    // So that the number of this encoder is none of the other instance's.
    let many: Vec<_> = (0..100)
        .map(|_| other.device().create_command_encoder(&CommandEncoderDescriptor::default()))
        .collect();
    let foreign = other.device().create_command_encoder(&CommandEncoderDescriptor::default());
    let error = queue.record(|encoder| drop(std::mem::replace(encoder, foreign))).unwrap_err();
    assert!(matches!(error, WgpuError::Panicked { .. }), "{error}");
    drop(many);
    queue.record(|_| ()).unwrap();
}

#[test]
fn a_recording_may_leave_an_error_scope_open() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let scope = queue.record(|_| wgpu.device().push_error_scope(wgpu::ErrorFilter::Validation)).unwrap();
    assert!(pollster::block_on(scope.pop()).is_none());
}

#[test]
fn a_queue_of_another_instance_or_device_is_refused() {
    let (Some(mine), Some(other)) = (gpu(), of_another_instance()) else { return };
    let mut values = mine.upload(&mine.queue(), &numbers(24, 0.7)).unwrap();
    let foreign = other.queue();
    let errors = [
        moments(&mine, &foreign, values.inner()).unwrap_err(),
        download(&mine, &foreign, &values).unwrap_err(),
        mine.write(&foreign, Wgpu::mem_mut(&mut values), &numbers(24, 0.3)).unwrap_err(),
        mine.flush(&foreign).unwrap_err(),
        mine.prepare_f32(&foreign).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, WgpuError::ForeignQueue), "{error}");
    }
    let (Some(first), Some(second)) = (adapter(), adapter()) else { return };
    let (device, _queue) = own_device(&first, Limits::default());
    for adapter in [&first, &second] {
        let (_device, queue) = own_device(adapter, Limits::default());
        let error = Wgpu::new(device.clone(), queue).unwrap_err();
        assert!(matches!(error, WgpuError::ForeignQueue), "{error}");
    }
}

#[test]
fn a_workspace_of_another_instance_is_refused() {
    let (Some(mine), Some(other)) = (gpu(), of_another_instance()) else { return };
    let queue = mine.queue();
    let mut foreign = other.workspace(&other.queue(), 3, Dtype::F32).unwrap();
    let values = mine.upload(&queue, &numbers(24, 0.7)).unwrap();
    let x = View::<Wgpu, f32>::new(Wgpu::mem(&values), geometry()).unwrap();
    let errors = [
        mine.moments(&queue, MomentsArgs { x, workspace: &mut foreign }).unwrap_err(),
        mine.read_message(&queue, Pass::Backward, &mut foreign, &mut [0.0; 6]).unwrap_err(),
        mine.write_message(&queue, Pass::Backward, &mut foreign, &[0.0; 6]).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, WgpuError::ForeignWorkspace), "{error}");
    }
}

trait Prepare {
    fn prepare_f32(&self, queue: &Queue) -> Result<(), WgpuError>;
}

impl Prepare for Wgpu {
    fn prepare_f32(&self, queue: &Queue) -> Result<(), WgpuError> {
        Kernels::<f32>::prepare(self, queue, &geometry(), false)
    }
}

#[test]
fn memory_of_another_instance_is_refused_where_wgpu_can_tell() {
    let (Some(mine), Some(other)) = (gpu(), of_another_instance()) else { return };
    // So that the number of this buffer is none of ours.
    let many: Vec<_> = (0..1000).map(|_| buffer(&other, 256, BufferUsages::STORAGE)).collect();
    let foreign = buffer(&other, 256, BufferUsages::STORAGE);
    let error = moments(&mine, &mine.queue(), &foreign).unwrap_err();
    assert!(matches!(error, WgpuError::Panicked { .. }), "{error}");
    drop(many);
    moments(&mine, &mine.queue(), &buffer(&mine, 256, BufferUsages::STORAGE)).unwrap();
}

#[test]
fn no_number_of_channels_wraps_around() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    for channels in [1 << 40, 1 << 59, (1 << 59) - 1, 1 << 60, 1 << 63, usize::MAX / 3, usize::MAX] {
        let error = wgpu.workspace(&queue, channels, Dtype::F32).err().unwrap();
        assert!(matches!(error, WgpuError::Limit { .. }), "{channels} channels: {error}");
        let error = wgpu.saved(&queue, channels).err().unwrap();
        assert!(matches!(error, WgpuError::Limit { .. }), "{channels} channels: {error}");
    }
}

#[test]
fn a_tensor_without_elements_may_have_axes_of_any_length() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let x = buffer(&wgpu, 256, BufferUsages::STORAGE);
    for shape in [[0, 3, 1 << 45], [0, 3, 1 << 33], [0, 3, (1 << 33) + 1]] {
        let geometry = Geometry::channels_first(&shape).unwrap();
        let mut workspace = wgpu.workspace(&queue, 3, Dtype::F32).unwrap();
        let x = View::<Wgpu, f32>::new(Mem::new(&x, 0, 0), geometry).unwrap();
        wgpu.moments(&queue, MomentsArgs { x, workspace: &mut workspace }).unwrap();
    }
}

#[test]
fn a_device_without_workgroups_is_refused() {
    let Some(adapter) = adapter() else { return };
    let limits = Limits { max_compute_workgroups_per_dimension: 0, ..Limits::default() };
    let (device, queue) = own_device(&adapter, limits);
    let error = Wgpu::new(device, queue).unwrap_err();
    assert!(error.to_string().contains("max_compute_workgroups_per_dimension is 0"), "{error}");
}
