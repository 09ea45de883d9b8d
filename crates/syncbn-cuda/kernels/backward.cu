// A backward pass in one launch, of a rank alone or of ranks that meet inside it, for tensors of which every block has whole channels:
// the block reads its part of x and dy once, keeps it in shared memory while it adds it up, and writes dx. grad_sums.cuh and
// grad_input.cuh have the formulas.

// x and dy, which stay in shared memory: dx may be stored in the place of dy.
struct Tensors {
    const void *x, *dy;
    Policy policy;
    Prefetch kept_x, kept_dy;
    int vectors;

    __device__ Raw load_x(long long index) const { return load_constant((const Raw*)x + index, policy); }
    __device__ Raw load_dy(long long index) const { return load((const Raw*)dy + index, policy); }
    __device__ void keep(Raw of_x, Raw of_dy) {
        kept_x.at(vectors) = of_x;
        kept_dy.at(vectors++) = of_dy;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    backward(const __grid_constant__ BackwardParams params PEERS_PARAMETER) {
#if PEERS
    Sender sender(peers);
#endif
    const GradInputParams& input = params.input;
    const WalkParams& walk = input.walk;
    Position position(walk, blockIdx.x);
    Reducer reducer(walk, position);
    // What an owner needs after the sums is read before them, and used only then.
    Param weight = 1;
    f64 mean = 0, invstd = 0, count = 0;
    if (reducer.owner) {
        if (input.weight) weight = input.weight[reducer.channel];
        mean = input.saved[reducer.channel];
        invstd = input.saved[2 * walk.channels + reducer.channel];
        count = input.saved[3 * walk.channels];
    }
    Prefetch kept_x(input.prefetch_rounds, 0), kept_dy(input.prefetch_rounds, 1);
    Tensors tensors = {input.x, input.dy, evict_last(), kept_x, kept_dy, 0};
    Pair total = sum_gradients(tensors, input.saved, walk, position, reducer);
#if PEERS
    // Now, because what they need was not there when the loads began.
    sender.send_header(peers, 0);
#endif
    sum_over_threads(walk, position, reducer, total);

    __shared__ Coefficients coefficients;
    f64 product = exact_product(mean, total);
    if (reducer.owner) {
        Pair sums = {total.first, product};
#if PEERS
        sender.send(peers, reducer.channel, sums.first, sums.second);
#endif
        int entry = Coefficients::at(reducer.local_channel);
        coefficients.set_factors(entry, weight, mean, invstd, count);
#if PEERS
        auto add = [&](int rank, f64 first, f64 second, f64) {
            sums = rank == 0 ? Pair{first, second} : Pair{sums.first + first, sums.second + second};
        };
        if (sender.may_send) Receiver(sender).for_others<false>(peers, reducer.channel, total.first, product, 0, add);
#endif
        coefficients.set_sums(entry, sums.first, sums.second);
    }
    int at[VECTOR_COLUMNS];
    coefficients.find(walk, position, at);
    __syncthreads();
#if PEERS
    // After a barrier: every thread of the block has read the number.
    bool ends = threadIdx.x == 0 && sender.is_last_to_begin(peers);
#endif

    Slopes slopes(coefficients, at);
    Cursor<false> cursor(walk, position);
    Policy policy = evict_first();
#pragma unroll 2
    for (int vector = 0; cursor.left > 0; vector++) {
        Vector x, dy;
        x.raw = kept_x.at(vector);
        dy.raw = kept_dy.at(vector);
        slopes.write(x, dy, input.dx, cursor.next(), false, policy);
    }
    grad_input_tail(input, position, coefficients, false);
    // Last, since nothing waits for it.
#if PEERS
    if (blockIdx.x == 0) compare_ranks(peers, Receiver(sender));
    if (ends) end_pass(peers, sender.number);
#endif
    if (!reducer.owner) return;
    if (params.d_bias) params.d_bias[reducer.channel] = (Param)total.first;
    if (params.d_weight) params.d_weight[reducer.channel] = (Param)(product * invstd);
}
