// y = (x - mean) invstd weight + bias. The first blocks of the grid walk no tensor: they own the state, one channel a
// thread, and write the saved and the running statistics; the others finalise what they need for themselves. Where the statistics
// are saved ones, one block updates the running statistics, if there are any.
//
// It may start before the kernel that makes the message has ended: until it has waited, it only reads what was there before
// that kernel began (x above all, as much of it as there is room for on the multiprocessor), and takes the state's ticket, which
// is nobody else's.

enum Source { GROUP, LOCAL, FROZEN, SAVED };

struct NormalizeArgs {
    Tile tile;
    const void* x;
    void* y;
    const Param* weight; // null: 1
    const Param* bias;   // null: 0
    const f64* message;
    const f64* own; // [mean | M2] of this rank
    const Param* frozen_mean;
    const Param* frozen_var;
    f64* saved; // [mean | var | invstd | M]; read where they are the source
    Param* running_mean; // null: nothing tracked
    Param* running_var;
    long long* num_batches_tracked;
    unsigned* ticket;
    f64 eps;
    f64 momentum; // below 0: cumulative average
    int source;
    int skip; // running statistics of a channel whose batch statistics are not finite stay as they are
    int owners;
    int ahead; // turns that a thread reads before it waits
};
static_assert(sizeof(NormalizeArgs) == ARGS_BYTES, "normalize.rs has another struct");

// This rank's statistics.
__device__ inline Batch own_batch(const NormalizeArgs& args, long long channel) {
    f64 count = args.message[0], mean = args.own[channel], m2 = args.own[args.tile.channels + channel];
    return {count, mean, m2 * reciprocal(count)};
}

#if PEERS
// The sums of the ranks' messages of a channel.
struct Sums {
    f64 count, parts[2 * PARTS_OF_SUM];

    // In the order of the ranks.
    __device__ void add(int rank, f64 mean, f64 m2, f64 of_rank) {
        count = rank == 0 ? of_rank : count + of_rank;
        put_parts(of_rank, mean, m2, [&](int part, f64 number) {
            parts[part] = rank == 0 ? number : parts[part] + number;
        });
    }
};
#endif

struct Statistics {
    f64 count, mean, var, invstd;

    // What y is made of, and no more.
    __device__ Statistics(f64 mean_, f64 invstd_) : mean(mean_), invstd(invstd_) {}

    // Of a batch.
    __device__ Statistics(const NormalizeArgs& args, const Batch& b) {
        count = b.count;
        mean = count == 0 ? 0 : b.mean;
        var = count == 0 ? 0 : b.var;
        invstd = count == 0 ? 0 : rsqrt(var + args.eps);
    }

    __device__ Statistics(const NormalizeArgs& args, long long channel) {
        long long channels = args.tile.channels;
        count = 0;
        if (args.source == SAVED) {
            mean = args.saved[channel];
            invstd = args.saved[2 * channels + channel];
            return;
        }
        if (args.source == FROZEN) {
            mean = args.frozen_mean[channel];
            var = args.frozen_var[channel];
            invstd = rsqrt(var + args.eps);
            return;
        }
        Batch b = args.source == LOCAL ? own_batch(args, channel) : read_parts(args.message, channels, channel);
        *this = Statistics(args, b);
    }
};

// Fused as written here, so that an update by itself has the same bits as one in a pass.
__device__ Param blend(Param old, f64 fresh, f64 weight) { return (Param)fma(weight, fresh, (1.0 - weight) * old); }

// The running statistics of a channel as they were, which may be read while the kernel before still runs.
struct Running {
    Param mean = 0, var = 0;
    long long number = 0;
    f64 weight = 0;
    bool last = false; // to have read the counter, of all blocks' first threads: the one that moves it on

    __device__ void read(const NormalizeArgs& args, long long channel) {
        if (channel < args.tile.channels) read_channel(args, channel);
        read_number(args);
    }
    __device__ void read_channel(const NormalizeArgs& args, long long channel) {
        mean = args.running_mean[channel];
        var = args.running_var[channel];
    }
    __device__ void read_number(const NormalizeArgs& args) {
        number = *args.num_batches_tracked;
        number += number < 0x7fffffffffffffffll ? 1 : 0;
        weight = args.momentum < 0 ? 1.0 / (f64)number : args.momentum;
        __syncthreads();
        last = threadIdx.x == 0 && (args.owners == 1 || take_ticket(args.ticket, args.owners - 1) == args.owners - 1);
    }

    __device__ void update(const NormalizeArgs& args, long long channel, const Statistics& s) const {
        if (s.count == 0) return;
        if (last) *args.num_batches_tracked = number;
        if (args.skip && !(isfinite(s.mean) && isfinite(s.var))) return;
        args.running_mean[channel] = blend(mean, s.mean, weight);
        if (s.count > 1) {
            args.running_var[channel] = blend(var, s.var * (s.count / (s.count - 1.0)), weight);
        } else if (!isfinite(s.var)) {
            args.running_var[channel] = (Param)(s.var - s.var); // NaN
        }
    }
};

__device__ void own_state(const NormalizeArgs& args PEERS_REFERENCE) {
    long long channel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long channels = args.tile.channels;
    Running running;
    if (args.running_mean) running.read(args, channel);
    wait_for_previous_kernel();
#if PEERS
    Receiver receiver(peers);
    if (channel == 0) end_pass(peers, receiver.number);
    if (channel >= channels) return;
    Sums sums;
    auto add = [&](int rank, f64 mean, f64 m2, f64 count) { sums.add(rank, mean, m2, count); };
    if (!receiver.for_agreeing_ranks(peers, channel, add)) return;
    Statistics s(args, batch_of(sums.count, sums.parts));
    receiver.leave(peers, channel, s.mean, s.invstd);
#else
    if (channel >= channels) return;
    Statistics s(args, channel);
#endif
    args.saved[channel] = s.mean;
    args.saved[channels + channel] = s.var;
    args.saved[2 * channels + channel] = s.invstd;
    if (channel == 0) args.saved[3 * channels] = s.count;
    if (args.running_mean) running.update(args, channel, s);
}

// The running statistics from what an earlier pass has saved, by one block: it has no ticket, and needs none.
__device__ void own_running(const NormalizeArgs& args) {
    long long channels = args.tile.channels;
    f64 count = args.saved[3 * channels];
    Running running;
    running.read_number(args);
    for (long long channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        Statistics s(args, channel);
        s.count = count;
        s.var = args.saved[channels + channel];
        running.read_channel(args, channel);
        running.update(args, channel, s);
        running.last = false;
    }
}

// y = (x - mean) scale + shift of some channels, where mean is rounded to Math and shift makes up for it.
struct Affine : Banks {
    Math mean[SIZE], scale[SIZE], shift[SIZE];

    // The parameters, which may be read while the kernel before still runs.
    __device__ void begin(const NormalizeArgs& args, const Place& place) {
        for_channels(args.tile, place, [&](int at, long long channel) {
            scale[at] = args.weight ? args.weight[channel] : 1;
            shift[at] = args.bias ? args.bias[channel] : 0;
        });
    }

    // By the same threads.
    template <class Find> __device__ void finish(const NormalizeArgs& args, const Place& place, Find find_statistics) {
        for_channels(args.tile, place, [&](int at, long long channel) {
            Statistics s = find_statistics(channel);
            f64 factor = scale[at] * s.invstd;
            mean[at] = (Math)s.mean;
            scale[at] = (Math)factor;
            shift[at] = (Math)(shift[at] - (s.mean - (f64)mean[at]) * factor);
        });
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    normalize(const __grid_constant__ NormalizeArgs args PEERS_PARAMETER) {
#if PEERS
    if (blockIdx.x < args.owners) return own_state(args, peers);
#else
    if (blockIdx.x < args.owners) return args.source == SAVED ? own_running(args) : own_state(args);
#endif
    const Tile& tile = args.tile;
    Place place(tile, gridDim.x - 1 - blockIdx.x);
    Walk<true> walk(tile, place), behind(tile, place);
    Ahead ahead(args.ahead, 0);
    Policy policy = forget();
    long long indices[UNROLL];
    Vector x[UNROLL];
    auto load_next = [&] {
        int taken = walk.take(indices);
        for_taken(taken, [&](int u) { x[u].raw = load_constant((const Raw*)args.x + indices[u], policy); });
        return taken;
    };
#pragma unroll 1
    for (int turn = 0; turn < ahead.turns; turn++) {
        for_taken(load_next(), [&](int u) { ahead.at(turn * UNROLL + u) = x[u].raw; });
    }
    int taken = load_next();
    __shared__ Affine affine;
    affine.begin(args, place);
    int at[WIDTH];
    affine.find(tile, place, at);

    wait_for_previous_kernel();
#if PEERS
    // Blocks of columns have many channels, and are few: they make the statistics for themselves. To blocks of rows, which are many and
    // need their registers, the first blocks leave them.
    Receiver receiver(peers);
    affine.finish(args, place, [&](long long channel) {
#if COLUMNS
        Sums sums;
        auto add = [&](int rank, f64 mean, f64 m2, f64 count) { sums.add(rank, mean, m2, count); };
        bool came = receiver.for_ranks<true>(peers, channel, add);
        return Statistics(args, came ? batch_of(sums.count, sums.parts) : Batch{0, 0, 0});
#else
        f64 mean, invstd;
        receiver.find(peers, channel, mean, invstd);
        return Statistics(mean, invstd);
#endif
    });
#else
    affine.finish(args, place, [&](long long channel) { return Statistics(args, channel); });
#endif
    __syncthreads();
    Math mean[WIDTH], scale[WIDTH], shift[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        mean[w] = affine.mean[at[w]];
        scale[w] = affine.scale[at[w]];
        shift[w] = affine.shift[at[w]];
    }
    auto write = [&](Vector& x, long long index) {
        Math y[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            y[j] = (widen(x.element[j]) - mean[w]) * scale[w] + shift[w];
        }
        narrow(y, x);
        store((Raw*)args.y + index, x.raw, policy);
    };
#pragma unroll 2
    for (int vector = 0; vector < ahead.turns * UNROLL && behind.left > 0; vector++) {
        Vector x;
        x.raw = ahead.at(vector);
        write(x, behind.next());
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) { write(x[u], indices[u]); });
    }
#pragma unroll 1
    for (unsigned e = place.split * blockDim.x + threadIdx.x; e < tile.tail; e += tile.splits * blockDim.x) {
        int c = affine.at(e % (unsigned)tile.pack);
        long long index = tile.runs * tile.slots * VEC + e;
        Math y = (element_at(args.x, index) - affine.mean[c]) * affine.scale[c] + affine.shift[c];
        narrow(y, ((Element*)args.y)[index]);
    }
}
