// The forward message: the count, and for each channel the sums m mean and m2 + m mean^2 of a rank with m elements, each in PARTS_OF_SUM
// parts. All parts but the last are products of m with 24 leading bits of mean or mean^2, so they and their sums over the ranks are
// exact. statistics.rs of syncbn-core has the same in to_sums and from_sums, and explains it.

// The index of part `part` of a channel.
__device__ inline long long part_at(long long channels, long long channel, int part) { return 1 + part * channels + channel; }

// A number in twice the precision: high + low, where high is the rounded value. Products are __dmul_rn, because the compiler would fuse
// others with the following addition, and the rounding error computed here would be that of another operation.
struct Double {
    f64 high, low;

    __device__ void add(f64 value) {
        f64 sum = high + value, part = sum - high;
        low += (high - (sum - part)) + (value - part);
        high = sum;
    }
    __device__ void add_product(f64 a, f64 b) {
        f64 product = __dmul_rn(a, b);
        f64 rest = fma(a, b, -product);
        add(product);
        low += rest;
    }
    __device__ f64 value() const { return high + low; }
};

// Calls `put(part, number)` with the products of the count and the leading bits of the value. Returns the remaining bits of the value.
template <class Put> __device__ inline f64 put_heads(f64 value, f64 count, Put put) {
    f64 above = 0;
#pragma unroll
    for (int head = 1; head < PARTS_OF_SUM; head++) {
        f64 leading = __longlong_as_double(__double_as_longlong(value) & (-1ll << (53 - 24 * head)));
        put(head - 1, count * (leading - above));
        above = leading;
    }
    return value - above;
}

// Calls `put(part, number)` with each part of a channel's message, from one rank's moments.
template <class Put> __device__ inline void put_parts(f64 count, f64 mean, f64 m2, Put put) {
    f64 square = __dmul_rn(mean, mean), square_rest = fma(mean, mean, -square);
    f64 rest = put_heads(mean, count, put);
    put(PARTS_OF_SUM - 1, count * rest);
    rest = put_heads(square, count, [&](int part, f64 number) { put(PARTS_OF_SUM + part, number); }) + square_rest;
    put(2 * PARTS_OF_SUM - 1, fma(count, rest, m2));
}

// Writes the parts of a channel into the message.
__device__ inline void write_parts(f64* message, long long channels, long long channel, f64 count, f64 mean, f64 m2) {
    put_parts(count, mean, m2, [&](int part, f64 number) { message[part_at(channels, channel, part)] = number; });
}

struct BatchStatistics { f64 count, mean, var; };

// The statistics of a channel over all ranks, from the sums of its parts.
__device__ inline BatchStatistics batch_statistics(f64 count, const f64 (&parts)[2 * PARTS_OF_SUM]) {
    f64 per = reciprocal(count);
    Double sum = {parts[0], 0}, squares = {parts[PARTS_OF_SUM], 0};
#pragma unroll
    for (int part = 1; part < PARTS_OF_SUM; part++) {
        sum.add(parts[part]);
        squares.add(parts[PARTS_OF_SUM + part]);
    }
    f64 mean = divide(sum.value(), count, per);
    // S1 = M mean + rest, so S2 - S1^2/M = S2 - mean S1 - mean rest - rest^2/M. The last term is too small to matter.
    squares.add_product(-mean, sum.high);
    squares.low = fma(-mean, sum.low, squares.low);
    sum.add_product(-count, mean);
    f64 rest = sum.value();
    squares.low = fma(-mean, rest, squares.low);
    f64 var = squares.value() * per;
    return {count, fma(rest, per, mean), var < 0 ? 0 : var}; // keeps NaN
}

// The same, from the message. All loads are issued before the first result is used.
__device__ inline BatchStatistics read_parts(const f64* message, long long channels, long long channel) {
    f64 count = message[0], parts[2 * PARTS_OF_SUM];
#pragma unroll
    for (int part = 0; part < 2 * PARTS_OF_SUM; part++) parts[part] = message[part_at(channels, channel, part)];
    return batch_statistics(count, parts);
}

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
