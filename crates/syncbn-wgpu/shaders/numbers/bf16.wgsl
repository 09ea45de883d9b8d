// bf16: the upper half of an f32, two to a word.

const SCALES: bool = true;

// The bits of the same numbers as f32.
fn widened(word: u32) -> vec2<u32> {
    return vec2<u32>(word << 16u, word & 0xffff0000u);
}

// Rounded to the nearest, ties to even; NaN stays one.
fn packed(x: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(x);
    let nan = (bits & vec2<u32>(0x7fffffffu)) > vec2<u32>(0x7f800000u);
    let rounded = bits + vec2<u32>(0x7fffu) + ((bits >> vec2<u32>(16u)) & vec2<u32>(1u));
    let halves = select(rounded, bits | vec2<u32>(0x00400000u), nan) >> vec2<u32>(16u);
    return halves.x | (halves.y << 16u);
}
