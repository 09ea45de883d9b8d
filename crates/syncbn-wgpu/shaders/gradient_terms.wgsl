// From the splits' sums to d_bias, d_weight and the message; and from the sums, this rank's or the group's, to what `grad_input`
// needs of them. One channel a slot, like statistics.wgsl, and a launch of its own for the same reason.

// For a split of a channel: (sum_dy, sum_dy_xmu), each high and low.
@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> saved: array<vec2<f32>>;
// The count; then two for a channel: (sum_dy, sum_dy_xmu), each high and low; then (exponent, mean_dy, slope, -).
@group(0) @binding(2) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> d_weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> d_bias: array<f32>;

// What params.source is: MERGE: partials -> sums, terms, d_weight, d_bias; GROUP: sums -> terms.

var<workgroup> parts: array<vec4<f32>, THREADS / 2u>;

fn add_both(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    let dy = add(Pair(a.x, a.y), Pair(b.x, b.y));
    let dy_xmu = add(Pair(a.z, a.w), Pair(b.z, b.w));
    return vec4<f32>(dy.high, dy.low, dy_xmu.high, dy_xmu.low);
}

// The sums of all splits of a channel, in the first member of its slot.
fn add_splits(place: Place) -> vec4<f32> {
    var total = vec4<f32>(0.0);
    if place.lane < params.channels {
        for (var split = place.member; split < params.splits; split += params.members) {
            total = add_both(total, partials[split * params.channels + place.lane]);
        }
    }
    for (var half = params.members / 2u; half > 0u; half /= 2u) {
        if place.member >= half && place.member < 2u * half {
            parts[(place.member - half) * place.slots + place.slot] = total;
        }
        workgroupBarrier();
        if place.member < half {
            total = add_both(total, parts[place.member * place.slots + place.slot]);
        }
        workgroupBarrier();
    }
    return total;
}

@compute @workgroup_size(THREADS)
fn gradient_terms(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_of(workgroup, workgroups);
    if block >= params.blocks {
        return;
    }
    var place = place_of(0u, thread);
    place.lane = block * place.slots + place.slot;
    let channel = place.lane;
    var total: vec4<f32>;
    if params.source == MERGE {
        total = add_splits(place);
    }
    if place.member != 0u || channel >= params.channels {
        return;
    }
    let statistics = saved_statistics(channel);
    if params.source == MERGE {
        sums[1u + 2u * channel] = total;
        if wants(D_BIAS) {
            d_bias[channel] = total.x;
        }
        if wants(D_WEIGHT) {
            d_weight[channel] = total.z * statistics.z;
        }
    } else {
        total = sums[1u + 2u * channel];
    }
    var mean_dy = 0.0;
    var slope = 0.0;
    let count = Pair(saved_count().x, saved_count().y);
    if count.high != 0.0 {
        mean_dy = divide(Pair(total.x, total.y), count).high;
        slope = divide(Pair(total.z, total.w), count).high * statistics.z * statistics.z;
    }
    sums[2u + 2u * channel] = vec4<f32>(statistics.w, mean_dy, slope, 0.0);
}
