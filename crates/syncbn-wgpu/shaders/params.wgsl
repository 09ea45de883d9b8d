// What every kernel is told, besides its buffers. module.rs has the same struct; tile.rs fills in the first part.

struct Params {
    // Which thread takes which elements: see tile.wgsl.
    channels: u32,
    lanes: u32,
    segment: u32,
    vectors: u32,
    step_index: u32,
    step_within: u32,
    wrap: u32,
    members: u32,
    splits: u32,
    blocks: u32,
    // What the language does not let us write down so that no compiler sees through it: see pairs.wgsl.
    zero: u32,
    // For tensors whose words hold elements of two channels.
    inner: u32,
    elements: u32,
    // What else there is to do, as bits: see module.rs.
    wanted: u32,
    source: u32,
    // This rank's elements per channel, as an unevaluated sum.
    count_high: f32,
    count_low: f32,
    // eps is (high + low) 2^exponent, with high from 1 to 2.
    eps_high: f32,
    eps_low: f32,
    eps_exponent: i32,
    // The weights of the newest batch and of all before it. Below 0: the cumulative average.
    momentum: f32,
    kept: f32,
    padding_0: u32,
    padding_1: u32,
}

@group(1) @binding(0) var<uniform> params: Params;

const THREADS: u32 = 256u;

// The bits of params.wanted.
const WEIGHT: u32 = 1u;
const BIAS: u32 = 2u;
const RUNNING: u32 = 4u;
const D_WEIGHT: u32 = 8u;
const D_BIAS: u32 = 16u;

fn wants(bit: u32) -> bool {
    return (params.wanted & bit) != 0u;
}
