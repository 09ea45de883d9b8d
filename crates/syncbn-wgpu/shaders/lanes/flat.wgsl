// A word holds two halves of any two channels: of each word, the first element says which. The last word may hold one element,
// and beside it memory that is not ours.

const FLAT: bool = true;

fn channel_of(place: u32) -> u32 {
    return (place / params.inner) % params.channels;
}

fn gather(place: u32, which: u32) -> Gathered {
    let r = record(channel_of(place), which);
    let s = record(channel_of(place + 1u), which);
    return Gathered(vec2<f32>(r.x, s.x), vec2<f32>(r.y, s.y), vec2<f32>(r.z, s.z), vec2<f32>(r.w, s.w));
}

fn kept(word: Word, old: Word, i: u32) -> Word {
    if 2u * i + 1u < params.elements {
        return word;
    }
    return (word & 0xffffu) | (old & 0xffff0000u);
}
