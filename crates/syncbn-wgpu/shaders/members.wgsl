// Merging many sets of numbers at once: sums about a reference (T. Chan, G. Golub, R. LeVeque, "Algorithms for computing the
// sample variance", 1983, with a reference in place of a running mean).
//
// Merging pairs needs a division each time, and the levels of a tree wait for each other. Here there are only sums. The
// reference is one of the numbers or means that are merged, so what cancels is at most their number times M2: 20 of a pair's
// 48 bits. A constant channel's differences are 0, and so is its M2.

struct AboutReference {
    count: f32,
    // sum n (mean - reference), and sum M2 + n (mean - reference)^2.
    sum: Pair,
    squares: Pair,
}

fn no_sums() -> AboutReference {
    return AboutReference(0.0, Pair(Lane(0.0), Lane(0.0)), Pair(Lane(0.0), Lane(0.0)));
}

fn include(sums: ptr<function, AboutReference>, moments: Moments, reference: Pair) {
    if moments.count == 0.0 {
        return;
    }
    let delta = subtract(moments.mean, reference);
    let sum = multiply_single(delta, Lane(moments.count));
    (*sums).count += moments.count;
    (*sums).sum = add((*sums).sum, sum);
    (*sums).squares = add((*sums).squares, add(moments.m2, multiply(sum, delta)));
}

fn moments_of(sums: AboutReference, reference: Pair, exponent: LaneWhole) -> Moments {
    var moments: Moments;
    moments.exponent = exponent;
    if sums.count == 0.0 {
        return moments;
    }
    let mean = divide(sums.sum, Pair(Lane(sums.count), Lane(0.0)));
    let m2 = subtract(sums.squares, multiply(sums.sum, mean));
    moments.count = sums.count;
    moments.mean = add(reference, mean);
    moments.m2 = Pair(not_negative(m2.high), m2.low);
    return moments;
}

var<workgroup> shared_pairs: array<array<Lane, 4>, THREADS / 2u>;
var<workgroup> shared_counts: array<f32, THREADS / 2u>;
var<workgroup> shared_exponents: array<LaneWhole, THREADS / 2u>;

// The highest of the members' exponents, for all of them.
fn highest_exponent(place: Place, own: LaneWhole) -> LaneWhole {
    var exponent = own;
    if !SCALES {
        return exponent;
    }
    for (var half = params.members / 2u; half > 0u; half /= 2u) {
        if place.member >= half && place.member < 2u * half {
            shared_exponents[(place.member - half) * place.slots + place.slot] = exponent;
        }
        workgroupBarrier();
        if place.member < half {
            exponent = max(exponent, shared_exponents[place.member * place.slots + place.slot]);
        }
        workgroupBarrier();
    }
    // With one member there may be as many slots as threads, and nothing to tell.
    if params.members == 1u {
        return exponent;
    }
    if place.member == 0u {
        shared_exponents[place.slot] = exponent;
    }
    workgroupBarrier();
    return shared_exponents[place.slot];
}

// The first member's mean, for all of them: it has elements where any of them has.
fn reference_of(place: Place, own: Pair) -> Pair {
    if params.members == 1u {
        return own;
    }
    if place.member == 0u {
        shared_pairs[place.slot] = array<Lane, 4>(own.high, own.low, own.high, own.low);
    }
    workgroupBarrier();
    let reference = Pair(shared_pairs[place.slot][0], shared_pairs[place.slot][1]);
    workgroupBarrier();
    return reference;
}

// The sums of all members of a slot, in the first of them.
fn add_members(place: Place, own: AboutReference) -> AboutReference {
    var sums = own;
    for (var half = params.members / 2u; half > 0u; half /= 2u) {
        if place.member >= half && place.member < 2u * half {
            let i = (place.member - half) * place.slots + place.slot;
            shared_pairs[i] = array<Lane, 4>(sums.sum.high, sums.sum.low, sums.squares.high, sums.squares.low);
            shared_counts[i] = sums.count;
        }
        workgroupBarrier();
        if place.member < half {
            let i = place.member * place.slots + place.slot;
            sums.sum = add(sums.sum, Pair(shared_pairs[i][0], shared_pairs[i][1]));
            sums.squares = add(sums.squares, Pair(shared_pairs[i][2], shared_pairs[i][3]));
            sums.count += shared_counts[i];
        }
        workgroupBarrier();
    }
    return sums;
}
