// For each channel: sum_dy and sum_dy_xmu over this rank's elements, which are the backward message; d_bias and d_weight. grad_sums.cuh
// explains the sums.

// x and dy, which this kernel reads once.
struct Tensors {
    const void *x, *dy;
    Policy policy;

    __device__ Raw load_x(long long index) const { return load_constant((const Raw*)x + index, policy); }
    __device__ Raw load_dy(long long index) const { return load_constant((const Raw*)dy + index, policy); }
    __device__ void keep(Raw, Raw) const {}
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
    Tensors tensors = {params.x, params.dy, evict_last()};
    Pair total = sum_gradients(tensors, params.saved, walk, position, reducer);
    sum_over_threads(walk, position, reducer, total);
    if (!sum_over_blocks(walk, position, reducer, params.partials, params.tickets, total)) return;
    f64 mean = params.saved[reducer.channel], invstd = params.saved[2 * walk.channels + reducer.channel];
    f64 product = exact_product(mean, total);
#if PEERS
    sender.send(peers, reducer.channel, total.first, product);
#else
    params.message[reducer.channel] = total.first;
    params.message[walk.channels + reducer.channel] = product;
#endif
    if (params.d_bias) params.d_bias[reducer.channel] = (Param)total.first;
    if (params.d_weight) params.d_weight[reducer.channel] = (Param)(product * invstd);
}
