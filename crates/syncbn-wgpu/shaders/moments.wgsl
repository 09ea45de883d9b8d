// Per channel: count, mean and M2 of this rank's x, of each split apart; statistics.wgsl merges the splits.
//
// Chains of a hundred elements or so, shifted by one of their own, are summed in f32; chains, threads and splits are merged in
// pairs of f32, about a reference: see members.wgsl. No float atomics: the order is fixed, so every run gives the same bits.

@group(0) @binding(0) var<storage, read> x: array<Stored>;
// Two for a split of a channel: (mean, M2), each high and low; then (count, exponent).
@group(0) @binding(1) var<storage, read_write> partials: array<vec4<f32>>;

// A few elements, about one of them.
struct Chain {
    loads: u32,
    shift: Part,
    sum: Part,
    squares: Part,
}

fn take_part(chain: ptr<function, Chain>, x: Part) {
    let d = x - (*chain).shift;
    (*chain).sum += d;
    (*chain).squares = fma(d, d, (*chain).squares);
}

fn part_of(word: Word, k: u32, exponent: PartWhole, native: bool) -> Part {
    let bits = bits_of(word, k);
    if SCALES && !native {
        return scaled(bits, exponent);
    }
    return bitcast<Part>(bits);
}

fn begin(chain: ptr<function, Chain>, shift: Part) {
    (*chain).shift = shift;
    (*chain).sum = Part(0.0);
    (*chain).squares = Part(0.0);
}

// The middle one: an outlier would make every difference to it as large as itself, and their squares would lose their digits.
fn middle(a: Part, b: Part, c: Part) -> Part {
    return max(min(a, b), min(max(a, b), c));
}

fn take(chain: ptr<function, Chain>, word: Word, exponent: PartWhole, native: bool) {
    take_part(chain, part_of(word, 0u, exponent, native));
    if PARTS == 2u {
        take_part(chain, part_of(word, 1u, exponent, native));
    }
    (*chain).loads += 1u;
}

// What a thread has summed: about the first number that it met.
struct Taken {
    sums: AboutReference,
    reference: Lane,
    exponent: LaneWhole,
}

fn empty_into(taken: ptr<function, Taken>, chain: ptr<function, Chain>) {
    if (*chain).loads == 0u {
        return;
    }
    let shift = lane_of((*chain).shift);
    if (*taken).sums.count == 0.0 {
        (*taken).reference = shift;
    }
    let count = f32((*chain).loads * DEPTH);
    let sum = across((*chain).sum);
    let delta = two_sum(shift, -(*taken).reference);
    let moved = multiply_single(delta, Lane(count));
    let squares = add_single(multiply(delta, add_single(moved, sum + sum)), across((*chain).squares));
    (*taken).sums.count += count;
    (*taken).sums.sum = add((*taken).sums.sum, add_single(moved, sum));
    (*taken).sums.squares = add((*taken).sums.squares, squares);
    (*chain).loads = 0u;
}

fn largest_of(word: Word) -> PartBits {
    var largest = bits_of(word, 0u) & PartBits(0x7fffffffu);
    if PARTS == 2u {
        largest = max(largest, bits_of(word, 1u) & PartBits(0x7fffffffu));
    }
    return largest;
}

// Makes room for numbers as large as these; returns whether they, and what is there, can be taken as they are.
fn make_room(taken: ptr<function, Taken>, chain: ptr<function, Chain>, largest: LaneBits) -> bool {
    let needed = max((*taken).exponent, exponent_for(largest));
    if any(needed != (*taken).exponent) {
        empty_into(taken, chain);
        let by = (*taken).exponent - needed;
        (*taken).reference = times_power((*taken).reference, by);
        (*taken).sums.sum = times_power_pair((*taken).sums.sum, by);
        (*taken).sums.squares = times_power_pair((*taken).sums.squares, by * LaneWhole(2));
        (*taken).exponent = needed;
    }
    return all((needed == LaneWhole(0)) | (largest == LaneBits(0u)));
}

@compute @workgroup_size(THREADS)
fn moments(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_of(workgroup, workgroups);
    if block >= params.blocks {
        return;
    }
    let place = place_of(block, thread);
    var taken: Taken;
    if SCALES {
        taken.exponent = LaneWhole(LOWEST_EXPONENT);
    }
    var chain: Chain;
    var walk = walk_of(place);
    while has(&walk, 1u) {
        if has(&walk, 4u) {
            let a = load_x(next(&walk));
            let b = load_x(next(&walk));
            let c = load_x(next(&walk));
            let d = load_x(next(&walk));
            var native = true;
            if SCALES {
                let largest = max(max(largest_of(a), largest_of(b)), max(largest_of(c), largest_of(d)));
                native = make_room(&taken, &chain, highest(largest));
            }
            let exponent = spread(taken.exponent);
            if chain.loads == 0u {
                let x = part_of(a, 0u, exponent, native);
                let others = array<Part, 2>(part_of(b, 0u, exponent, native), part_of(c, 0u, exponent, native));
                begin(&chain, middle(first(x), first(others[0]), first(others[1])));
            }
            take(&chain, a, exponent, native);
            take(&chain, b, exponent, native);
            take(&chain, c, exponent, native);
            take(&chain, d, exponent, native);
        } else {
            let word = load_x(next(&walk));
            var native = true;
            if SCALES {
                native = make_room(&taken, &chain, highest(largest_of(word)));
            }
            let exponent = spread(taken.exponent);
            if chain.loads == 0u {
                begin(&chain, first(part_of(word, 0u, exponent, native)));
            }
            take(&chain, word, exponent, native);
        }
        if chain.loads + 4u > CHAIN {
            empty_into(&taken, &chain);
        }
    }
    empty_into(&taken, &chain);
    let own = moments_of(taken.sums, Pair(taken.reference, Lane(0.0)), taken.exponent);
    let exponent = highest_exponent(place, own.exponent);
    var moments = raised(own, exponent);
    let about = reference_of(place, moments.mean);
    var sums = no_sums();
    include(&sums, moments, about);
    moments = moments_of(add_members(place, sums), about, exponent);
    if place.member == 0u && place.lane < params.lanes {
        let channel = place.lane * WIDTH;
        for (var w = 0u; w < WIDTH; w++) {
            let at = 2u * (place.split * params.channels + channel + w);
            let mean = vec2<f32>(element(moments.mean.high, w), element(moments.mean.low, w));
            let m2 = vec2<f32>(element(moments.m2.high, w), element(moments.m2.low, w));
            partials[at] = vec4<f32>(mean, m2);
            partials[at + 1u] = vec4<f32>(moments.count, f32(whole_element(moments.exponent, w)), 0.0, 0.0);
        }
    }
}
