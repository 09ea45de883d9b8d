// Four halves a load.

alias Stored = vec2<u32>;
alias Word = vec2<u32>;
const PARTS: u32 = 1u;

fn bits_of(word: Word, k: u32) -> PartBits {
    return vec4<u32>(widened(word.x), widened(word.y));
}
fn narrowed(a: Part, b: Part) -> Word {
    return vec2<u32>(packed(a.xy), packed(a.zw));
}
