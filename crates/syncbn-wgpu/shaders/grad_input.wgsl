// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M); with frozen statistics dx = weight invstd dy.
// dx may lie over dy: each element is read and then written by one thread.

@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read_write> dx: array<Stored>;
@group(0) @binding(2) var<storage, read> saved: array<vec2<f32>>;
// Two for a channel, from the second on: the sums; then (exponent, mean_dy, slope, -).
@group(0) @binding(3) var<storage, read> sums: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> weights: array<f32>;
// dy, at binding 5, is declared in module.rs: it is not there where dx lies over it.

struct Coefficients {
    mean_high: Part,
    mean_low: Part,
    scale: Part,
    mean_dy: Part,
    slope: Part,
    exponent: PartWhole,
    native: bool,
}

fn record(channel: u32, which: u32) -> vec4<f32> {
    let statistics = saved_statistics(channel);
    if which == 1u {
        return sums[2u + 2u * channel];
    }
    var scale = statistics.z;
    if wants(WEIGHT) {
        scale *= weights[channel];
    }
    return vec4<f32>(statistics.x, statistics.y, scale, statistics.w);
}

fn coefficients(place: u32) -> Coefficients {
    let g = gather(place, 0u);
    var c: Coefficients;
    c.mean_high = g.a;
    c.mean_low = g.b;
    c.scale = g.c;
    c.native = true;
    if params.source != FROZEN {
        let terms = gather(place, 1u);
        c.mean_dy = terms.b;
        c.slope = terms.c;
        if SCALES {
            c.exponent = PartWhole(g.d);
            c.native = all(c.exponent == PartWhole(0));
            c.scale = unscaled(c.scale, c.exponent);
        }
    }
    return c;
}

fn gradient(x: Part, dy: Part, c: Coefficients) -> Part {
    return ((dy - c.mean_dy) - centred(x, c.mean_high, c.mean_low) * c.slope) * c.scale;
}

fn differentiated(x: Word, dy: Word, c: Coefficients) -> Word {
    let first = bitcast<Part>(bits_of(dy, 0u));
    let second = bitcast<Part>(bits_of(dy, PARTS - 1u));
    if params.source == FROZEN {
        return narrowed(first * c.scale, second * c.scale);
    }
    let a = gradient(part_of(x, 0u, c.exponent, c.native), first, c);
    var b = a;
    if PARTS == 2u {
        b = gradient(part_of(x, 1u, c.exponent, c.native), second, c);
    }
    return narrowed(a, b);
}

@compute @workgroup_size(THREADS)
fn grad_input(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_of(workgroup, workgroups);
    if block >= params.blocks {
        return;
    }
    if FLAT {
        for (var i = block * THREADS + thread; 2u * i < params.elements; i += params.blocks * THREADS) {
            dx[i] = kept(differentiated(x[i], load_dy(i), coefficients(2u * i)), dx[i], i);
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
        let xs = array<Word, 4>(x[i], x[j], x[k], x[l]);
        let dys = array<Word, 4>(load_dy(i), load_dy(j), load_dy(k), load_dy(l));
        dx[i] = differentiated(xs[0], dys[0], c);
        dx[j] = differentiated(xs[1], dys[1], c);
        dx[k] = differentiated(xs[2], dys[2], c);
        dx[l] = differentiated(xs[3], dys[3], c);
    }
    while has(&walk, 1u) {
        let i = next(&walk);
        dx[i] = differentiated(x[i], load_dy(i), c);
    }
}
