// Eight halves a load, in two parts.

alias Stored = vec4<u32>;
alias Word = vec4<u32>;
const PARTS: u32 = 2u;

fn bits_of(word: Word, k: u32) -> PartBits {
    if k == 0u {
        return vec4<u32>(widened(word.x), widened(word.y));
    }
    return vec4<u32>(widened(word.z), widened(word.w));
}
fn narrowed(a: Part, b: Part) -> Word {
    return vec4<u32>(packed(a.xy), packed(a.zw), packed(b.xy), packed(b.zw));
}
