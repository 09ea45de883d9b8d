// Two halves a load.

alias Stored = u32;
alias Word = u32;
const PARTS: u32 = 1u;

fn bits_of(word: Word, k: u32) -> PartBits {
    return widened(word);
}
fn narrowed(a: Part, b: Part) -> Word {
    return packed(a);
}
