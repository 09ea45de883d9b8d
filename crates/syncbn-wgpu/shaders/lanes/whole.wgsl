// Every word holds elements of the channels of its lane, and nothing else.

const FLAT: bool = false;

fn kept(word: Word, old: Word, i: u32) -> Word {
    return word;
}
