// A forward pass of a rank alone in one launch, for tensors of which every block has whole channels: the block reads its part of x once,
// keeps it in shared memory while it adds it up, and writes y. moments.cuh and normalize.cuh have the formulas.

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) forward(const __grid_constant__ ForwardParams params) {
    const NormalizeParams& normalize = params.normalize;
    const WalkParams& walk = normalize.walk;
    Position position(walk, blockIdx.x);
    Reducer reducer(walk, position);
    // What is read besides x, before the sums, so that nothing waits for it after them.
    RunningStatistics running;
    Param weight = 1, bias = 0;
    if (reducer.owner) {
        if (normalize.weight) weight = normalize.weight[reducer.channel];
        if (normalize.bias) bias = normalize.bias[reducer.channel];
        if (normalize.running_mean) running.read_channel(normalize, reducer.channel);
    }
    if (normalize.running_mean) running.read_number(normalize);

    Prefetch kept(normalize.prefetch_rounds, 0);
    f64 origin = origin_of(normalize.x, walk, reducer, params.count);
    auto keep = [&kept, vector = 0](Raw raw) mutable { kept.at(vector++) = raw; };
    Pair total = sum_elements(normalize.x, walk, position, reducer, origin, keep);
    sum_over_threads(walk, position, reducer, total);
    if (normalize.running_mean) running.take_turn(normalize);

    __shared__ Coefficients coefficients;
    if (reducer.owner) {
        auto [mean, m2] = moments_of(params.count, params.per_count, origin, total);
        Statistics s(normalize, local_statistics(params.count, mean, m2));
        coefficients.set(Coefficients::at(reducer.local_channel), weight, bias, s);
        save(normalize, reducer.channel, s);
        if (normalize.running_mean) running.update(normalize, reducer.channel, s);
    }
    int at[VECTOR_COLUMNS];
    coefficients.find(walk, position, at);
    __syncthreads();

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
}
