//! Numbers of every size in one channel, and memory that is not all ours.

#![allow(clippy::unwrap_used, reason = "tests fail where these do")]

mod common;

use common::{Rig, gpu, numbers};
use syncbn_core::{Config, Element, Geometry, Kernels, SyncBatchNorm, View, ViewMut, bf16, f16};
use syncbn_wgpu::wgpu::{self, BufferUsages, util::DeviceExt};
use syncbn_wgpu::{Mem, MemMut, Wgpu};

/// Channel c gets the numbers of `sizes[c]`, whose size changes on the way, so that whatever was summed has to be rescaled.
fn sizes() -> Vec<[f64; 4]> {
    vec![
        [0.0, 1e-44, 1e-44, 1e-43],
        [1e-42, 1e-30, 1.0, 1.0],
        [1.0, 1e-40, 1e-20, 2.0],
        [1e-20, 1e-21, 1e-20, 0.0],
        [0.0, 0.0, 1e-13, 1e15],
        [1e13, 1e30, 1e29, 1.0],
        [1e36, 1e37, 1e-40, 1e36],
        [1.0, 2.0, 3.0, 1e18],
        [0.0; 4],
    ]
}

fn check<T: Element<Param = f32>>(wgpu: &Wgpu, last: bool)
where
    Wgpu: Kernels<T>,
{
    const PIXELS: usize = 1000;
    let sizes = sizes();
    let channels = sizes.len();
    let value =
        |c: usize, i: usize| T::from_f64(sizes[c][i * 4 / PIXELS] * f64::from((i as f32 * 0.7).sin()));
    let at = |c: usize, i: usize| if last { i * channels + c } else { c * PIXELS + i };
    let mut x = vec![T::default(); channels * PIXELS];
    for c in 0..channels {
        for i in 0..PIXELS {
            x[at(c, i)] = value(c, i);
        }
    }
    let geometry = if last {
        Geometry::channels_last(&[1, PIXELS, channels])
    } else {
        Geometry::channels_first(&[1, channels, PIXELS])
    };
    let mut rig = Rig::<T>::new(wgpu, geometry.unwrap(), &x);
    // So small that it decides nothing but channels of zeros.
    let mut config = Config::new(channels);
    (config.eps, config.affine) = (1e-250, false);
    let mut layer = SyncBatchNorm::local("bn", config, wgpu.clone(), &rig.queue).unwrap();
    rig.forward(&mut layer).unwrap();
    let y = rig.read(&rig.y);
    for c in 0..channels {
        let all: Vec<f64> = (0..PIXELS).map(|i| value(c, i).to_f64()).collect();
        let mean = all.iter().sum::<f64>() / PIXELS as f64;
        let var = all.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / PIXELS as f64;
        let mut error = 0.0;
        for (i, v) in all.iter().enumerate() {
            let expected = (v - mean) / (var + 1e-250).sqrt();
            error += (y[at(c, i)].to_f64() - expected).powi(2);
        }
        let error = (error / PIXELS as f64).sqrt();
        let bar = if size_of::<T>() == 4 { 5e-7 } else { 4e-3 };
        assert!(error <= bar, "{} channel {c}, channels last {last}: off by {error:e}", T::DTYPE);
    }
}

#[test]
fn channels_keep_to_the_bar_whatever_the_size_of_their_numbers() {
    let Some(wgpu) = gpu() else { return };
    for last in [false, true] {
        check::<f32>(&wgpu, last);
        check::<bf16>(&wgpu, last);
    }
}

#[test]
fn halves_of_odd_number_leave_what_lies_behind_them() {
    let Some(wgpu) = gpu() else { return };
    let queue = wgpu.queue();
    let guard = f16::from_f32(-77.0);
    let geometry = Geometry::channels_first(&[1, 3, 5]).unwrap();
    let x: Vec<f16> = numbers(16, 0.7).into_iter().map(f16::from_f32).collect();
    let place = |values: &[f16]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let descriptor = wgpu::util::BufferInitDescriptor { label: None, contents: &bytes, usage };
        wgpu.device().create_buffer_init(&descriptor)
    };
    let (x, y) = (place(&x), place(&[guard; 16]));
    let mut layer = SyncBatchNorm::<_, f32>::local("bn", Config::new(3), wgpu.clone(), &queue).unwrap();
    let input = View::<Wgpu, f16>::new(Mem::new(&x, 0, 15), geometry);
    let output = ViewMut::<Wgpu, f16>::new(MemMut::new(&y, 0, 15), geometry);
    layer.forward(&queue, input, output).unwrap();
    let readable = wgpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 32,
        usage: BufferUsages::MAP_READ | BufferUsages::COPY_DST,
        mapped_at_creation: false,
    });
    queue.record(|encoder| encoder.copy_buffer_to_buffer(&y, 0, &readable, 0, 32)).unwrap();
    readable.map_async(wgpu::MapMode::Read, .., |result| result.unwrap());
    wgpu.device().poll(wgpu::PollType::wait_indefinitely()).unwrap();
    let bytes = readable.get_mapped_range(..).unwrap().to_vec();
    let y: Vec<f16> = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    assert_eq!(y[15], guard);
    assert!(y[..15].iter().all(|&v| v != guard && v.to_f32().abs() < 3.0), "{y:?}");
}
