// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M): what grad_input.cu and backward.cu share.

// dx = dy scale + (x - mean) slope + shift for the channels of a block. mean is rounded to Math, and shift corrects the rounding.
struct Coefficients : ChannelTable {
    Math mean[SIZE], scale[SIZE], slope[SIZE], shift[SIZE];
    f64 exact_mean[SIZE], per_dy[SIZE], invstd[SIZE]; // factors of the sums

    // The part that does not depend on the sums, and may be read while the previous kernel runs.
    __device__ void begin(const GradInputParams& params, const Position& position) {
        const f64 *saved_mean = params.saved, *saved_invstd = params.saved + 2 * params.walk.channels;
        for_channels(params.walk, position, [&](int at, long long channel) {
            Param weight = params.weight ? params.weight[channel] : 1;
            set_factors(at, weight, saved_mean[channel], saved_invstd[channel], params.saved[3 * params.walk.channels]);
        });
    }

    __device__ void set_factors(int at, Param weight, f64 of_mean, f64 of_invstd, f64 count) {
        invstd[at] = of_invstd;
        f64 factor = weight * of_invstd;
        exact_mean[at] = of_mean;
        mean[at] = (Math)of_mean;
        scale[at] = (Math)factor;
        per_dy[at] = count > 0 ? -factor / count : 0;
    }

    // The rest, by the same threads.
    template <class Sums> __device__ void finish(const GradInputParams& params, const Position& position, Sums sums) {
        for_channels(params.walk, position, [&](int at, long long channel) {
            auto [sum_dy, sum_dy_xmu] = sums(channel);
            set_sums(at, sum_dy, sum_dy_xmu);
        });
    }

    __device__ void set_sums(int at, f64 sum_dy, f64 sum_dy_xmu) {
        // In this order: the square of invstd may be infinite where the slope is not.
        f64 tilt = per_dy[at] * (invstd[at] * (invstd[at] * sum_dy_xmu));
        slope[at] = (Math)tilt;
        shift[at] = (Math)(per_dy[at] * sum_dy - (exact_mean[at] - (f64)mean[at]) * tilt);
    }
};

// The coefficients of a thread's vectors, in registers.
struct Slopes {
    Math mean[VECTOR_COLUMNS], scale[VECTOR_COLUMNS], slope[VECTOR_COLUMNS], shift[VECTOR_COLUMNS];

    __device__ Slopes(const Coefficients& of_block, const int (&at)[VECTOR_COLUMNS]) {
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) {
            mean[w] = of_block.mean[at[w]];
            scale[w] = of_block.scale[at[w]];
            slope[w] = of_block.slope[at[w]];
            shift[w] = of_block.shift[at[w]];
        }
    }

    // Writes dx's vector over dy's in registers, and to memory.
    __device__ void write(const Vector& x, Vector& dy, void* to, long long index, bool frozen, Policy policy) const {
        Math dx[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            Math rest = frozen ? 0 : (widen(x.element[j]) - mean[w]) * slope[w] + shift[w];
            dx[j] = widen(dy.element[j]) * scale[w] + rest;
        }
        narrow(dx, dy);
        store((Raw*)to + index, dy.raw, policy);
    }
};

// The elements after the last whole row of columns.
__device__ inline void grad_input_tail(
    const GradInputParams& params, const Position& position, const Coefficients& coefficients, bool frozen
) {
    const WalkParams& walk = params.walk;
#pragma unroll 1
    for (unsigned e = position.block_of_channel * blockDim.x + threadIdx.x; e < walk.tail;
         e += walk.blocks_per_channel * blockDim.x) {
        int c = Coefficients::at(e % (unsigned)walk.channels_per_block);
        long long index = walk.runs * walk.lanes_per_block * VEC + e;
        Math rest = frozen ? 0 : (element_at(params.x, index) - coefficients.mean[c]) * coefficients.slope[c] +
                                     coefficients.shift[c];
        narrow(element_at(params.dy, index) * coefficients.scale[c] + rest, ((Element*)params.dx)[index]);
    }
}
