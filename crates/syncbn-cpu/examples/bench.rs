//! Times forward and backward of a local layer beside a copy of x: `cargo run --release --example bench`.
//!
//! Medians and minima over interleaved repetitions, in milliseconds, on the global rayon pool (set `RAYON_NUM_THREADS` for
//! another number of threads). Arguments filter: a type (`f32`), a layout (`NHWC`), a part of a shape (`56`).
//!
//! Deliberately not here: other implementations, and any device but the CPU.

#![allow(clippy::unwrap_used)] // an example may panic

use std::env;
use std::time::Instant;

use rayon::prelude::*;
use syncbn_core::{
    Config, Dtype, Element, Kernels, ParamGradients, ShapeError, SyncBatchNorm, View, ViewMut, bf16, f16,
};
use syncbn_cpu::Cpu;

const REPETITIONS: usize = 41;

/// (N, C, spatial) of every shape.
const SHAPES: [&[usize]; 7] = [
    &[8, 64, 112, 112],
    &[8, 256, 56, 56],
    &[32, 512, 14, 14],
    &[64, 2048, 7, 7],
    &[4096, 256],
    &[2, 512, 7, 7],
    &[3, 67, 13, 13],
];

fn main() {
    let filter: Vec<String> = env::args().skip(1).collect();
    println!(
        "{} threads, {REPETITIONS} repetitions: median (minimum) in milliseconds",
        rayon::current_num_threads()
    );
    println!("| type, shape, layout | copy | forward | backward | forward / copy | backward / copy |");
    println!("|---|---|---|---|---|---|");
    for shape in SHAPES {
        for channels_last in [false, true] {
            if channels_last && shape.len() == 2 {
                continue;
            }
            row::<f32>(&filter, shape, channels_last);
            row::<f16>(&filter, shape, channels_last);
            row::<bf16>(&filter, shape, channels_last);
            row::<f64>(&filter, shape, channels_last);
        }
    }
}

fn row<T: Element>(filter: &[String], shape: &[usize], channels_last: bool)
where
    Cpu: Kernels<T>,
{
    let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let layout = if channels_last { "NHWC" } else { "NCHW" };
    let name = format!("{} {} {layout}", T::DTYPE, sizes.join("x"));
    let default = T::DTYPE == Dtype::F32;
    let wanted = filter
        .iter()
        .all(|part| name.split(' ').any(|word| word == part || word.contains(&format!("x{part}"))));
    if !wanted || (filter.is_empty() && !default) {
        return;
    }
    let [copy, forward, backward] = measure::<T>(shape, channels_last);
    println!(
        "| {name} | {} | {} | {} | {:.2} | {:.2} |",
        copy.show(),
        forward.show(),
        backward.show(),
        forward.median / copy.median,
        backward.median / copy.median
    );
}

struct Times {
    median: f64,
    least: f64,
}

impl Times {
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { median: seconds[seconds.len() / 2] * 1e3, least: seconds[0] * 1e3 }
    }

    fn show(&self) -> String {
        format!("{:.3} ({:.3})", self.median, self.least)
    }
}

fn measure<T: Element>(shape: &[usize], channels_last: bool) -> [Times; 3]
where
    Cpu: Kernels<T>,
{
    let channels = shape[1];
    let len: usize = shape.iter().product();
    let value = |i: usize| {
        T::from_f64(f64::from((i as u32).wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 23) - 1.0)
    };
    let x: Vec<T> = (0..len).map(value).collect();
    let dy: Vec<T> = (0..len).map(|i| value(i + len)).collect();
    let (mut y, mut dx) = (vec![T::default(); len], vec![T::default(); len]);
    let (mut weight, mut bias) = (vec![T::Param::default(); channels], vec![T::Param::default(); channels]);
    let mut layer = SyncBatchNorm::<Cpu, T::Param>::local("bench", Config::new(channels), Cpu, &()).unwrap();

    let mut seconds: [Vec<f64>; 3] = Default::default();
    for _ in 0..REPETITIONS + 3 {
        let start = Instant::now();
        y.par_chunks_mut(1 << 18).zip(x.par_chunks(1 << 18)).for_each(|(y, x)| y.copy_from_slice(x));
        seconds[0].push(start.elapsed().as_secs_f64());

        let start = Instant::now();
        let saved = layer
            .forward(&(), tensor(&x, shape, channels_last), tensor_mut(&mut y, shape, channels_last))
            .unwrap();
        seconds[1].push(start.elapsed().as_secs_f64());

        let parameters = ParamGradients { weight: Some(&mut weight[..]), bias: Some(&mut bias[..]) };
        let (x, dy) = (tensor(&x, shape, channels_last), tensor(&dy, shape, channels_last));
        let dx = tensor_mut(&mut dx, shape, channels_last);
        let start = Instant::now();
        layer.backward(&(), &saved, x, dy, dx, parameters).unwrap();
        seconds[2].push(start.elapsed().as_secs_f64());
    }
    seconds.map(|seconds| Times::of(seconds[3..].to_vec()))
}

fn tensor<'a, T: Element>(
    memory: &'a [T],
    shape: &[usize],
    channels_last: bool,
) -> Result<View<'a, Cpu, T>, ShapeError> {
    if channels_last {
        View::channels_last(memory, &rotated(shape))
    } else {
        View::channels_first(memory, shape)
    }
}

fn tensor_mut<'a, T: Element>(
    memory: &'a mut [T],
    shape: &[usize],
    channels_last: bool,
) -> Result<ViewMut<'a, Cpu, T>, ShapeError> {
    if channels_last {
        ViewMut::channels_last(memory, &rotated(shape))
    } else {
        ViewMut::channels_first(memory, shape)
    }
}

/// (N, C, *spatial) as (N, *spatial, C).
fn rotated(shape: &[usize]) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[1..].rotate_left(1);
    shape
}
