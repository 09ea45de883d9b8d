// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M); with frozen statistics dx = weight invstd dy.
// dx may be dy: each element is read, and then written, by one thread.
//
// It may start before the kernel that makes the message has ended. Before it waits for that, it reads only memory that was written
// before that kernel began: parameters, and as much of x and dy as shared memory has room for.
//
// Where the ranks meet inside the kernel, the first block of the grid has no part of the tensor: it compares the ranks' calls.

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
    Slopes slopes(coefficients, at);
#pragma unroll 2
    for (int vector = 0; vector < params.prefetch_rounds * UNROLL && prefetched.left > 0; vector++) {
        Vector x, dy;
        dy.raw = prefetch_dy.at(vector);
        x.raw = prefetch_x.at(vector);
        slopes.write(x, dy, params.dx, prefetched.next(), frozen, policy);
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) { slopes.write(x[u], dy[u], params.dx, indices[u], frozen, policy); });
    }
    grad_input_tail(params, position, coefficients, frozen);
}
