// For each channel: count, mean and M2 of this rank's x, and the forward message made of them. moments.cuh explains the sums.

__device__ inline void write(const MomentsParams& params, long long channel, f64 mean, f64 m2) {
    if (channel == 0) params.message[0] = params.count;
    params.local_moments[channel] = mean;
    params.local_moments[params.walk.channels + channel] = m2;
    if (params.with_message) write_parts(params.message, params.walk.channels, channel, params.count, mean, m2);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    moments(const __grid_constant__ MomentsParams params PEERS_PARAMETER) {
    let_next_kernel_start();
#if PEERS
    Sender sender(peers);
    sender.send_header(peers, params.count);
#endif
    const WalkParams& walk = params.walk;
    Position position(walk, blockIdx.x);
    Reducer reducer(walk, position);
    Element origin = origin_of(params.x, walk, reducer, params.count);
    Pair total = sum_elements(params.x, walk, position, reducer, origin, [](Raw) {});
    sum_over_threads(walk, position, reducer, total);
    if (!sum_over_blocks(walk, position, reducer, params.partials, params.tickets, total)) return;
    auto [mean, m2] = moments_of(params.count, params.per_count, widen(origin), total);
#if PEERS
    sender.send(peers, reducer.channel, mean, m2);
#else
    write(params, reducer.channel, mean, m2);
#endif
}
