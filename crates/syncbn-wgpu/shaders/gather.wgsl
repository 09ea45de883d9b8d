// What kernels that write need of each channel: four numbers a record, one per element of a part.
//
// Each kernel has its own `record(channel, which)`.

struct Gathered {
    a: Part,
    b: Part,
    c: Part,
    d: Part,
}

fn opaque_part(x: Part) -> Part {
    return bitcast<Part>(bitcast<PartBits>(x) ^ PartBits(params.zero));
}

// x - mean. The mean is an unevaluated sum: added up first, it would lose what its second half is there for.
fn centred(x: Part, mean_high: Part, mean_low: Part) -> Part {
    return opaque_part(x - mean_high) - mean_low;
}

fn part_of(word: Word, k: u32, exponent: PartWhole, native: bool) -> Part {
    let bits = bits_of(word, k);
    if SCALES && !native {
        return scaled(bits, exponent);
    }
    return bitcast<Part>(bits);
}
