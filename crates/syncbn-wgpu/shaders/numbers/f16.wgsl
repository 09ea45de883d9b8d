// f16, two to a word, by the language's own functions: for devices on which these are exact, which probe.rs finds out.

// All of f16's squares are in f32's range.
const SCALES: bool = false;

// The bits of the same numbers as f32.
fn widened(word: u32) -> vec2<u32> {
    return bitcast<vec2<u32>>(unpack2x16float(word));
}

fn packed(x: vec2<f32>) -> u32 {
    return pack2x16float(x);
}
