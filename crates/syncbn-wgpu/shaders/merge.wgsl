// Count, mean and M2 of a set of numbers.
//
// Mean and M2 are of the numbers times 2^-exponent. The exponent is 0 unless the channel's largest number is beyond 2^40 or
// below 2^-40, where squares would leave the range of f32.

struct Moments {
    count: f32,
    mean: Pair,
    m2: Pair,
    exponent: LaneWhole,
}

fn no_moments() -> Moments {
    var moments: Moments;
    moments.exponent = LaneWhole(LOWEST_EXPONENT);
    return moments;
}

// The exponent that numbers need whose largest has these bits: subnormal ones come to 2^-40 and above, the largest stay below
// 2^48, so that the sum of 2^30 squares is in range.
fn exponent_for(largest: LaneBits) -> LaneWhole {
    var exponent = LaneWhole(LOWEST_EXPONENT);
    exponent = select(exponent, LaneWhole(LOW_EXPONENT), largest >= LaneBits(u32(127 + LOWEST_BELOW) << 23u));
    exponent = select(exponent, LaneWhole(0), largest >= LaneBits(u32(127 + LOW_BELOW) << 23u));
    exponent = select(exponent, LaneWhole(HIGH_EXPONENT), largest >= LaneBits(u32(127 + HIGH_FROM) << 23u));
    return select(exponent, LaneWhole(0), largest >= LaneBits(0x7f800000u));
}

// The same moments, in a higher exponent.
fn raised(moments: Moments, exponent: LaneWhole) -> Moments {
    var result = moments;
    let by = moments.exponent - exponent;
    result.mean = times_power_pair(moments.mean, by);
    result.m2 = times_power_pair(moments.m2, by * LaneWhole(2));
    result.exponent = exponent;
    return result;
}
