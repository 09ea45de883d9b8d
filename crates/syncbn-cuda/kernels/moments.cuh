// The mean and M2 of a channel of this rank's x: moments.cu and forward.cu have them.
//
// Elements are added in chains. A chain is at most 64 elements of one channel that one thread reads. For each chain the thread computes
// the sum of the elements, and the sum of the squared differences from the chain's first element (in f32, or f64 for f64 activations).
// Then the chain's sums are converted, in f64, to differences from the channel's first element, and added up. Differences within a chain
// are small where neighbouring elements are alike, which keeps the squares exact enough in f32.

// Accumulators of a thread. Rows have two, for shorter sequences of dependent additions.
#define ACCUMULATORS (COLUMNS ? VEC : VEC < 2 ? 1 : 2)
#define CHAIN_VECTORS (64 / (VEC / ACCUMULATORS))

struct Chain {
    int vectors = 0;
    Math shift[VECTOR_COLUMNS], squares[ACCUMULATORS];
    // Of x itself where Sum is wider than Math; else of the differences, which are exact in f32 for half types of similar size.
    Sum sum[ACCUMULATORS];

    __device__ Chain() {
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) shift[w] = 0;
#pragma unroll
        for (int p = 0; p < ACCUMULATORS; p++) sum[p] = squares[p] = 0;
    }

    __device__ void add(const Vector& x) {
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            Math d = widen(x.element[j]) - shift[COLUMNS ? j : 0];
            sum[j % ACCUMULATORS] += sizeof(Sum) > sizeof(Math) ? widen(x.element[j]) : d;
            squares[j % ACCUMULATORS] += d * d;
        }
    }

    // Reads and adds as many vectors as a chain may have. Calls `keep(vector)` with each of them, in their order.
    template <class Keep> __device__ void take(const void* from, Cursor<false>& cursor, Policy policy, Keep& keep) {
#pragma unroll 1
        while (cursor.left > 0 && vectors < CHAIN_VECTORS) {
            long long indices[UNROLL];
            Vector x[UNROLL];
            int taken = cursor.take(indices);
            for_taken(taken, [&](int u) { x[u].raw = load_constant((const Raw*)from + indices[u], policy); });
            if (vectors == 0) {
#pragma unroll
                for (int w = 0; w < VECTOR_COLUMNS; w++) shift[w] = widen(x[0].element[w]);
            }
            for_taken(taken, [&](int u) {
                keep(x[u].raw);
                add(x[u]);
            });
            vectors += taken;
        }
    }
};

// Adds a chain of `count` elements to the sums of differences from the origin: x - origin = (x - shift) + delta.
__device__ inline void move(Pair& total, f64 origin, f64 count, f64 shift, f64 sum, f64 squares) {
    if (sizeof(Sum) > sizeof(Math)) sum -= count * shift;
    f64 delta = shift - origin;
    total.first += fma(count, delta, sum);
    total.second += fma(delta, fma(count, delta, 2 * sum), squares);
}

// The element that all sums of a channel are differences from: its first.
__device__ inline Element origin_of(const void* x, const WalkParams& walk, const Reducer& reducer, f64 count) {
    Element origin = {};
    if (reducer.inside && count > 0) origin = ((const Element*)x)[reducer.channel * walk.inner];
    return origin;
}

// The sums of differences from the origin, and of their squares, over the elements that this thread adds up. Every thread of the block
// has to call this.
template <class Keep>
__device__ inline Pair sum_elements(
    const void* x, const WalkParams& walk, const Position& position, const Reducer& reducer, Element origin, Keep keep
) {
    Cursor<false> cursor(walk, position);
    Policy policy = evict_last();
    Pair total = {0, 0};
#if COLUMNS
    for_tail(walk, position, reducer, [&](long long index) {
        f64 d = (f64)element_at(x, index) - (f64)widen(origin);
        total.add({d, d * d});
    });
    __shared__ PerColumn<Math> shifts, squares;
    __shared__ PerColumn<Sum> sums;
#pragma unroll 1
    for (int done = 0; done <= walk.vectors_per_thread; done += CHAIN_VECTORS) {
        Chain chain;
        chain.take(x, cursor, policy, keep);
        f64 from = widen(late(origin));
        if (done > 0) __syncthreads();
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) {
            shifts.mine(w) = chain.shift[w];
            sums.mine(w) = chain.sum[w];
            squares.mine(w) = chain.squares[w];
        }
        __syncthreads();
        f64 usual = min(walk.vectors_per_thread - done, CHAIN_VECTORS), one_more = min(walk.vectors_per_thread + 1 - done, CHAIN_VECTORS);
        for_entries(walk, reducer, [&](int at, int thread_of_lane) {
            f64 count = position.vectors(walk, thread_of_lane) > walk.vectors_per_thread ? one_more : usual;
            move(total, from, count, shifts.value[at], sums.value[at], squares.value[at]);
        });
    }
#else
    while (cursor.left > 0) {
        Chain chain;
        chain.take(x, cursor, policy, keep);
        f64 sum = chain.sum[0], squares = chain.squares[0];
        if (ACCUMULATORS > 1) {
            sum += chain.sum[ACCUMULATORS - 1];
            squares += chain.squares[ACCUMULATORS - 1];
        }
        move(total, widen(late(origin)), (f64)chain.vectors * ELEMENTS_PER_COLUMN, chain.shift[0], sum, squares);
    }
#endif
    return total;
}

// The mean and M2 of a channel of `count` elements.
__device__ inline Pair moments_of(f64 count, f64 per_count, f64 origin, const Pair& total) {
    f64 mean = 0, m2 = 0;
    if (count > 0) {
        f64 from_origin = divide(total.first, count, per_count);
        mean = origin + from_origin;
        m2 = total.second - total.first * from_origin;
        m2 = m2 < 0 ? 0 : m2; // keeps NaN
    }
    return {mean, m2};
}
