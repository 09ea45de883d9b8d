// Per channel: sum_dy and sum_dy_xmu = sum dy (x - mean) of this rank, as the backward message, and d_bias, d_weight.

#define CHAIN 64

struct GradSumsArgs {
    Tile tile;
    const void* x;
    const void* dy;
    const f64* saved;
    Param* d_weight; // null: not wanted
    Param* d_bias;   // null: not wanted
    f64* message;
    f64* partials;
    unsigned* tickets;
};

extern "C" __global__ void __launch_bounds__(THREADS) grad_sums(const __grid_constant__ GradSumsArgs args) {
    const Tile& tile = args.tile;
    Place place(tile, blockIdx.x);
    long long channel = place.channel();
    bool inside = place.lane < tile.lanes;

    Math high[WIDTH], low[WIDTH], chain[2 * WIDTH];
    f64 sums[2 * WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        f64 mean = inside ? args.saved[channel + w] : 0;
        high[w] = (Math)mean;
        low[w] = (Math)(mean - (f64)high[w]);
    }
#pragma unroll
    for (int n = 0; n < 2 * WIDTH; n++) sums[n] = chain[n] = 0;

    int length = 0;
    Walk<false> walk(tile, place);
    while (walk.more()) {
        long long indices[UNROLL];
        Vector x[UNROLL], dy[UNROLL];
        int taken = walk.take(indices);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u < taken) {
                x[u].raw = load_constant(args.x, indices[u]);
                dy[u].raw = load_constant(args.dy, indices[u]);
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u >= taken) continue;
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                int w = COLUMNS ? j : 0;
                Math xmu = (widen(x[u].element[j]) - high[w]) - low[w];
                Math g = widen(dy[u].element[j]);
                chain[w] += g;
                chain[WIDTH + w] += g * xmu;
            }
        }
        length += UNROLL * DEPTH;
        if (length + UNROLL * DEPTH > CHAIN) {
#pragma unroll
            for (int n = 0; n < 2 * WIDTH; n++) {
                sums[n] += chain[n];
                chain[n] = 0;
            }
            length = 0;
        }
    }
#pragma unroll
    for (int n = 0; n < 2 * WIDTH; n++) sums[n] += chain[n];
    sum_over_members(sums, place, tile.members);

    bool writes = place.member == 0 && inside;
    if (tile.splits > 1) {
        if (writes) {
#pragma unroll
            for (int w = 0; w < WIDTH; w++) {
                *partial(args.partials, tile, 0, place.split, channel + w) = sums[w];
                *partial(args.partials, tile, 1, place.split, channel + w) = sums[WIDTH + w];
            }
        }
        if (!is_last_split(args.tickets, place, tile.splits)) return;
#pragma unroll
        for (int n = 0; n < 2 * WIDTH; n++) sums[n] = 0;
        for (int split = place.member; split < tile.splits && inside; split += tile.members) {
#pragma unroll
            for (int w = 0; w < WIDTH; w++) {
                sums[w] += __ldcg(partial(args.partials, tile, 0, split, channel + w));
                sums[WIDTH + w] += __ldcg(partial(args.partials, tile, 1, split, channel + w));
            }
        }
        sum_over_members(sums, place, tile.members);
    }
    if (!writes) return;
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        args.message[channel + w] = sums[w];
        args.message[tile.channels + channel + w] = sums[WIDTH + w];
        if (args.d_bias) args.d_bias[channel + w] = (Param)sums[w];
        if (args.d_weight) {
            args.d_weight[channel + w] = (Param)(sums[WIDTH + w] * args.saved[tile.channels + channel + w]);
        }
    }
}
