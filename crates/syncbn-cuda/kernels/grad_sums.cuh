// The sums of a channel, sum_dy and sum_dy_xmu = sum dy (x - mean), over this rank's elements: grad_sums.cu and backward.cu have them.
//
// Chains of at most 64 terms are summed in Math, and the chains' sums in f64. The terms use the mean rounded to Math; then the
// product of sum_dy and the rounding error is subtracted from sum_dy_xmu.

// Accumulators of a thread. Rows have two, for shorter sequences of dependent additions.
#define ACCUMULATORS (COLUMNS ? VEC : VEC < 2 ? 1 : 2)
#define CHAIN_VECTORS (64 / (VEC / ACCUMULATORS))

// The means of a thread's columns. They are read when the first loads of x and dy are under way: those would wait for them otherwise.
struct Means {
    const f64* saved;
    const WalkParams& walk;
    const Position& position;
    Math rounded[VECTOR_COLUMNS];
    bool known = false;

    __device__ Means(const f64* saved_, const WalkParams& walk_, const Position& position_)
        : saved(saved_), walk(walk_), position(position_) {}

    __device__ void read() {
        if (known) return;
        known = true;
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) rounded[w] = (Math)saved[position.channel(walk, w)];
    }
};

struct Chain {
    Math dy[ACCUMULATORS], dy_xmu[ACCUMULATORS];

    __device__ Chain() {
#pragma unroll
        for (int p = 0; p < ACCUMULATORS; p++) dy[p] = dy_xmu[p] = 0;
    }

    __device__ void add(const Vector& x, const Vector& g, const Means& means) {
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            Math wide = widen(g.element[j]);
            dy[j % ACCUMULATORS] += wide;
            dy_xmu[j % ACCUMULATORS] += wide * (widen(x.element[j]) - means.rounded[COLUMNS ? j : 0]);
        }
    }

    // Reads and adds as many vectors as a chain may have.
    template <class Tensors> __device__ void take(Tensors& tensors, Cursor<false>& cursor, Means& means) {
#pragma unroll 1
        for (int vectors = 0; cursor.left > 0 && vectors < CHAIN_VECTORS; vectors += UNROLL) {
            long long indices[UNROLL];
            Vector x[UNROLL], g[UNROLL];
            int taken = cursor.take(indices);
            for_taken(taken, [&](int u) {
                x[u].raw = tensors.load_x(indices[u]);
                g[u].raw = tensors.load_dy(indices[u]);
            });
            means.read();
            for_taken(taken, [&](int u) {
                tensors.keep(x[u].raw, g[u].raw);
                add(x[u], g[u], means);
            });
        }
    }
};

// The sums over the elements that this thread adds up. `tensors` has the addresses of x and dy, reads vectors of them, and is given each
// pair of vectors that was read, in their order. Every thread of the block has to call this.
template <class Tensors>
__device__ inline Pair sum_gradients(
    Tensors tensors, const f64* saved, const WalkParams& walk, const Position& position, const Reducer& reducer
) {
    Cursor<false> cursor(walk, position);
    Means means(saved, walk, position);
    Pair total = {0, 0};
#if COLUMNS
    for_tail(walk, position, reducer, [&](long long index) {
        f64 g = element_at(tensors.dy, index), rounded = (Math)saved[reducer.channel];
        total.add({g, g * ((f64)element_at(tensors.x, index) - rounded)});
    });
    __shared__ PerColumn<Math> sums, products;
#pragma unroll 1
    for (int done = 0; done <= walk.vectors_per_thread; done += CHAIN_VECTORS) {
        Chain chain;
        chain.take(tensors, cursor, means);
        if (done > 0) __syncthreads();
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) {
            sums.mine(w) = chain.dy[w];
            products.mine(w) = chain.dy_xmu[w];
        }
        __syncthreads();
        for_entries(walk, reducer, [&](int at, int) { total.add({sums.value[at], products.value[at]}); });
    }
#else
    while (cursor.left > 0) {
        Chain chain;
        chain.take(tensors, cursor, means);
#pragma unroll
        for (int p = 0; p < ACCUMULATORS; p++) total.add({chain.dy[p], chain.dy_xmu[p]});
    }
#endif
    return total;
}

// sum_dy_xmu of a channel: the terms had the rounded mean.
__device__ inline f64 exact_product(f64 mean, const Pair& total) { return total.second - (mean - (f64)(Math)mean) * total.first; }
