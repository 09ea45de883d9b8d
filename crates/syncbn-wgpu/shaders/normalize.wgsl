// y = (x - mean) invstd weight + bias, with the statistics that statistics.wgsl has left in `saved`; and the count of batches.

@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read_write> y: array<Stored>;
@group(0) @binding(2) var<storage, read> saved: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> biases: array<f32>;
// One i64, the lower half first.
@group(0) @binding(5) var<storage, read_write> num_batches_tracked: array<u32>;

struct Coefficients {
    mean_high: Part,
    mean_low: Part,
    scale: Part,
    shift: Part,
    exponent: PartWhole,
    native: bool,
}

fn record(channel: u32, which: u32) -> vec4<f32> {
    let statistics = saved_statistics(channel);
    if which == 1u {
        return vec4<f32>(statistics.w);
    }
    var scale = statistics.z;
    if wants(WEIGHT) {
        scale *= weights[channel];
    }
    var shift = 0.0;
    if wants(BIAS) {
        shift = biases[channel];
    }
    return vec4<f32>(statistics.x, statistics.y, scale, shift);
}

fn coefficients(place: u32) -> Coefficients {
    let g = gather(place, 0u);
    var c = Coefficients(g.a, g.b, g.c, g.d, PartWhole(0), true);
    if SCALES {
        c.exponent = PartWhole(gather(place, 1u).a);
        c.native = all(c.exponent == PartWhole(0));
    }
    return c;
}

fn normalized(word: Word, c: Coefficients) -> Word {
    let a = centred(part_of(word, 0u, c.exponent, c.native), c.mean_high, c.mean_low) * c.scale + c.shift;
    var b = a;
    if PARTS == 2u {
        b = centred(part_of(word, 1u, c.exponent, c.native), c.mean_high, c.mean_low) * c.scale + c.shift;
    }
    return narrowed(a, b);
}

fn count_batch() {
    if !wants(RUNNING) || saved_count().x == 0.0 {
        return;
    }
    let low = num_batches_tracked[0];
    let high = num_batches_tracked[1];
    if low == 0xffffffffu && high == 0x7fffffffu {
        return;
    }
    num_batches_tracked[0] = low + 1u;
    num_batches_tracked[1] = high + select(0u, 1u, low == 0xffffffffu);
}

@compute @workgroup_size(THREADS)
fn normalize(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_of(workgroup, workgroups);
    if block >= params.blocks {
        return;
    }
    if block == 0u && thread == 0u {
        count_batch();
    }
    if FLAT {
        for (var i = block * THREADS + thread; 2u * i < params.elements; i += params.blocks * THREADS) {
            y[i] = kept(normalized(x[i], coefficients(2u * i)), y[i], i);
        }
        return;
    }
    let place = place_of(params.blocks - 1u - block, thread);
    var walk = walk_of(place);
    if !has(&walk, 1u) {
        return;
    }
    let c = coefficients(place.lane * WIDTH);
    while has(&walk, 4u) {
        let i = next(&walk);
        let j = next(&walk);
        let k = next(&walk);
        let l = next(&walk);
        let words = array<Word, 4>(x[i], x[j], x[k], x[l]);
        y[i] = normalized(words[0], c);
        y[j] = normalized(words[1], c);
        y[k] = normalized(words[2], c);
        y[l] = normalized(words[3], c);
    }
    while has(&walk, 1u) {
        let i = next(&walk);
        y[i] = normalized(x[i], c);
    }
}
