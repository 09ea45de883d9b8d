// Per channel: count, mean and M2 of this rank's x, as the forward message [m | m mean | M2 + m mean^2] and M2 alone.
//
// Chains of at most 64 elements, shifted by their first, are summed in Math; chains, threads, and blocks are merged in f64.

#define CHAIN 64

struct MomentsArgs {
    Tile tile;
    const void* x;
    f64* message;
    f64* m2;
    f64* partials;
    unsigned* tickets;
    f64 count;
};

// The moments of WIDTH channels that have equally many elements.
struct Moments {
    f64 count;
    f64 mean[WIDTH];
    f64 m2[WIDTH];

    __device__ Moments() : count(0) {
#pragma unroll
        for (int w = 0; w < WIDTH; w++) mean[w] = m2[w] = 0;
    }

    // Chan, Golub and LeVeque 1983.
    __device__ void merge(f64 n, const f64 (&other_mean)[WIDTH], const f64 (&other_m2)[WIDTH]) {
        if (n == 0) return;
        f64 total = count + n;
        f64 share = n / total;
        f64 weight = count * share;
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            f64 delta = other_mean[w] - mean[w];
            if (count == 0) {
                mean[w] = other_mean[w];
                m2[w] = other_m2[w];
            } else {
                mean[w] += delta * share;
                m2[w] += other_m2[w] + delta * delta * weight;
            }
        }
        count = total;
    }

    // Those of all members together: M2 about the common mean.
    __device__ void merge_members(const Place& place, int members) {
        f64 sums[WIDTH + 1];
        sums[WIDTH] = count;
#pragma unroll
        for (int w = 0; w < WIDTH; w++) sums[w] = count * mean[w];
        sum_over_members(sums, place, members);
        f64 total = sums[WIDTH];
        f64 squares[WIDTH];
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            f64 common = total == 0 ? 0 : sums[w] / total;
            f64 delta = mean[w] - common;
            squares[w] = count == 0 ? 0 : m2[w] + count * delta * delta;
            mean[w] = common;
        }
        sum_over_members(squares, place, members);
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            // What the common mean's rounding makes of a constant channel, whose M2 is 0; false for NaN.
            bool rounding = squares[w] <= total * mean[w] * mean[w] * 0x1p-100;
            m2[w] = rounding ? 0 : squares[w];
        }
        count = total;
    }
};

// A few elements of each channel, about the first of them.
struct Chain {
    int count;
    Math shift[WIDTH], sum[WIDTH], squares[WIDTH];

    __device__ Chain() : count(0) {}

    __device__ void add(const Vector& x) {
        if (count == 0) {
#pragma unroll
            for (int w = 0; w < WIDTH; w++) {
                shift[w] = widen(x.element[w]);
                sum[w] = squares[w] = 0;
            }
        }
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            Math d = widen(x.element[j]) - shift[w];
            sum[w] += d;
            squares[w] += d * d;
        }
        count += DEPTH;
    }

    __device__ void empty_into(Moments& moments) {
        if (count == 0) return;
        f64 inverse = 1.0 / count;
        f64 mean[WIDTH], m2[WIDTH];
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            f64 s = sum[w];
            mean[w] = (f64)shift[w] + s * inverse;
            f64 rest = (f64)squares[w] - s * s * inverse;
            m2[w] = rest < 0 ? 0 : rest; // NaN stays
        }
        moments.merge(count, mean, m2);
        count = 0;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) moments(const __grid_constant__ MomentsArgs args) {
    const Tile& tile = args.tile;
    Place place(tile, blockIdx.x);
    Moments moments;
    Chain chain;
    Walk<false> walk(tile, place);
    while (walk.more()) {
        long long indices[UNROLL];
        Vector x[UNROLL];
        int taken = walk.take(indices);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u < taken) x[u].raw = load_constant(args.x, indices[u]);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u < taken) chain.add(x[u]);
        }
        if (chain.count + UNROLL * DEPTH > CHAIN) chain.empty_into(moments);
    }
    chain.empty_into(moments);
    moments.merge_members(place, tile.members);

    long long channel = place.channel();
    bool writes = place.member == 0 && place.lane < tile.lanes;
    if (tile.splits > 1) {
        if (writes) {
#pragma unroll
            for (int w = 0; w < WIDTH; w++) {
                *partial(args.partials, tile, 0, place.split, channel + w) = moments.mean[w];
                *partial(args.partials, tile, 1, place.split, channel + w) = moments.m2[w];
                *partial(args.partials, tile, 2, place.split, channel + w) = moments.count;
            }
        }
        if (!is_last_split(args.tickets, place, tile.splits)) return;
        moments = Moments();
        for (int split = place.member; split < tile.splits && place.lane < tile.lanes; split += tile.members) {
            f64 mean[WIDTH], m2[WIDTH];
#pragma unroll
            for (int w = 0; w < WIDTH; w++) {
                mean[w] = __ldcg(partial(args.partials, tile, 0, split, channel + w));
                m2[w] = __ldcg(partial(args.partials, tile, 1, split, channel + w));
            }
            moments.merge(__ldcg(partial(args.partials, tile, 2, split, channel)), mean, m2);
        }
        moments.merge_members(place, tile.members);
    }
    if (!writes) return;
    if (channel == 0) args.message[0] = args.count;
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        f64 sum = args.count * moments.mean[w];
        args.message[1 + channel + w] = sum;
        args.message[1 + tile.channels + channel + w] = fma(sum, moments.mean[w], moments.m2[w]);
        args.m2[channel + w] = moments.m2[w];
    }
}
