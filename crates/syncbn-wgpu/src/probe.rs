//! Tries out a device's arithmetic before anything relies on it.

use crate::error::WgpuError;
use crate::gpu::Gpu;
use crate::memory::{Slice, filled};
use crate::module::{Kernel, Key, Number, PER_CHANNEL};
use crate::params::Params;
use crate::queue::Queue;

/// Pairs whose sums and products are not `f32`, of both signs and of very different sizes; and numbers whose nearest half is
/// above them, below them, a tie, subnormal, or out of range.
const INPUTS: [(f32, f32); 16] = [
    (1.0, 1.0e-8),
    (1.000_000_1, -1.0),
    (0.1, 0.2),
    (1.0e4, 1.0 / 3.0),
    (-3.3e7, 0.7),
    (16_777_216.0, 1.0),
    (1.0 / 3.0, -1.0 / 7.0),
    (1.234_567_9e10, -9.876_543e-3),
    (2_049.0, 2_051.0),
    (65_519.0, 65_520.0),
    (6.0e-8, 2.9e-8),
    (3.1e-8, -8.940_697e-8),
    (6.103_1e-5, 1.0e-6),
    (-0.0, 1.000_488_3),
    (0.333_251_95, -1_234.567),
    (7.0e-5, -5.96e-6),
];

/// Whether halves have to be converted by shifts; an error where the arithmetic of pairs does not hold.
pub(crate) fn try_out(gpu: &Gpu) -> Result<bool, WgpuError> {
    let broken = |what| {
        let adapter = gpu.device().adapter_info().name;
        WgpuError::Arithmetic { adapter, what }
    };
    let by_bits = run(gpu, Number::F16ByBits)?;
    for (&(a, b), got) in INPUTS.iter().zip(&by_bits) {
        let float = f32::from_bits;
        if (float(got[0]), float(got[1])) != two_sum(a, b) {
            return Err(broken("a sum of two numbers with its error"));
        }
        if (float(got[2]), float(got[3])) != two_product(a, b) {
            return Err(broken("a product of two numbers with its error"));
        }
        // x - mean, the mean in two parts.
        if got[6] != ((a - b) - b).to_bits() {
            return Err(broken("a difference of three numbers"));
        }
    }
    let halves_fit = |results: &[[u32; 8]]| {
        INPUTS
            .iter()
            .zip(results)
            .all(|(&(a, b), got)| got[4] == packed(a, b) && got[5] == widened((a.to_bits() >> 16) as u16))
    };
    if !halves_fit(&by_bits) {
        return Err(broken("a conversion of halves by shifts"));
    }
    Ok(!halves_fit(&run(gpu, Number::F16)?))
}

fn run(gpu: &Gpu, number: Number) -> Result<Vec<[u32; 8]>, WgpuError> {
    let flat: Vec<f32> = INPUTS.iter().flat_map(|&(a, b)| [a, b]).collect();
    let usage = wgpu::BufferUsages::STORAGE;
    let inputs = filled(gpu.device(), "probe", usage, bytemuck::cast_slice(&flat))?;
    let results = gpu.scratch("probe", 2 * INPUTS.len())?;
    let staging = gpu.staging(results.size())?;
    let whole = |buffer| Slice { buffer, offset: 0, size: wgpu::Buffer::size(buffer) };
    let params = Params { elements: INPUTS.len() as u32, blocks: 1, ..Params::default() };
    let key = Key { kernel: Kernel::Probe, number, form: PER_CHANNEL };
    let kernel =
        gpu.bind(key, params, &[("inputs", Some(whole(&inputs))), ("results", Some(whole(&results)))])?;
    let queue = Queue::new(gpu.clone());
    queue.dispatch(&[kernel])?;
    queue.read(whole(&results), &staging, bytemuck::pod_collect_to_vec)
}

fn two_sum(a: f32, b: f32) -> (f32, f32) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

fn two_product(a: f32, b: f32) -> (f32, f32) {
    let product = a * b;
    (product, (f64::from(a) * f64::from(b) - f64::from(product)) as f32)
}

fn packed(a: f32, b: f32) -> u32 {
    let bits = |x: f32| u32::from(syncbn_core::f16::from_f32(x).to_bits());
    bits(a) | bits(b) << 16
}

fn widened(half: u16) -> u32 {
    syncbn_core::f16::from_bits(half).to_f32().to_bits()
}
