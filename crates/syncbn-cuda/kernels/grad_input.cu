// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M); with frozen statistics dx = weight invstd dy.
// dx may be dy: each element is read, and then written, by one thread.
//
// It may start before the kernel that makes the message has ended. Before it waits for that, it reads only memory that was written
// before that kernel began: parameters, and as much of x and dy as shared memory has room for.
//
// Where the ranks meet inside the kernel, the first block of the grid has no part of the tensor: it compares the ranks' calls.

// dx = dy scale + (x - mean) slope + shift for the channels of a block. mean is rounded to Math, and shift corrects the rounding.
struct Coefficients : ChannelTable {
    Math mean[SIZE], scale[SIZE], slope[SIZE], shift[SIZE];
    f64 exact_mean[SIZE], per_dy[SIZE], invstd[SIZE]; // factors of the sums

    // The part that does not depend on the sums, and may be read while the previous kernel runs.
    __device__ void begin(const GradInputParams& params, const Position& position) {
        const f64 *saved_mean = params.saved, *saved_invstd = params.saved + 2 * params.walk.channels;
        for_channels(params.walk, position, [&](int at, long long channel) {
            f64 count = params.saved[3 * params.walk.channels];
            invstd[at] = saved_invstd[channel];
            f64 factor = params.weight ? params.weight[channel] * invstd[at] : invstd[at];
            exact_mean[at] = saved_mean[channel];
            mean[at] = (Math)exact_mean[at];
            scale[at] = (Math)factor;
            per_dy[at] = count > 0 ? -factor / count : 0;
        });
    }

    // The rest, by the same threads.
    template <class Sums> __device__ void finish(const GradInputParams& params, const Position& position, Sums sums) {
        for_channels(params.walk, position, [&](int at, long long channel) {
            auto [sum_dy, sum_dy_xmu] = sums(channel);
            // In this order: the square of invstd may be infinite where the slope is not.
            f64 tilt = per_dy[at] * (invstd[at] * (invstd[at] * sum_dy_xmu));
            slope[at] = (Math)tilt;
            shift[at] = (Math)(per_dy[at] * sum_dy - (exact_mean[at] - (f64)mean[at]) * tilt);
        });
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    grad_input(const __grid_constant__ GradInputParams params PEERS_PARAMETER) {
#if PEERS
    if (blockIdx.x == 0) {
        wait_for_previous_kernel();
        return meet_ranks(peers);
    }
#endif
    const WalkParams& walk = params.walk;
    Position position(walk, gridDim.x - 1 - blockIdx.x);
    Cursor<true> cursor(walk, position), prefetched(walk, position);
    Prefetch prefetch_dy(params.prefetch_rounds, 0), prefetch_x(params.prefetch_rounds, 1);
    bool frozen = params.message == nullptr;
    Policy policy = evict_first();
    long long indices[UNROLL];
    Vector x[UNROLL], dy[UNROLL];
    auto load_next = [&] {
        int taken = cursor.take(indices);
        for_taken(taken, [&](int u) {
            dy[u].raw = load((const Raw*)params.dy + indices[u], policy);
            if (!frozen) x[u].raw = load_constant((const Raw*)params.x + indices[u], policy);
        });
        return taken;
    };
#pragma unroll 1
    for (int round = 0; round < params.prefetch_rounds; round++) {
        for_taken(load_next(), [&](int u) {
            prefetch_dy.at(round * UNROLL + u) = dy[u].raw;
            prefetch_x.at(round * UNROLL + u) = x[u].raw;
        });
    }
    int taken = load_next();
    __shared__ Coefficients coefficients;
    coefficients.begin(params, position);
    int at[VECTOR_COLUMNS];
    coefficients.find(walk, position, at);

    wait_for_previous_kernel();
#if PEERS
    Receiver receiver(peers);
    coefficients.finish(params, position, [&](long long channel) {
        Pair sums = {0, 0};
        receiver.for_ranks<false>(peers, channel, [&](int rank, f64 first, f64 second, f64) {
            sums = rank == 0 ? Pair{first, second} : Pair{sums.first + first, sums.second + second};
        });
        return sums;
    });
#else
    coefficients.finish(params, position, [&](long long channel) {
        if (frozen) return Pair{0, 0};
        return Pair{params.message[channel], params.message[walk.channels + channel]};
    });
#endif
    __syncthreads();
    Math mean[VECTOR_COLUMNS], scale[VECTOR_COLUMNS], slope[VECTOR_COLUMNS], shift[VECTOR_COLUMNS];
#pragma unroll
    for (int w = 0; w < VECTOR_COLUMNS; w++) {
        mean[w] = coefficients.mean[at[w]];
        scale[w] = coefficients.scale[at[w]];
        slope[w] = coefficients.slope[at[w]];
        shift[w] = coefficients.shift[at[w]];
    }
    auto write = [&](const Vector& x, Vector& dy, long long index) {
        Math dx[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            Math rest = frozen ? 0 : (widen(x.element[j]) - mean[w]) * slope[w] + shift[w];
            dx[j] = widen(dy.element[j]) * scale[w] + rest;
        }
        narrow(dx, dy);
        store((Raw*)params.dx + index, dy.raw, policy);
    };
#pragma unroll 2
    for (int vector = 0; vector < params.prefetch_rounds * UNROLL && prefetched.left > 0; vector++) {
        Vector x, dy;
        dy.raw = prefetch_dy.at(vector);
        x.raw = prefetch_x.at(vector);
        write(x, dy, prefetched.next());
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) { write(x[u], dy[u], indices[u]); });
    }
#pragma unroll 1
    for (unsigned e = position.block_of_channel * blockDim.x + threadIdx.x; e < walk.tail;
         e += walk.blocks_per_channel * blockDim.x) {
        int c = coefficients.at(e % (unsigned)walk.channels_per_block);
        long long index = walk.runs * walk.lanes_per_block * VEC + e;
        Math rest = frozen ? 0 : (element_at(params.x, index) - coefficients.mean[c]) * coefficients.slope[c] +
                                     coefficients.shift[c];
        narrow(element_at(params.dy, index) * coefficients.scale[c] + rest, ((Element*)params.dx)[index]);
    }
}
