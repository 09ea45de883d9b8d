// A forward pass in one launch, of a rank alone or of ranks that meet inside it, for tensors of which every block has whole channels: the
// block reads its part of x once, keeps it in shared memory while it adds it up, and writes y. moments.cuh and normalize.cuh have the
// formulas.

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    forward(const __grid_constant__ ForwardParams params PEERS_PARAMETER) {
#if PEERS
    Sender sender(peers);
#endif
    const NormalizeParams& normalize = params.normalize;
    const WalkParams& walk = normalize.walk;
    Position position(walk, blockIdx.x);
    Reducer reducer(walk, position);
    bool moves = normalize.running_mean != nullptr;
    // What an owner needs after the sums is read before them, and used only then.
    RunningStatistics running;
    Param weight = 1, bias = 0;
    if (reducer.owner) {
        if (normalize.weight) weight = normalize.weight[reducer.channel];
        if (normalize.bias) bias = normalize.bias[reducer.channel];
        if (moves) {
            running.read_channel(normalize, reducer.channel);
            running.read_number(normalize);
        }
    }

    Prefetch kept(normalize.prefetch_rounds, 0);
    Element origin = origin_of(normalize.x, walk, reducer, params.count);
    auto keep = [&kept, vector = 0](Raw raw) mutable { kept.at(vector++) = raw; };
    Pair total = sum_elements(normalize.x, walk, position, reducer, origin, keep);
#if PEERS
    // Now, because what they need was not there when the loads began.
    sender.send_header(peers, params.count);
#endif
    sum_over_threads(walk, position, reducer, total);

    __shared__ Coefficients coefficients;
    Statistics statistics(0, 0);
    bool came = reducer.owner;
    if (reducer.owner) {
        // The compiler would convert these where they were read.
        running.mean = late(running.mean);
        running.var = late(running.var);
        auto [mean, m2] = moments_of(params.count, params.per_count, widen(late(origin)), total);
#if PEERS
        sender.send(peers, reducer.channel, mean, m2);
        MessageSums sums;
        auto add = [&](int rank, f64 mean, f64 m2, f64 count) { sums.add(rank, mean, m2, count); };
        came = sender.may_send && Receiver(sender).for_others<true>(peers, reducer.channel, mean, m2, params.count, add);
        BatchStatistics batch = came ? batch_statistics(sums.count, sums.parts) : BatchStatistics{0, 0, 0};
#else
        BatchStatistics batch = local_statistics(params.count, mean, m2);
#endif
        statistics = Statistics(normalize, batch);
        coefficients.set(Coefficients::at(reducer.local_channel), weight, bias, statistics);
    }
    int at[VECTOR_COLUMNS];
    coefficients.find(walk, position, at);
    __syncthreads();
#if PEERS
    // After a barrier: every thread of the block has read the number.
    bool ends = threadIdx.x == 0 && sender.is_last_to_begin(peers);
#endif
    if (moves) running.take_turn(normalize);

    Normalizer normalizer(coefficients, at);
    Cursor<false> cursor(walk, position);
    Policy policy = evict_first();
#pragma unroll 2
    for (int vector = 0; cursor.left > 0; vector++) {
        Vector x;
        x.raw = kept.at(vector);
        normalizer.write(x, normalize.y, cursor.next(), policy);
    }
    normalize_tail(normalize, position, coefficients);
    // Last, since nothing waits for it.
#if PEERS
    if (ends) end_pass(peers, sender.number);
#endif
    if (!came) return;
    save(normalize, reducer.channel, statistics);
    if (moves) running.update(normalize, reducer.channel, statistics);
}
