// Per channel: count, mean and M2 of this rank's x, and the forward message that is made of them.
//
// A chain is at most 64 elements that one thread meets of a channel: it sums them, and the squares of their differences from
// the first of them. In f64, chains are then moved to differences from the channel's first element, and added: the squares,
// in f32, are of differences no larger than the chain's own, and f64 forgives the channel's first element.

// Rows have two accumulators, for fewer additions one after the other.
#define PARTS (COLUMNS ? VEC : VEC < 2 ? 1 : 2)
#define CHAIN_VECTORS (64 / (VEC / PARTS))

struct MomentsArgs {
    Tile tile;
    const void* x;
    f64* message;
    f64* own; // [mean | M2]
    double2* partials;
    unsigned* tickets;
    f64 count;
    f64 per_count; // 1 / count
    int with_parts; // whether the message is wanted, besides its count
};
static_assert(sizeof(MomentsArgs) == ARGS_BYTES, "moments.rs has another struct");

struct Chain {
    int vectors = 0;
    Math shift[WIDTH], squares[PARTS];
    // Of x itself where Sum is wide, else of the differences, which are exact in f32 for halves of like size.
    Sum sum[PARTS];

    __device__ Chain() {
#pragma unroll
        for (int w = 0; w < WIDTH; w++) shift[w] = 0;
#pragma unroll
        for (int p = 0; p < PARTS; p++) sum[p] = squares[p] = 0;
    }

    __device__ void add(const Vector& x) {
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            Math d = widen(x.element[j]) - shift[COLUMNS ? j : 0];
            sum[j % PARTS] += sizeof(Sum) > sizeof(Math) ? widen(x.element[j]) : d;
            squares[j % PARTS] += d * d;
        }
    }

    // As many vectors as a chain may have.
    __device__ void take(const void* from, Walk<false>& walk, Policy policy) {
#pragma unroll 1
        while (walk.left > 0 && vectors < CHAIN_VECTORS) {
            long long indices[UNROLL];
            Vector x[UNROLL];
            int taken = walk.take(indices);
            for_taken(taken, [&](int u) { x[u].raw = load_constant((const Raw*)from + indices[u], policy); });
            if (vectors == 0) {
#pragma unroll
                for (int w = 0; w < WIDTH; w++) shift[w] = widen(x[0].element[w]);
            }
            for_taken(taken, [&](int u) { add(x[u]); });
            vectors += taken;
        }
    }
};

// Adds `count` elements with these sums to sums of differences from the origin: x - origin = (x - shift) + delta.
__device__ inline void move(Pair& total, f64 origin, f64 count, f64 shift, f64 sum, f64 squares) {
    if (sizeof(Sum) > sizeof(Math)) sum -= count * shift;
    f64 delta = shift - origin;
    total.first += fma(count, delta, sum);
    total.second += fma(delta, fma(count, delta, 2 * sum), squares);
}

// This rank's mean and M2 of a channel.
__device__ inline Pair moments_of(const MomentsArgs& args, f64 origin, const Pair& total) {
    f64 mean = 0, m2 = 0;
    if (args.count > 0) {
        f64 from_origin = divide(total.first, args.count, args.per_count);
        mean = origin + from_origin;
        m2 = total.second - total.first * from_origin;
        m2 = m2 < 0 ? 0 : m2; // NaN stays
    }
    return {mean, m2};
}

__device__ inline void write(const MomentsArgs& args, long long channel, f64 mean, f64 m2) {
    if (channel == 0) args.message[0] = args.count;
    args.own[channel] = mean;
    args.own[args.tile.channels + channel] = m2;
    if (args.with_parts) write_parts(args.message, args.tile.channels, channel, args.count, mean, m2);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    moments(const __grid_constant__ MomentsArgs args PEERS_PARAMETER) {
    let_next_kernel_start();
#if PEERS
    Sender sender(peers);
    sender.send_header(peers, args.count);
#endif
    const Tile& tile = args.tile;
    Place place(tile, blockIdx.x);
    Share share(tile, place);
    Walk<false> walk(tile, place);
    Policy policy = keep();
    f64 origin = share.inside && args.count > 0 ? element_at(args.x, share.channel * tile.inner) : 0;
    Pair total = {0, 0};
#if COLUMNS
    for_tail(tile, place, share, [&](long long index) {
        f64 d = (f64)element_at(args.x, index) - origin;
        total.add({d, d * d});
    });
    __shared__ Left<Math> shifts, squares;
    __shared__ Left<Sum> sums;
#pragma unroll 1
    for (int done = 0; done <= tile.whole; done += CHAIN_VECTORS) {
        Chain chain;
        chain.take(args.x, walk, policy);
        if (done > 0) __syncthreads();
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            shifts.mine(w) = chain.shift[w];
            sums.mine(w) = chain.sum[w];
            squares.mine(w) = chain.squares[w];
        }
        __syncthreads();
        f64 usual = min(tile.whole - done, CHAIN_VECTORS), one_more = min(tile.whole + 1 - done, CHAIN_VECTORS);
        for_share(tile, share, [&](int at, int member) {
            f64 count = place.vectors(tile, member) > tile.whole ? one_more : usual;
            move(total, origin, count, shifts.value[at], sums.value[at], squares.value[at]);
        });
    }
#else
    while (walk.left > 0) {
        Chain chain;
        chain.take(args.x, walk, policy);
        f64 sum = chain.sum[0], squares = chain.squares[0];
        if (PARTS > 1) {
            sum += chain.sum[PARTS - 1];
            squares += chain.squares[PARTS - 1];
        }
        move(total, origin, (f64)chain.vectors * DEPTH, chain.shift[0], sum, squares);
    }
#endif
    sum_block(tile, place, share, total);
    if (!sum_splits(tile, place, share, args.partials, args.tickets, total)) return;
    auto [mean, m2] = moments_of(args, origin, total);
#if PEERS
    sender.send(peers, share.channel, mean, m2);
#else
    write(args, share.channel, mean, m2);
#endif
}
