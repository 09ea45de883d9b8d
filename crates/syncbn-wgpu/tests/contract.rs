//! What the contract asks of memory, messages and saved statistics, and what an application may do with a layer's buffers.

#![allow(clippy::unwrap_used, reason = "tests fail where these do")]

mod common;

use common::{Rig, buffer, download, gpu, numbers};
use syncbn_core::backend::{MomentsArgs, NormalizeArgs, Source};
use syncbn_core::statistics::{Batch, Moments, NonFinite};
use syncbn_core::{
    Backend, Config, Dtype, Geometry, Kernels, Pass, RunningMut, Storage, SyncBatchNorm, View, ViewMut, f16,
    saved_len,
};
use syncbn_wgpu::wgpu::{self, BufferUsages};
use syncbn_wgpu::{Buffer, Mem, MemMut, Queue, Wgpu, WgpuError, Workspace};

const LEN: usize = 24;

fn geometry() -> Geometry {
    Geometry::channels_first(&[2, 3, 4]).unwrap()
}

fn copied() -> BufferUsages {
    BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST
}

#[test]
fn parts_of_a_buffer_are_read_and_written_and_the_rest_stays() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let inner = buffer(&wgpu, 32, copied());
    let guard = [f16::from_f32(-77.0); 16];
    wgpu.write(&queue, MemMut::new(&inner, 0, 16), &guard).unwrap();
    let values = [1.0, 2.0, 3.0].map(f16::from_f32);
    wgpu.write(&queue, MemMut::new(&inner, 8, 3), &values).unwrap();
    let mut got = [f16::ZERO; 16];
    wgpu.read(&queue, Mem::new(&inner, 0, 16), &mut got).unwrap();
    let mut expected = guard;
    expected[4..7].copy_from_slice(&values);
    assert_eq!(got, expected);
    let mut three = [f16::ZERO; 3];
    wgpu.read(&queue, Mem::new(&inner, 8, 3), &mut three).unwrap();
    assert_eq!(three, values);
    wgpu.read::<f32>(&queue, Mem::empty(), &mut []).unwrap();
    wgpu.write::<f32>(&queue, MemMut::empty(), &[]).unwrap();
}

#[test]
fn copies_that_cannot_be_made_are_typed_errors() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let inner = buffer(&wgpu, 32, copied());
    let mut four = [0.0_f32; 4];
    let mut read = |mem| wgpu.read(&queue, mem, &mut four).unwrap_err();
    let error = read(Mem::new(&inner, 0, 5));
    assert!(matches!(error, WgpuError::Length { expected: 5, got: 4 }), "{error}");
    let error = read(Mem::new(&inner, 2, 4));
    assert!(matches!(error, WgpuError::Alignment { offset: 2, .. }), "{error}");
    let error = read(Mem::new(&inner, 20, 4));
    assert!(matches!(error, WgpuError::OutOfBuffer { end: 36, size: 32, .. }), "{error}");
    let error = read(Mem::new(&inner, u64::MAX - 3, 4));
    assert!(matches!(error, WgpuError::OutOfBuffer { .. }), "{error}");
    let storage = buffer(&wgpu, 32, BufferUsages::STORAGE);
    let error = read(Mem::new(&storage, 0, 4));
    assert!(matches!(error, WgpuError::Usage { .. }), "{error}");
    let error = wgpu.write(&queue, MemMut::new(&storage, 0, 4), &four).unwrap_err();
    assert!(matches!(error, WgpuError::Usage { .. }), "{error}");
    let error = wgpu.write(&queue, MemMut::new(&inner, 0, 4), &[0.0_f32; 3]).unwrap_err();
    assert!(matches!(error, WgpuError::Length { expected: 4, got: 3 }), "{error}");
}

#[test]
fn a_workspace_of_other_channels_or_another_length_of_message_is_refused() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let x = wgpu.upload(&queue, &numbers(LEN, 0.7)).unwrap();
    let mut workspace = wgpu.workspace(&queue, 4, Dtype::F32).unwrap();
    let x = View::<Wgpu, f32>::new(Wgpu::mem(&x), geometry()).unwrap();
    let error = wgpu.moments(&queue, MomentsArgs { x, workspace: &mut workspace }).unwrap_err();
    assert!(matches!(error, WgpuError::Channels { expected: 3, got: 4 }), "{error}");
    let error = wgpu.read_message(&queue, Pass::Backward, &mut workspace, &mut [0.0; 3]).unwrap_err();
    assert!(matches!(error, WgpuError::Length { expected: 8, got: 3 }), "{error}");
    let error = wgpu.write_message(&queue, Pass::Forward, &mut workspace, &[]).unwrap_err();
    assert!(matches!(error, WgpuError::Length { expected: 17, got: 0 }), "{error}");
}

#[test]
fn a_message_resolves_what_the_device_does() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    // A variance of 1/4 at a mean of 2^24, which one sum of squares would lose.
    let x: Vec<f32> = (0..LEN).map(|i| if i % 2 == 0 { 16_777_214.0 } else { 16_777_215.0 }).collect();
    let x = wgpu.upload(&queue, &x).unwrap();
    message_of::<4>(&wgpu, &queue, &x, Dtype::F32);
    message_of::<6>(&wgpu, &queue, &x, Dtype::F64);
}

fn message_of<const K: usize>(wgpu: &Wgpu, queue: &Queue, x: &Buffer<f32>, params: Dtype) {
    let mut workspace = wgpu.workspace(queue, 3, params).unwrap();
    moments(wgpu, queue, x, &mut workspace);
    let mut message = vec![0.0; Pass::Forward.message_len(3, params)];
    wgpu.read_message(queue, Pass::Forward, &mut workspace, &mut message).unwrap();
    let sums = Moments { count: 8.0, mean: 16_777_214.5, m2: 2.0 }.to_sums::<K>();
    for c in 0..3 {
        let got: [f64; K] = std::array::from_fn(|k| message[1 + 3 * k + c]);
        assert_eq!((message[0], got), (8.0, sums));
        let batch = Batch::from_sums(message[0], got);
        assert_eq!((batch.mean, batch.var), (16_777_214.5, 0.25));
    }
}

fn moments(wgpu: &Wgpu, queue: &Queue, x: &Buffer<f32>, workspace: &mut Workspace) {
    let x = View::<Wgpu, f32>::new(Wgpu::mem(x), geometry()).unwrap();
    wgpu.moments(queue, MomentsArgs { x, workspace }).unwrap();
}

struct Running {
    mean: Buffer<f32>,
    var: Buffer<f32>,
    count: Buffer<i64>,
}

impl Running {
    fn new(wgpu: &Wgpu, queue: &Queue) -> Self {
        Self {
            mean: wgpu.upload(queue, &[0.5; 3]).unwrap(),
            var: wgpu.upload(queue, &[2.0; 3]).unwrap(),
            count: wgpu.upload(queue, &[4]).unwrap(),
        }
    }

    fn lent(&mut self, momentum: Option<f64>, non_finite: NonFinite) -> RunningMut<'_, Wgpu, f32> {
        RunningMut {
            mean: Wgpu::mem_mut(&mut self.mean),
            var: Wgpu::mem_mut(&mut self.var),
            num_batches_tracked: Wgpu::mem_mut(&mut self.count),
            momentum,
            non_finite,
        }
    }

    fn values(&self, wgpu: &Wgpu, queue: &Queue) -> (Vec<f32>, Vec<f32>, Vec<i64>) {
        let of = |buffer| download(wgpu, queue, buffer).unwrap();
        (of(&self.mean), of(&self.var), download(wgpu, queue, &self.count).unwrap())
    }
}

/// Running statistics after a pass over x that updates them, and after one that does not and an update from what it saved.
fn updated(
    wgpu: &Wgpu,
    x: &[f32],
    momentum: Option<f64>,
    non_finite: NonFinite,
) -> [(Vec<f32>, Vec<f32>, Vec<i64>); 2] {
    let queue = wgpu.queue();
    let x = wgpu.upload(&queue, x).unwrap();
    let mut y = wgpu.upload(&queue, &[0.0_f32; LEN]).unwrap();
    [false, true].map(|later| {
        let mut running = Running::new(wgpu, &queue);
        let mut workspace = wgpu.workspace(&queue, 3, Dtype::F32).unwrap();
        let mut saved = wgpu.saved(&queue, 3).unwrap();
        let view = || View::<Wgpu, f32>::new(Wgpu::mem(&x), geometry()).unwrap();
        moments(wgpu, &queue, &x, &mut workspace);
        let now = (!later).then(|| running.lent(momentum, non_finite));
        let source = Source::Batch {
            workspace: &workspace,
            group: false,
            saved: Wgpu::saved_mem_mut(&mut saved),
            running: now,
        };
        let y = ViewMut::new(Wgpu::mem_mut(&mut y), geometry()).unwrap();
        let args = NormalizeArgs { x: view(), y, source, weight: None, bias: None, eps: 1e-5 };
        wgpu.normalize(&queue, args).unwrap();
        if later {
            let empty = Geometry::channels_first(&[0, 3]).unwrap();
            let x = View::<Wgpu, f32>::new(Wgpu::empty(), empty).unwrap();
            let y = ViewMut::new(Wgpu::empty_mut(), empty).unwrap();
            let running = Some(running.lent(momentum, non_finite));
            let source = Source::Saved { saved: Wgpu::saved_mem(&saved), running };
            wgpu.normalize(&queue, NormalizeArgs { x, y, source, weight: None, bias: None, eps: 1e-5 })
                .unwrap();
        }
        wgpu.flush(&queue).unwrap();
        running.values(wgpu, &queue)
    })
}

#[test]
fn running_statistics_updated_from_what_was_saved_have_the_same_bits() {
    let Some(wgpu) = gpu() else { return };
    let mut x = numbers(LEN, 0.7);
    x[5] = 1e30;
    for momentum in [Some(0.1), None] {
        let [now, later] = updated(&wgpu, &x, momentum, NonFinite::Propagate);
        assert_eq!(now, later);
        assert_eq!(now.2, [5]);
        assert!(now.0[0] != 0.5 && now.1[0] != 2.0);
    }
}

#[test]
fn channels_that_are_not_finite_are_skipped_where_asked() {
    let Some(wgpu) = gpu() else { return };
    let mut x = numbers(LEN, 0.7);
    (x[0], x[5]) = (f32::INFINITY, f32::NAN);
    let [finite, _] = updated(&wgpu, &numbers(LEN, 0.7), Some(0.1), NonFinite::Propagate);
    for (mean, var, count) in updated(&wgpu, &x, Some(0.1), NonFinite::Skip) {
        assert_eq!((&mean[..2], &var[..2]), (&[0.5; 2][..], &[2.0; 2][..]));
        assert_eq!((mean[2], var[2], &count), (finite.0[2], finite.1[2], &finite.2));
    }
    for (mean, var, _) in updated(&wgpu, &x, Some(0.1), NonFinite::Propagate) {
        assert!(mean[..2].iter().chain(&var[..2]).all(|v| !v.is_finite()), "{mean:?} {var:?}");
    }
}

#[test]
fn saved_statistics_in_memory_of_the_application_are_bound_where_wgpu_can() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let x = wgpu.upload(&queue, &numbers(LEN, 0.7)).unwrap();
    let mut y = wgpu.upload(&queue, &[0.0_f32; LEN]).unwrap();
    let inner = buffer(&wgpu, 1024, BufferUsages::STORAGE);
    let mut workspace = wgpu.workspace(&queue, 3, Dtype::F32).unwrap();
    let mut normalize = |offset, len| {
        let view = || View::<Wgpu, f32>::new(Wgpu::mem(&x), geometry()).unwrap();
        moments(&wgpu, &queue, &x, &mut workspace);
        let saved = MemMut::new(&inner, offset, len);
        let source = Source::Batch { workspace: &workspace, group: false, saved, running: None };
        let y = ViewMut::new(Wgpu::mem_mut(&mut y), geometry()).unwrap();
        wgpu.normalize(&queue, NormalizeArgs { x: view(), y, source, weight: None, bias: None, eps: 1e-5 })
    };
    let alignment = u64::from(wgpu.device().limits().min_storage_buffer_offset_alignment);
    normalize(alignment, saved_len(3)).unwrap();
    let error = normalize(8, saved_len(3)).unwrap_err();
    assert!(
        matches!(error, WgpuError::Alignment { tensor: "the saved statistics", offset: 8, .. }),
        "{error}"
    );
    let error = normalize(0, 1000).unwrap_err();
    assert!(matches!(error, WgpuError::OutOfBuffer { .. }), "{error}");
}

/// An optimiser's kernel: w -= 0.5 * g.
fn descend(wgpu: &Wgpu, queue: &Queue, weight: &wgpu::Buffer, gradient: &wgpu::Buffer) {
    let device = wgpu.device();
    let text = "@group(0) @binding(0) var<storage, read_write> w: array<f32>;
        @group(0) @binding(1) var<storage, read> g: array<f32>;
        @compute @workgroup_size(4) fn descend(@builtin(local_invocation_index) i: u32) {
            if i < 3u { w[i] -= 0.5 * g[i]; }
        }";
    let source = wgpu::ShaderSource::Wgsl(text.into());
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let entries = [weight, gradient];
    let entries: Vec<_> = (0..)
        .zip(entries)
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let bound = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    let work = |encoder: &mut wgpu::CommandEncoder| {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bound, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    };
    queue.record(work).unwrap();
}

#[test]
fn an_optimiser_on_the_device_updates_weights_in_order_with_the_passes() {
    let Some(wgpu) = gpu() else { return };
    for held in [false, true] {
        let mut rig = Rig::<f32>::new(&wgpu, geometry(), &numbers(LEN, 0.7));
        let queue = wgpu.queue();
        let mut layer =
            SyncBatchNorm::<Wgpu, f32>::local("bn", Config::new(3), wgpu.clone(), &queue).unwrap();
        // The application's own memory becomes the weight.
        let mine = buffer(&wgpu, 256, Buffer::<f32>::USAGE);
        *layer.weight_mut().unwrap() = Buffer::from_wgpu(mine.clone(), 3).unwrap();
        wgpu.write(&queue, MemMut::new(&mine, 0, 3), &[1.0_f32, 2.0, 4.0]).unwrap();
        let gradient = wgpu.upload(&queue, &[2.0_f32, -2.0, 4.0]).unwrap();
        let mut step = || {
            let x = View::new(Wgpu::mem(&rig.x), rig.geometry);
            let y = ViewMut::new(Wgpu::mem_mut(&mut rig.y), rig.geometry);
            layer.forward(&queue, x, y).unwrap();
            descend(&wgpu, &queue, layer.weight_mut().unwrap().inner(), gradient.inner());
            let x = View::new(Wgpu::mem(&rig.x), rig.geometry);
            let dx = ViewMut::new(Wgpu::mem_mut(&mut rig.dx), rig.geometry);
            layer.forward(&queue, x, dx).unwrap();
        };
        if held {
            queue.hold(step).unwrap();
        } else {
            step();
        }
        let (before, after) = (rig.read(&rig.y), rig.read(&rig.dx));
        for (i, (before, after)) in before.iter().zip(&after).enumerate() {
            let factor = [0.0, 1.5, 0.5][i / 4 % 3];
            assert!(
                (before * factor - after).abs() <= 1e-6 * after.abs(),
                "held {held}, {i}: {before} {after}"
            );
        }
        assert_eq!(layer.state(&queue).unwrap().weight.unwrap(), [0.0, 3.0, 2.0]);
    }
}

#[test]
fn a_buffer_that_cannot_be_a_layers_is_refused() {
    let Some(wgpu) = gpu() else { return };
    let error = Buffer::<f32>::from_wgpu(buffer(&wgpu, 32, BufferUsages::STORAGE), 3).unwrap_err();
    assert!(matches!(error, WgpuError::Usage { .. }), "{error}");
    let short = || buffer(&wgpu, 32, Buffer::<f32>::USAGE);
    for len in [9, usize::MAX] {
        let error = Buffer::<f32>::from_wgpu(short(), len).unwrap_err();
        assert!(matches!(error, WgpuError::OutOfBuffer { .. }), "{error}");
    }
}
