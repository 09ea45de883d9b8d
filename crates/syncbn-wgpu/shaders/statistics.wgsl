// From the splits' moments, or the group's sums, to what the others need: the merged moments for a message, or mean and invstd
// for `normalize`, and the running statistics. One channel a slot; the work is that of a few numbers per channel.
//
// It is a launch of its own because the language has no barrier between workgroups, and no fence that would let the last
// workgroup of a launch read what the others have written.

@group(0) @binding(0) var<storage, read> partials: array<vec4<f32>>;
// The count; then two for a channel: (mean or sum, M2 or variance), each high and low; then (exponent, ...).
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> saved: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> running_mean: array<f32>;
@group(0) @binding(4) var<storage, read_write> running_var: array<f32>;
@group(0) @binding(5) var<storage, read_write> num_batches_tracked: array<u32>;

// What params.source is:
// MERGE: partials -> sums; LOCAL: partials -> saved, running; GROUP: sums -> saved, running; FROZEN: running -> saved;
// SAVED: saved -> running.

// Of one channel, times 2^-exponent.
struct Batch {
    count: Pair,
    mean: Pair,
    variance: Pair,
    exponent: i32,
}

fn split_of(place: Place, split: u32) -> Moments {
    let at = 2u * (split * params.channels + place.lane);
    let a = partials[at];
    let b = partials[at + 1u];
    return Moments(b.x, Pair(a.x, a.y), Pair(a.z, a.w), i32(b.y));
}

// The moments of all splits of a channel, in the first member of its slot.
fn merge_splits(place: Place) -> Moments {
    let inside = place.lane < params.channels;
    var exponent = LOWEST_EXPONENT;
    for (var split = place.member; inside && split < params.splits; split += params.members) {
        exponent = max(exponent, split_of(place, split).exponent);
    }
    exponent = highest_exponent(place, exponent);
    // The first split has elements where any has.
    var reference: Pair;
    var sums = no_sums();
    if inside {
        reference = raised(split_of(place, 0u), exponent).mean;
        for (var split = place.member; split < params.splits; split += params.members) {
            include(&sums, raised(split_of(place, split), exponent), reference);
        }
    }
    var moments = moments_of(add_members(place, sums), reference, exponent);
    // A channel of zeros has no need of an exponent, nor has one without elements.
    if moments.mean.high == 0.0 && moments.m2.high == 0.0 {
        moments.exponent = 0;
    }
    return moments;
}

// 1 / sqrt(variance + eps), times 2^exponent.
fn invstd_of(variance: Pair, exponent: i32) -> f32 {
    // eps in the variance's unit may be beyond f32's range; then both are divided by a power of four. Below 2^-120 it counts
    // as that, so that a constant channel has a finite invstd.
    let eps_exponent = params.eps_exponent - 2 * exponent;
    let shrink = max((eps_exponent - 40) / 2, 0);
    let eps = times_power_pair(Pair(params.eps_high, params.eps_low), max(eps_exponent - 2 * shrink, -120));
    let total = add(times_power_pair(variance, -2 * shrink), eps);
    // The language's root may be off by a few units in the last place: one step of Newton's.
    let rough = opaque(inverseSqrt(total.high));
    let unit = multiply(total, two_product(rough, rough));
    let rest = (1.0 - unit.high) - unit.low;
    return times_power(rough + 0.5 * rough * rest, -shrink);
}

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7fffffffu) < 0x7f800000u;
}

fn update_running(channel: u32, batch: Batch) {
    var share = params.momentum;
    var kept = params.kept;
    if share < 0.0 {
        let low = num_batches_tracked[0];
        let high = num_batches_tracked[1];
        share = 1.0 / (f32(bitcast<i32>(high)) * 4294967296.0 + (f32(low) + 1.0));
        kept = 1.0 - share;
    }
    let mean = times_power(batch.mean.high, batch.exponent);
    let variance = times_power(batch.variance.high, 2 * batch.exponent);
    let moved_mean = kept * running_mean[channel] + share * mean;
    var moved_var = running_var[channel];
    if batch.count.high != 1.0 {
        let unbiased = variance + variance / ((batch.count.high - 1.0) + batch.count.low);
        moved_var = kept * moved_var + share * unbiased;
    } else if !is_finite(variance) {
        moved_var = variance - variance;
    }
    let batch_finite = is_finite(batch.mean.high) && is_finite(batch.variance.high);
    if wants(SKIP_NON_FINITE) && !(batch_finite && is_finite(moved_mean) && is_finite(moved_var)) {
        return;
    }
    running_mean[channel] = moved_mean;
    running_var[channel] = moved_var;
}

// The batch of the group, or of an earlier pass.
fn batch_of(channel: u32) -> Batch {
    if params.source == SAVED {
        let statistics = saved_statistics(channel);
        let mean = Pair(statistics.x, statistics.y);
        let variance = saved_variance(channel);
        let count = saved_count();
        return Batch(Pair(count.x, count.y), mean, Pair(variance.x, variance.y), i32(statistics.w));
    }
    let a = sums[1u + 2u * channel];
    let exponent = i32(sums[2u + 2u * channel].x);
    return Batch(Pair(sums[0].x, sums[0].y), Pair(a.x, a.y), Pair(a.z, a.w), exponent);
}

fn save(channel: u32, batch: Batch, invstd: f32) {
    saved[2u * channel] = vec2<f32>(batch.mean.high, batch.mean.low);
    saved[2u * channel + 1u] = vec2<f32>(invstd, f32(batch.exponent));
    saved[2u * params.channels + channel] = vec2<f32>(batch.variance.high, batch.variance.low);
    if channel == 0u {
        saved[3u * params.channels] = vec2<f32>(batch.count.high, batch.count.low);
    }
}

@compute @workgroup_size(THREADS)
fn statistics(
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
    let count = Pair(params.count_high, params.count_low);

    var moments = no_moments();
    if params.source == MERGE || params.source == LOCAL {
        moments = merge_splits(place);
    }
    if place.member != 0u || channel >= params.channels {
        return;
    }
    if params.source == MERGE {
        if channel == 0u {
            sums[0] = vec4<f32>(count.high, count.low, 0.0, 0.0);
        }
        sums[1u + 2u * channel] = vec4<f32>(moments.mean.high, moments.mean.low, moments.m2.high, moments.m2.low);
        sums[2u + 2u * channel] = vec4<f32>(f32(moments.exponent), 0.0, 0.0, 0.0);
        return;
    }
    if params.source == FROZEN {
        let mean = Pair(running_mean[channel], 0.0);
        let variance = Pair(running_var[channel], 0.0);
        save(channel, Batch(Pair(0.0, 0.0), mean, variance, 0), invstd_of(variance, 0));
        return;
    }
    var batch: Batch;
    if params.source == LOCAL {
        batch = Batch(count, moments.mean, divide(moments.m2, count), moments.exponent);
    } else {
        batch = batch_of(channel);
    }
    if batch.count.high == 0.0 {
        batch = Batch();
    }
    if params.source != SAVED {
        var invstd = 0.0;
        if batch.count.high != 0.0 {
            invstd = invstd_of(batch.variance, batch.exponent);
        }
        save(channel, batch, invstd);
    }
    if wants(RUNNING) && batch.count.high != 0.0 {
        update_running(channel, batch);
    }
}
