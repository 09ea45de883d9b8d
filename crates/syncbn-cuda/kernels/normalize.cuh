// y = (x - mean) invstd weight + bias, and the state: what normalize.cu and forward.cu share.

// The statistics of a batch of this rank alone.
__device__ inline BatchStatistics local_statistics(f64 count, f64 mean, f64 m2) {
    if (!isfinite(m2)) m2 -= m2; // NaN: with a variance of infinity, invstd would be 0 and y finite
    return {count, mean, m2 * reciprocal(count)};
}

struct Statistics {
    f64 count = 0, mean = 0, var = 0, invstd = 0;

    // Only what y depends on.
    __device__ Statistics(f64 mean_, f64 invstd_) : mean(mean_), invstd(invstd_) {}

    // Of a batch.
    __device__ Statistics(const NormalizeParams& params, const BatchStatistics& b) {
        count = b.count;
        mean = count == 0 ? 0 : b.mean;
        var = count == 0 ? 0 : b.var;
        invstd = count == 0 ? 0 : rsqrt(var + params.eps);
    }
};

// Writes the saved statistics of a channel.
__device__ inline void save(const NormalizeParams& params, long long channel, const Statistics& s) {
    long long channels = params.walk.channels;
    params.saved[channel] = s.mean;
    params.saved[channels + channel] = s.var;
    params.saved[2 * channels + channel] = s.invstd;
    if (channel == 0) params.saved[3 * channels] = s.count;
}

// With the fused operation written out, so that an update alone has the same bits as one in a pass.
__device__ inline Param blend(Param old, f64 fresh, f64 weight) { return (Param)fma(weight, fresh, (1.0 - weight) * old); }

// The running statistics of a channel before the update. They may be read while the previous kernel runs.
struct RunningStatistics {
    Param mean = 0, var = 0;
    long long number = 0;
    bool last = false; // whether this thread writes the counter
    __device__ void read_channel(const NormalizeParams& params, long long channel) {
        mean = params.running_mean[channel];
        var = params.running_var[channel];
    }
    __device__ void read_number(const NormalizeParams& params) {
        number = *params.num_batches_tracked;
    }
    // The counter is written by the owner of channel 0, unless all blocks read it for their weight: then by the first thread of the last
    // block to have read it. That is found by a ticket, which every block takes after a barrier that follows its reads.
    __device__ void take_turn(const NormalizeParams& params) {
        if (threadIdx.x != 0) return;
        unsigned most = params.state_blocks - 1;
        last = params.momentum < 0 && most > 0 ? take_ticket(params.state_ticket, most) == most : blockIdx.x == 0;
    }

    __device__ void update(const NormalizeParams& params, long long channel, const Statistics& s) const {
        if (s.count == 0) return;
        long long next = number + (number < 0x7fffffffffffffffll ? 1 : 0);
        f64 weight = params.momentum < 0 ? 1.0 / (f64)next : params.momentum;
        if (last) *params.num_batches_tracked = next;
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
            set(at, scale[at], shift[at], find_statistics(channel));
        });
    }

    __device__ void set(int at, Param weight, Param bias, const Statistics& s) {
        f64 factor = weight * s.invstd;
        mean[at] = (Math)s.mean;
        scale[at] = (Math)factor;
        shift[at] = (Math)(bias - (s.mean - (f64)mean[at]) * factor);
    }
};

// The coefficients of a thread's vectors, in registers.
struct Normalizer {
    Math mean[VECTOR_COLUMNS], scale[VECTOR_COLUMNS], shift[VECTOR_COLUMNS];

    __device__ Normalizer(const Coefficients& of_block, const int (&at)[VECTOR_COLUMNS]) {
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) {
            mean[w] = of_block.mean[at[w]];
            scale[w] = of_block.scale[at[w]];
            shift[w] = of_block.shift[at[w]];
        }
    }

    // Writes y's vector over x's in registers, and to memory.
    __device__ void write(Vector& x, void* to, long long index, Policy policy) const {
        Math y[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            y[j] = (widen(x.element[j]) - mean[w]) * scale[w] + shift[w];
        }
        narrow(y, x);
        store((Raw*)to + index, x.raw, policy);
    }
};

// The elements after the last whole row of columns.
__device__ inline void normalize_tail(const NormalizeParams& params, const Position& position, const Coefficients& coefficients) {
    const WalkParams& walk = params.walk;
#pragma unroll 1
    for (unsigned e = position.block_of_channel * blockDim.x + threadIdx.x; e < walk.tail;
         e += walk.blocks_per_channel * blockDim.x) {
        int c = Coefficients::at(e % (unsigned)walk.channels_per_block);
        long long index = walk.runs * walk.lanes_per_block * VEC + e;
        Math y = (element_at(params.x, index) - coefficients.mean[c]) * coefficients.scale[c] + coefficients.shift[c];
        narrow(y, ((Element*)params.y)[index]);
    }
}
