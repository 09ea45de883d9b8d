// Per channel: sum_dy and sum_dy_xmu = sum dy (x - mean) of this rank, of each split apart; gradient_terms.wgsl adds up the splits.
//
// Chains of a hundred elements or so are summed in f32; chains, threads and splits in pairs of f32.

@group(0) @binding(0) var<storage, read> x: array<Stored>;
@group(0) @binding(1) var<storage, read> dy: array<Stored>;
@group(0) @binding(2) var<storage, read> saved: array<vec2<f32>>;
// For a split of a channel: (sum_dy, sum_dy_xmu), each high and low.
@group(0) @binding(3) var<storage, read_write> partials: array<vec4<f32>>;

struct Centre {
    mean_high: Part,
    mean_low: Part,
    exponent: PartWhole,
    native: bool,
}

struct Chain {
    loads: u32,
    dy: Part,
    dy_xmu: Part,
}

struct Totals {
    dy: Pair,
    dy_xmu: Pair,
}

fn record(channel: u32, which: u32) -> vec4<f32> {
    return saved_statistics(channel);
}

fn take(chain: ptr<function, Chain>, x: Word, dy: Word, c: Centre) {
    let g = bitcast<Part>(bits_of(dy, 0u));
    (*chain).dy += g;
    (*chain).dy_xmu = fma(g, centred(part_of(x, 0u, c.exponent, c.native), c.mean_high, c.mean_low), (*chain).dy_xmu);
    if PARTS == 2u {
        let h = bitcast<Part>(bits_of(dy, 1u));
        (*chain).dy += h;
        (*chain).dy_xmu = fma(h, centred(part_of(x, 1u, c.exponent, c.native), c.mean_high, c.mean_low), (*chain).dy_xmu);
    }
    (*chain).loads += 1u;
}

fn empty_into(totals: ptr<function, Totals>, chain: ptr<function, Chain>) {
    (*totals).dy = add_single((*totals).dy, across((*chain).dy));
    (*totals).dy_xmu = add_single((*totals).dy_xmu, across((*chain).dy_xmu));
    *chain = Chain();
}

var<workgroup> shared_sums: array<array<Lane, 4>, THREADS / 2u>;

// The sums of all members of a slot, in the first of them.
fn add_members(place: Place, own: Totals) -> Totals {
    var totals = own;
    for (var half = params.members / 2u; half > 0u; half /= 2u) {
        if place.member >= half && place.member < 2u * half {
            let i = (place.member - half) * place.slots + place.slot;
            shared_sums[i] =
                array<Lane, 4>(totals.dy.high, totals.dy.low, totals.dy_xmu.high, totals.dy_xmu.low);
        }
        workgroupBarrier();
        if place.member < half {
            let i = place.member * place.slots + place.slot;
            totals.dy = add(totals.dy, Pair(shared_sums[i][0], shared_sums[i][1]));
            totals.dy_xmu = add(totals.dy_xmu, Pair(shared_sums[i][2], shared_sums[i][3]));
        }
        workgroupBarrier();
    }
    return totals;
}

@compute @workgroup_size(THREADS)
fn grad_sums(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let block = block_of(workgroup, workgroups);
    if block >= params.blocks {
        return;
    }
    let place = place_of(block, thread);
    var totals: Totals;
    var walk = walk_of(place);
    if has(&walk, 1u) {
        let g = gather(place.lane * WIDTH, 0u);
        var centre = Centre(g.a, g.b, PartWhole(0), true);
        if SCALES {
            centre.exponent = PartWhole(g.d);
            centre.native = all(centre.exponent == PartWhole(0));
        }
        var chain: Chain;
        while has(&walk, 4u) {
            let i = next(&walk);
            let j = next(&walk);
            let k = next(&walk);
            let l = next(&walk);
            let xs = array<Word, 4>(load_x(i), load_x(j), load_x(k), load_x(l));
            let dys = array<Word, 4>(load_dy(i), load_dy(j), load_dy(k), load_dy(l));
            take(&chain, xs[0], dys[0], centre);
            take(&chain, xs[1], dys[1], centre);
            take(&chain, xs[2], dys[2], centre);
            take(&chain, xs[3], dys[3], centre);
            if chain.loads + 4u > CHAIN {
                empty_into(&totals, &chain);
            }
        }
        while has(&walk, 1u) {
            let i = next(&walk);
            take(&chain, load_x(i), load_dy(i), centre);
        }
        empty_into(&totals, &chain);
    }
    totals = add_members(place, totals);
    if place.member == 0u && place.lane < params.lanes {
        let channel = place.lane * WIDTH;
        for (var w = 0u; w < WIDTH; w++) {
            let dy = vec2<f32>(element(totals.dy.high, w), element(totals.dy.low, w));
            let dy_xmu = vec2<f32>(element(totals.dy_xmu.high, w), element(totals.dy_xmu.low, w));
            partials[place.split * params.channels + channel + w] = vec4<f32>(dy, dy_xmu);
        }
    }
}
