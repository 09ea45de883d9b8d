// Per channel: sum_dy and sum_dy_xmu = sum dy (x - mean) of this rank, as the backward message, and d_bias, d_weight.
//
// Chains of at most 64 terms are summed in Math, chains in f64. In Math, x is taken from the mean as rounded to Math; the rest of
// the mean is put right in the total.

// Rows have two accumulators, for fewer additions one after the other.
#define PARTS (COLUMNS ? VEC : VEC < 2 ? 1 : 2)
#define CHAIN_VECTORS (64 / (VEC / PARTS))

struct GradSumsArgs {
    Tile tile;
    const void* x;
    const void* dy;
    const f64* saved;
    Param* d_weight; // null: not wanted
    Param* d_bias;   // null: not wanted
    f64* message;
    double2* partials;
    unsigned* tickets;
};
static_assert(sizeof(GradSumsArgs) == ARGS_BYTES, "grad_sums.rs has another struct");

struct Chain {
    Math dy[PARTS], dy_xmu[PARTS];

    __device__ Chain() {
#pragma unroll
        for (int p = 0; p < PARTS; p++) dy[p] = dy_xmu[p] = 0;
    }

    __device__ void add(const Vector& x, const Vector& g, const Math (&mean)[WIDTH]) {
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            Math wide = widen(g.element[j]);
            dy[j % PARTS] += wide;
            dy_xmu[j % PARTS] += wide * (widen(x.element[j]) - mean[COLUMNS ? j : 0]);
        }
    }

    // As many vectors as a chain may have.
    __device__ void take(const GradSumsArgs& args, Walk<false>& walk, Policy policy, const Math (&mean)[WIDTH]) {
#pragma unroll 1
        for (int vectors = 0; walk.left > 0 && vectors < CHAIN_VECTORS; vectors += UNROLL) {
            long long indices[UNROLL];
            Vector x[UNROLL], g[UNROLL];
            int taken = walk.take(indices);
            for_taken(taken, [&](int u) {
                x[u].raw = load_constant((const Raw*)args.x + indices[u], policy);
                g[u].raw = load_constant((const Raw*)args.dy + indices[u], policy);
            });
            for_taken(taken, [&](int u) { add(x[u], g[u], mean); });
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    grad_sums(const __grid_constant__ GradSumsArgs args PEERS_PARAMETER) {
    let_next_kernel_start();
#if PEERS
    Sender sender(peers);
    sender.send_header(peers, 0);
#endif
    const Tile& tile = args.tile;
    Place place(tile, blockIdx.x);
    Share share(tile, place);
    Walk<false> walk(tile, place);
    Policy policy = keep();
    Math mean[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) mean[w] = place.inside ? (Math)args.saved[place.channel(tile, w)] : 0;
    Pair total = {0, 0};
#if COLUMNS
    for_tail(tile, place, share, [&](long long index) {
        f64 g = element_at(args.dy, index), rounded = (Math)args.saved[share.channel];
        total.add({g, g * ((f64)element_at(args.x, index) - rounded)});
    });
    __shared__ Left<Math> sums, products;
#pragma unroll 1
    for (int done = 0; done <= tile.whole; done += CHAIN_VECTORS) {
        Chain chain;
        chain.take(args, walk, policy, mean);
        if (done > 0) __syncthreads();
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            sums.mine(w) = chain.dy[w];
            products.mine(w) = chain.dy_xmu[w];
        }
        __syncthreads();
        for_share(tile, share, [&](int at, int) { total.add({sums.value[at], products.value[at]}); });
    }
#else
    while (walk.left > 0) {
        Chain chain;
        chain.take(args, walk, policy, mean);
#pragma unroll
        for (int p = 0; p < PARTS; p++) total.add({chain.dy[p], chain.dy_xmu[p]});
    }
#endif
    sum_block(tile, place, share, total);
    if (!sum_splits(tile, place, share, args.partials, args.tickets, total)) return;
    f64 exact = args.saved[share.channel], invstd = args.saved[2 * tile.channels + share.channel];
    f64 product = total.second - (exact - (f64)(Math)exact) * total.first;
#if PEERS
    sender.send(peers, share.channel, total.first, product);
#else
    args.message[share.channel] = total.first;
    args.message[tile.channels + share.channel] = product;
#endif
    if (args.d_bias) args.d_bias[share.channel] = (Param)total.first;
    if (args.d_weight) args.d_weight[share.channel] = (Param)(product * invstd);
}
