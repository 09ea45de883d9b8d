// One half a load, out of the word that it shares with a neighbour. For reading: no word is written by two.

alias Stored = u32;
alias Word = u32;
const PARTS: u32 = 1u;

fn bits_of(word: Word, k: u32) -> PartBits {
    return widened(word).x;
}
