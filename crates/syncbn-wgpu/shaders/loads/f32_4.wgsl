// Four f32 a load.

alias Stored = vec4<u32>;
alias Word = vec4<u32>;
const PARTS: u32 = 1u;

fn bits_of(word: Word, k: u32) -> PartBits {
    return word;
}
fn narrowed(a: Part, b: Part) -> Word {
    return bitcast<vec4<u32>>(a);
}
