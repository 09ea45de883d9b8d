// y = (x - mean) invstd weight + bias. The first blocks of the grid walk no tensor: they own the state, one channel a
// thread, and write the saved and the running statistics; the others finalise what they need for themselves.
//
// It may start before the kernel that makes the message has ended: until it has waited, it only reads x.

enum Source { GROUP, LOCAL, FROZEN, SAVED };

struct NormalizeArgs {
    Tile tile;
    const void* x;
    void* y;
    const Param* weight; // null: 1
    const Param* bias;   // null: 0
    const f64* message;
    const f64* m2;
    const Param* frozen_mean;
    const Param* frozen_var;
    f64* saved; // [mean | invstd | M]
    Param* running_mean; // null: nothing tracked
    Param* running_var;
    long long* num_batches_tracked;
    unsigned* ticket;
    f64 eps;
    f64 momentum; // below 0: cumulative average
    int source;
    int owners;
};
static_assert(sizeof(NormalizeArgs) == ARGS_BYTES, "normalize.rs has another struct");

struct Batch { f64 count, mean, var; };

// As statistics.rs of the core has it.
__device__ Batch batch(const NormalizeArgs& args, long long channel) {
    Batch b = {args.message[0], 0, 0};
    if (b.count == 0) return b;
    b.mean = args.message[1 + channel] / b.count;
    if (args.source == LOCAL) {
        b.var = args.m2[channel] / b.count;
        return b;
    }
    f64 sum = args.message[1 + channel], squares = args.message[1 + args.tile.channels + channel];
    f64 rest = fma(-b.mean, b.count, sum);
    b.var = (fma(-sum, b.mean, squares) - b.mean * rest) / b.count;
    if (b.var <= squares / b.count * (1.0 / 281474976710656.0)) b.var = 0; // false for NaN
    return b;
}

__device__ void mean_and_invstd(const NormalizeArgs& args, long long channel, f64& mean, f64& invstd) {
    if (args.source == SAVED) {
        mean = args.saved[channel];
        invstd = args.saved[args.tile.channels + channel];
    } else if (args.source == FROZEN) {
        mean = args.frozen_mean[channel];
        invstd = rsqrt((f64)args.frozen_var[channel] + args.eps);
    } else {
        Batch b = batch(args, channel);
        mean = b.mean;
        invstd = b.count == 0 ? 0 : rsqrt(b.var + args.eps);
    }
}

__device__ Param blend(Param old, f64 fresh, f64 weight) { return (Param)((1.0 - weight) * old + weight * fresh); }

__device__ void update_running(const NormalizeArgs& args, long long channel, const Batch& b) {
    long long number = *args.num_batches_tracked;
    number += number < 0x7fffffffffffffffll ? 1 : 0;
    f64 weight = args.momentum < 0 ? 1.0 / (f64)number : args.momentum;
    if (channel < args.tile.channels) {
        args.running_mean[channel] = blend(args.running_mean[channel], b.mean, weight);
        if (b.count > 1) {
            f64 unbiased = b.var * (b.count / (b.count - 1.0));
            args.running_var[channel] = blend(args.running_var[channel], unbiased, weight);
        } else if (!isfinite(b.var)) {
            args.running_var[channel] = (Param)(b.var - b.var); // NaN
        }
    }
    // The last block to have read the counter moves it on.
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicInc(args.ticket, args.owners - 1) == (unsigned)(args.owners - 1)) *args.num_batches_tracked = number;
    }
}

__device__ void own_state(const NormalizeArgs& args) {
    long long channel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long channels = args.tile.channels;
    Batch b = {0, 0, 0};
    if (channel < channels) {
        f64 mean, invstd;
        mean_and_invstd(args, channel, mean, invstd);
        args.saved[channel] = mean;
        args.saved[channels + channel] = invstd;
        if (args.source != FROZEN) b = batch(args, channel);
        if (channel == 0) args.saved[2 * channels] = args.source == FROZEN ? 0 : b.count;
    }
    if (args.running_mean && args.message[0] != 0) update_running(args, channel, b);
}

// y = (x - mean) scale + shift of some channels, where mean is rounded to Math and shift makes up for it.
struct Affine {
    Math mean[MOST_PACK], scale[MOST_PACK], shift[MOST_PACK];

    __device__ void fill(const NormalizeArgs& args, const Place& place) {
        long long first = place.first_channel(args.tile);
        for (int c = threadIdx.x; c < args.tile.pack && first + c < args.tile.channels; c += blockDim.x) {
            f64 exact, invstd;
            mean_and_invstd(args, first + c, exact, invstd);
            f64 factor = args.weight ? args.weight[first + c] * invstd : invstd;
            f64 bias = args.bias ? (f64)args.bias[first + c] : 0;
            mean[c] = (Math)exact;
            scale[c] = (Math)factor;
            shift[c] = (Math)(bias - (exact - (f64)mean[c]) * factor);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) normalize(const __grid_constant__ NormalizeArgs args) {
    if (blockIdx.x < args.owners) {
        wait_for_previous_kernel();
        return own_state(args);
    }
    const Tile& tile = args.tile;
    Place place(tile, gridDim.x - 1 - blockIdx.x);
    Walk<true> walk(tile, place);
    Policy policy = forget();
    long long indices[UNROLL];
    Vector x[UNROLL];
    auto load_next = [&] {
        int taken = walk.take(indices);
        for_taken(taken, [&](int u) { x[u].raw = load_constant((const Raw*)args.x + indices[u], policy); });
        return taken;
    };
    int taken = load_next();

    wait_for_previous_kernel();
    __shared__ Affine affine;
    affine.fill(args, place);
    __syncthreads();
    Math mean[WIDTH], scale[WIDTH], shift[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        int c = place.local_channel(tile, w);
        mean[w] = affine.mean[c];
        scale[w] = affine.scale[c];
        shift[w] = affine.shift[c];
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) {
            Math y[VEC];
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                int w = COLUMNS ? j : 0;
                y[j] = (widen(x[u].element[j]) - mean[w]) * scale[w] + shift[w];
            }
            narrow(y, x[u]);
            store((Raw*)args.y + indices[u], x[u].raw, policy);
        });
    }
    if (place.split > 0) return;
#pragma unroll 1
    for (unsigned e = threadIdx.x; e < tile.tail; e += blockDim.x) {
        int c = e % (unsigned)tile.pack;
        long long index = tile.runs * tile.slots * VEC + e;
        Math y = (element_at(args.x, index) - affine.mean[c]) * affine.scale[c] + affine.shift[c];
        narrow(y, ((Element*)args.y)[index]);
    }
}
