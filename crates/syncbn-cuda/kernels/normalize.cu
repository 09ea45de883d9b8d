// y = (x - mean) invstd weight + bias. The first `state_blocks` blocks of the grid have no part of the tensor: they write the saved and
// the running statistics, one channel a thread. The other blocks compute the statistics that they need themselves. With saved
// statistics one block updates the running statistics, if there are any.
//
// It may start before the kernel that makes the message has ended. Before it waits for that, it reads only memory that was written
// before that kernel began (parameters, running statistics, and as much of x as shared memory has room for), and takes the state's
// ticket, which no other kernel uses.

// This rank's statistics.
__device__ inline BatchStatistics local_statistics(const NormalizeParams& params, long long channel) {
    f64 count = params.message[0], mean = params.local_moments[channel];
    f64 m2 = params.local_moments[params.walk.channels + channel];
    if (!isfinite(m2)) m2 -= m2; // NaN: with a variance of infinity, invstd would be 0 and y finite
    return {count, mean, m2 * reciprocal(count)};
}

#if PEERS
// The sums, over the ranks, of a channel's message.
struct MessageSums {
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

    // Only what y depends on.
    __device__ Statistics(f64 mean_, f64 invstd_) : mean(mean_), invstd(invstd_) {}

    // Of a batch.
    __device__ Statistics(const NormalizeParams& params, const BatchStatistics& b) {
        count = b.count;
        mean = count == 0 ? 0 : b.mean;
        var = count == 0 ? 0 : b.var;
        invstd = count == 0 ? 0 : rsqrt(var + params.eps);
    }

    __device__ Statistics(const NormalizeParams& params, long long channel) {
        long long channels = params.walk.channels;
        count = 0;
        if (params.source == StatisticsSource::Saved) {
            mean = params.saved[channel];
            invstd = params.saved[2 * channels + channel];
            return;
        }
        if (params.source == StatisticsSource::Frozen) {
            mean = params.frozen_mean[channel];
            var = params.frozen_var[channel];
            invstd = rsqrt(var + params.eps);
            return;
        }
        bool local = params.source == StatisticsSource::Local;
        BatchStatistics b = local ? local_statistics(params, channel) : read_parts(params.message, channels, channel);
        *this = Statistics(params, b);
    }
};

// With the fused operation written out, so that an update alone has the same bits as one in a pass.
__device__ Param blend(Param old, f64 fresh, f64 weight) { return (Param)fma(weight, fresh, (1.0 - weight) * old); }

// The running statistics of a channel before the update. They may be read while the previous kernel runs.
struct RunningStatistics {
    Param mean = 0, var = 0;
    long long number = 0;
    f64 weight = 0;
    bool last = false; // whether this thread writes the counter: the first one of the last block to have read it

    __device__ void read(const NormalizeParams& params, long long channel) {
        if (channel < params.walk.channels) read_channel(params, channel);
        read_number(params);
    }
    __device__ void read_channel(const NormalizeParams& params, long long channel) {
        mean = params.running_mean[channel];
        var = params.running_var[channel];
    }
    __device__ void read_number(const NormalizeParams& params) {
        number = *params.num_batches_tracked;
        number += number < 0x7fffffffffffffffll ? 1 : 0;
        weight = params.momentum < 0 ? 1.0 / (f64)number : params.momentum;
        __syncthreads();
        last = threadIdx.x == 0 && (params.state_blocks == 1 ||
                                    take_ticket(params.state_ticket, params.state_blocks - 1) == params.state_blocks - 1);
    }

    __device__ void update(const NormalizeParams& params, long long channel, const Statistics& s) const {
        if (s.count == 0) return;
        if (last) *params.num_batches_tracked = number;
        Param moved_mean = blend(mean, s.mean, weight), moved_var = var;
        if (s.count > 1) {
            moved_var = blend(var, s.var * (s.count / (s.count - 1.0)), weight);
        } else if (!isfinite(s.var)) {
            moved_var = (Param)(s.var - s.var); // NaN
        }
        if (params.skip_non_finite && !(isfinite((f64)moved_mean) && isfinite((f64)moved_var))) return;
        params.running_mean[channel] = moved_mean;
        params.running_var[channel] = moved_var;
    }
};

__device__ void write_state(const NormalizeParams& params PEERS_REFERENCE) {
    long long channel = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    long long channels = params.walk.channels;
    RunningStatistics running;
    if (params.running_mean) running.read(params, channel);
    wait_for_previous_kernel();
#if PEERS
    Receiver receiver(peers);
    if (channel == 0) end_pass(peers, receiver.number);
    if (channel >= channels) return;
    MessageSums sums;
    auto add = [&](int rank, f64 mean, f64 m2, f64 count) { sums.add(rank, mean, m2, count); };
    if (!receiver.for_agreeing_ranks(peers, channel, add)) return;
    Statistics s(params, batch_statistics(sums.count, sums.parts));
    receiver.publish(peers, channel, s.mean, s.invstd);
#else
    if (channel >= channels) return;
    Statistics s(params, channel);
#endif
    params.saved[channel] = s.mean;
    params.saved[channels + channel] = s.var;
    params.saved[2 * channels + channel] = s.invstd;
    if (channel == 0) params.saved[3 * channels] = s.count;
    if (params.running_mean) running.update(params, channel, s);
}

// Updates the running statistics from those that an earlier pass has saved. One block does it, so no ticket is needed.
__device__ void update_running_statistics(const NormalizeParams& params) {
    long long channels = params.walk.channels;
    f64 count = params.saved[3 * channels];
    RunningStatistics running;
    running.read_number(params);
    for (long long channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        Statistics s(params, channel);
        s.count = count;
        s.var = params.saved[channels + channel];
        running.read_channel(params, channel);
        running.update(params, channel, s);
        running.last = false;
    }
}

// y = (x - mean) scale + shift for the channels of a block. mean is rounded to Math, and shift corrects the rounding.
struct Coefficients : ChannelTable {
    Math mean[SIZE], scale[SIZE], shift[SIZE];

    // The part that may be read while the previous kernel runs.
    __device__ void begin(const NormalizeParams& params, const Position& position) {
        for_channels(params.walk, position, [&](int at, long long channel) {
            scale[at] = params.weight ? params.weight[channel] : 1;
            shift[at] = params.bias ? params.bias[channel] : 0;
        });
    }

    // The rest, by the same threads.
    template <class Find>
    __device__ void finish(const NormalizeParams& params, const Position& position, Find find_statistics) {
        for_channels(params.walk, position, [&](int at, long long channel) {
            Statistics s = find_statistics(channel);
            f64 factor = scale[at] * s.invstd;
            mean[at] = (Math)s.mean;
            scale[at] = (Math)factor;
            shift[at] = (Math)(shift[at] - (s.mean - (f64)mean[at]) * factor);
        });
    }
};

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
    coefficients.finish(params, position, [&](long long channel) { return Statistics(params, channel); });
#endif
    __syncthreads();
    Math mean[VECTOR_COLUMNS], scale[VECTOR_COLUMNS], shift[VECTOR_COLUMNS];
#pragma unroll
    for (int w = 0; w < VECTOR_COLUMNS; w++) {
        mean[w] = coefficients.mean[at[w]];
        scale[w] = coefficients.scale[at[w]];
        shift[w] = coefficients.shift[at[w]];
    }
    auto write = [&](Vector& x, long long index) {
        Math y[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            y[j] = (widen(x.element[j]) - mean[w]) * scale[w] + shift[w];
        }
        narrow(y, x);
        store((Raw*)params.y + index, x.raw, policy);
    };
#pragma unroll 2
    for (int vector = 0; vector < prefetch.rounds * UNROLL && prefetched.left > 0; vector++) {
        Vector x;
        x.raw = prefetch.at(vector);
        write(x, prefetched.next());
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) { write(x[u], indices[u]); });
    }
#pragma unroll 1
    for (unsigned e = position.block_of_channel * blockDim.x + threadIdx.x; e < walk.tail;
         e += walk.blocks_per_channel * blockDim.x) {
        int c = coefficients.at(e % (unsigned)walk.channels_per_block);
        long long index = walk.runs * walk.lanes_per_block * VEC + e;
        Math y = (element_at(params.x, index) - coefficients.mean[c]) * coefficients.scale[c] + coefficients.shift[c];
        narrow(y, ((Element*)params.y)[index]);
    }
}
