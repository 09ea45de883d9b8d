// y = (x - mean) invstd weight + bias. The first `state_blocks` blocks of the grid have no part of the tensor: they write the saved and
// the running statistics, one channel a thread. The other blocks compute the statistics that they need themselves. With saved
// statistics one block updates the running statistics, if there are any.
//
// It may start before the kernel that makes the message has ended. Before it waits for that, it reads only memory that was written
// before that kernel began (parameters, running statistics, and as much of x as shared memory has room for), and takes the state's
// ticket, which the previous kernel does not use.

__device__ inline Statistics statistics_of(const NormalizeParams& params, long long channel) {
    long long channels = params.walk.channels;
    switch (params.source) {
    case StatisticsSource::Saved: return Statistics(params.saved[channel], params.saved[2 * channels + channel]);
    case StatisticsSource::Frozen: {
        Statistics s(params.frozen_mean[channel], 0);
        s.var = params.frozen_var[channel];
        s.invstd = rsqrt(s.var + params.eps);
        return s;
    }
    case StatisticsSource::Local: {
        f64 m2 = params.local_moments[channels + channel];
        return Statistics(params, local_statistics(params.message[0], params.local_moments[channel], m2));
    }
    default: return Statistics(params, read_parts(params.message, channels, channel));
    }
}

__device__ void write_state(const NormalizeParams& params PEERS_REFERENCE) {
    long long channel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    RunningStatistics running;
    if (params.running_mean) {
        if (channel < params.walk.channels) running.read_channel(params, channel);
        running.read_number(params);
        __syncthreads();
        running.take_turn(params);
    }
    wait_for_previous_kernel();
#if PEERS
    Receiver receiver(peers);
    if (channel == 0) end_pass(peers, receiver.number);
    if (channel >= params.walk.channels) return;
    MessageSums sums;
    auto add = [&](int rank, f64 mean, f64 m2, f64 count) { sums.add(rank, mean, m2, count); };
    if (!receiver.for_agreeing_ranks(peers, channel, add)) return;
    Statistics s(params, batch_statistics(sums.count, sums.parts));
    receiver.publish(peers, channel, s.mean, s.invstd);
#else
    if (channel >= params.walk.channels) return;
    Statistics s = statistics_of(params, channel);
#endif
    save(params, channel, s);
    if (params.running_mean) running.update(params, channel, s);
}

// Updates the running statistics from those that an earlier pass has saved. One block does it, so no ticket is needed.
__device__ void update_running_statistics(const NormalizeParams& params) {
    long long channels = params.walk.channels;
    f64 count = params.saved[3 * channels];
    RunningStatistics running;
    running.read_number(params);
    __syncthreads();
    running.take_turn(params);
    for (long long channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        Statistics s = statistics_of(params, channel);
        s.count = count;
        s.var = params.saved[channels + channel];
        running.read_channel(params, channel);
        running.update(params, channel, s);
        running.last = false;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    normalize(const __grid_constant__ NormalizeParams params PEERS_PARAMETER) {
#if PEERS
    if (blockIdx.x < params.state_blocks) return write_state(params, peers);
#else
    if (blockIdx.x < params.state_blocks) {
        return params.source == StatisticsSource::Saved ? update_running_statistics(params) : write_state(params);
    }
#endif
    const WalkParams& walk = params.walk;
    Position position(walk, gridDim.x - 1 - blockIdx.x);
    Cursor<true> cursor(walk, position), prefetched(walk, position);
    Prefetch prefetch(params.prefetch_rounds, 0);
    Policy policy = evict_first();
    long long indices[UNROLL];
    Vector x[UNROLL];
    auto load_next = [&] {
        int taken = cursor.take(indices);
        for_taken(taken, [&](int u) { x[u].raw = load_constant((const Raw*)params.x + indices[u], policy); });
        return taken;
    };
#pragma unroll 1
    for (int round = 0; round < prefetch.rounds; round++) {
        for_taken(load_next(), [&](int u) { prefetch.at(round * UNROLL + u) = x[u].raw; });
    }
    int taken = load_next();
    __shared__ Coefficients coefficients;
    coefficients.begin(params, position);
    int at[VECTOR_COLUMNS];
    coefficients.find(walk, position, at);

    wait_for_previous_kernel();
#if PEERS
    // There are few blocks of columns, with many channels each: each block receives the numbers of its channels itself. Blocks of rows
    // are many and short of registers: they read what the first blocks publish.
    Receiver receiver(peers);
    coefficients.finish(params, position, [&](long long channel) {
#if COLUMNS
        MessageSums sums;
        auto add = [&](int rank, f64 mean, f64 m2, f64 count) { sums.add(rank, mean, m2, count); };
        bool came = receiver.for_ranks<true>(peers, channel, add);
        return Statistics(params, came ? batch_statistics(sums.count, sums.parts) : BatchStatistics{0, 0, 0});
#else
        f64 mean, invstd;
        receiver.wait_for_published(peers, channel, mean, invstd);
        return Statistics(mean, invstd);
#endif
    });
#else
    coefficients.finish(params, position, [&](long long channel) { return statistics_of(params, channel); });
#endif
    __syncthreads();
    Normalizer normalizer(coefficients, at);
#pragma unroll 2
    for (int vector = 0; vector < prefetch.rounds * UNROLL && prefetched.left > 0; vector++) {
        Vector x;
        x.raw = prefetch.at(vector);
        normalizer.write(x, params.y, prefetched.next(), policy);
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) { normalizer.write(x[u], params.y, indices[u], policy); });
    }
    normalize_tail(params, position, coefficients);
}
