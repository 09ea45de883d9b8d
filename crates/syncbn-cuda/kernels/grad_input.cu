// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M); with frozen statistics dx = weight invstd dy.
// dx may lie over dy: each element is read and then written by one thread.

struct GradInputArgs {
    Tile tile;
    const void* x;
    const void* dy;
    void* dx;
    const f64* saved;
    const f64* message; // null: frozen statistics
    const Param* weight; // null: 1
};

extern "C" __global__ void __launch_bounds__(THREADS) grad_input(const __grid_constant__ GradInputArgs args) {
    const Tile& tile = args.tile;
    Place place(tile, gridDim.x - 1 - blockIdx.x);

    __shared__ Math mean_high[THREADS], mean_low[THREADS], scales[THREADS], offsets[THREADS], slopes[THREADS];
    long long channel = place.first_channel() + threadIdx.x;
    if (threadIdx.x < place.slots * WIDTH && channel < tile.channels) {
        f64 mean = args.saved[channel];
        f64 invstd = args.saved[tile.channels + channel];
        f64 count = args.saved[2 * tile.channels];
        bool depends = args.message && count > 0;
        mean_high[threadIdx.x] = (Math)mean;
        mean_low[threadIdx.x] = (Math)(mean - (f64)(Math)mean);
        scales[threadIdx.x] = (Math)(args.weight ? args.weight[channel] * invstd : invstd);
        offsets[threadIdx.x] = depends ? (Math)(args.message[channel] / count) : 0;
        slopes[threadIdx.x] =
            depends ? (Math)(invstd * invstd * (args.message[tile.channels + channel] / count)) : 0;
    }
    __syncthreads();
    Walk<true> walk(tile, place);
    if (!walk.more()) return;
    Math high[WIDTH], low[WIDTH], scale[WIDTH], offset[WIDTH], slope[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        int s = place.slot * WIDTH + w;
        high[w] = mean_high[s];
        low[w] = mean_low[s];
        scale[w] = scales[s];
        offset[w] = offsets[s];
        slope[w] = slopes[s];
    }
    bool frozen = args.message == nullptr;
    while (walk.more()) {
        long long indices[UNROLL];
        Vector x[UNROLL], dy[UNROLL];
        int taken = walk.take(indices);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u < taken) {
                dy[u].raw = load(args.dy, indices[u]);
                if (!frozen) x[u].raw = load_constant(args.x, indices[u]);
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u >= taken) continue;
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                int w = COLUMNS ? j : 0;
                Math g = widen(dy[u].element[j]);
                if (!frozen) {
                    Math xmu = (widen(x[u].element[j]) - high[w]) - low[w];
                    g = (g - offset[w]) - xmu * slope[w];
                }
                narrow(g * scale[w], dy[u].element[j]);
            }
            store(args.dx, indices[u], dy[u].raw);
        }
    }
}
