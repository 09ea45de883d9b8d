// Numbers times a power of two, from their bits: a device may take subnormal numbers for 0 in arithmetic.

fn scaled(bits: PartBits, exponent: PartWhole) -> Part {
    let magnitude = bits & PartBits(0x7fffffffu);
    let biased = magnitude >> PartBits(23u);
    let whole = (magnitude & PartBits(0x007fffffu)) | select(PartBits(0x00800000u), PartBits(0u), biased == PartBits(0u));
    // The number is whole 2^n. In two steps, since n may be beyond what one f32 holds.
    let n = PartWhole(max(biased, PartBits(1u))) - PartWhole(150) - exponent;
    let half = n / PartWhole(2);
    let value = Part(whole) * part_power(half) * part_power(n - half);
    let signed = bitcast<PartBits>(value) | (bits & PartBits(0x80000000u));
    return bitcast<Part>(select(signed, bits, magnitude >= PartBits(0x7f800000u)));
}

fn part_power(n: PartWhole) -> Part {
    let exponent = clamp(n, PartWhole(-126), PartWhole(127)) + PartWhole(127);
    return bitcast<Part>(PartBits(exponent) << PartBits(23u));
}

// x 2^-exponent.
fn unscaled(x: Part, exponent: PartWhole) -> Part {
    let half = -exponent / PartWhole(2);
    return x * part_power(half) * part_power(-exponent - half);
}
