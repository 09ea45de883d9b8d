// For each channel: sum_dy and sum_dy_xmu = sum dy (x - mean) over this rank's elements, which are the backward message; d_bias and
// d_weight.
//
// Chains of at most 64 terms are summed in Math, and the chains' sums in f64. The terms use the mean rounded to Math; then the
// product of sum_dy and the rounding error is subtracted from sum_dy_xmu.

// Accumulators of a thread. Rows have two, for shorter sequences of dependent additions.
#define ACCUMULATORS (COLUMNS ? VEC : VEC < 2 ? 1 : 2)
#define CHAIN_VECTORS (64 / (VEC / ACCUMULATORS))

struct Chain {
    Math dy[ACCUMULATORS], dy_xmu[ACCUMULATORS];

    __device__ Chain() {
#pragma unroll
        for (int p = 0; p < ACCUMULATORS; p++) dy[p] = dy_xmu[p] = 0;
    }

    __device__ void add(const Vector& x, const Vector& g, const Math (&mean)[VECTOR_COLUMNS]) {
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            Math wide = widen(g.element[j]);
            dy[j % ACCUMULATORS] += wide;
            dy_xmu[j % ACCUMULATORS] += wide * (widen(x.element[j]) - mean[COLUMNS ? j : 0]);
        }
    }

    // Reads and adds as many vectors as a chain may have.
    __device__ void take(const GradSumsParams& params, Cursor<false>& cursor, Policy policy, const Math (&mean)[VECTOR_COLUMNS]) {
#pragma unroll 1
        for (int vectors = 0; cursor.left > 0 && vectors < CHAIN_VECTORS; vectors += UNROLL) {
            long long indices[UNROLL];
            Vector x[UNROLL], g[UNROLL];
            int taken = cursor.take(indices);
            for_taken(taken, [&](int u) {
                x[u].raw = load_constant((const Raw*)params.x + indices[u], policy);
                g[u].raw = load_constant((const Raw*)params.dy + indices[u], policy);
            });
            for_taken(taken, [&](int u) { add(x[u], g[u], mean); });
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    grad_sums(const __grid_constant__ GradSumsParams params PEERS_PARAMETER) {
    let_next_kernel_start();
#if PEERS
    Sender sender(peers);
    sender.send_header(peers, 0);
#endif
    const WalkParams& walk = params.walk;
    Position position(walk, blockIdx.x);
    Reducer reducer(walk, position);
    Cursor<false> cursor(walk, position);
    Policy policy = evict_last();
    Math mean[VECTOR_COLUMNS];
#pragma unroll
    for (int w = 0; w < VECTOR_COLUMNS; w++) mean[w] = position.inside ? (Math)params.saved[position.channel(walk, w)] : 0;
    Pair total = {0, 0};
#if COLUMNS
    for_tail(walk, position, reducer, [&](long long index) {
        f64 g = element_at(params.dy, index), rounded = (Math)params.saved[reducer.channel];
        total.add({g, g * ((f64)element_at(params.x, index) - rounded)});
    });
    __shared__ PerColumn<Math> sums, products;
#pragma unroll 1
    for (int done = 0; done <= walk.vectors_per_thread; done += CHAIN_VECTORS) {
        Chain chain;
        chain.take(params, cursor, policy, mean);
        if (done > 0) __syncthreads();
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) {
            sums.mine(w) = chain.dy[w];
            products.mine(w) = chain.dy_xmu[w];
        }
        __syncthreads();
        for_entries(walk, reducer, [&](int at, int) { total.add({sums.value[at], products.value[at]}); });
    }
#else
    while (cursor.left > 0) {
        Chain chain;
        chain.take(params, cursor, policy, mean);
#pragma unroll
        for (int p = 0; p < ACCUMULATORS; p++) total.add({chain.dy[p], chain.dy_xmu[p]});
    }
#endif
    sum_over_threads(walk, position, reducer, total);
    if (!sum_over_blocks(walk, position, reducer, params.partials, params.tickets, total)) return;
    f64 exact = params.saved[reducer.channel], invstd = params.saved[2 * walk.channels + reducer.channel];
    f64 product = total.second - (exact - (f64)(Math)exact) * total.first;
#if PEERS
    sender.send(peers, reducer.channel, total.first, product);
#else
    params.message[reducer.channel] = total.first;
    params.message[walk.channels + reducer.channel] = product;
#endif
    if (params.d_bias) params.d_bias[reducer.channel] = (Param)total.first;
    if (params.d_weight) params.d_weight[reducer.channel] = (Param)(product * invstd);
}
