// f16, two to a word, by shifts: for devices whose own conversions flush subnormal numbers, or do not round to the nearest.

// All of f16's squares are in f32's range.
const SCALES: bool = false;

// The bits of the same numbers as f32.
fn widened(word: u32) -> vec2<u32> {
    let halves = vec2<u32>(word & 0xffffu, word >> 16u);
    let magnitude = halves & vec2<u32>(0x7fffu);
    // The exponent's bias is 127 in place of 15; that of infinity and NaN stays the largest.
    let wide = (magnitude << vec2<u32>(13u)) + vec2<u32>(112u << 23u);
    let special = wide + vec2<u32>(112u << 23u);
    let subnormal = bitcast<vec2<u32>>(vec2<f32>(magnitude) * 5.9604644775390625e-8);
    var bits = select(wide, special, magnitude >= vec2<u32>(0x7c00u));
    bits = select(bits, subnormal, magnitude < vec2<u32>(0x0400u));
    return bits | ((halves & vec2<u32>(0x8000u)) << vec2<u32>(16u));
}

// Rounded to the nearest, ties to even; NaN stays one.
fn packed(x: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(x);
    let magnitude = bits & vec2<u32>(0x7fffffffu);
    let rounded = magnitude + vec2<u32>(0x0fffu) + ((magnitude >> vec2<u32>(13u)) & vec2<u32>(1u));
    var halves = (rounded - vec2<u32>(112u << 23u)) >> vec2<u32>(13u);
    // Below 2^-14 the distance of neighbours is 2^-24. `round` takes ties to even.
    let subnormal = vec2<u32>(round(bitcast<vec2<f32>>(min(magnitude, vec2<u32>(0x38800000u))) * 16777216.0));
    halves = select(halves, subnormal, magnitude < vec2<u32>(0x38800000u));
    halves = select(halves, vec2<u32>(0x7c00u), magnitude >= vec2<u32>(0x477ff000u));
    halves = select(halves, vec2<u32>(0x7e00u), magnitude > vec2<u32>(0x7f800000u));
    halves |= (bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u);
    return halves.x | (halves.y << 16u);
}
