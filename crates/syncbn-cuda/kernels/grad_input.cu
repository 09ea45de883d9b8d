// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M); with frozen statistics dx = weight invstd dy.
// dx may lie over dy: each element is read and then written by one thread.
//
// It may start before the kernel that makes the message has ended: until it has waited, it only reads what was there before
// that kernel began, x and dy above all: as much of them as there is room for on the multiprocessor.
//
// Where the ranks meet inside it, the first block of the grid walks no tensor: it compares the ranks' calls.

struct GradInputArgs {
    Tile tile;
    const void* x;
    const void* dy;
    void* dx;
    const f64* saved;
    const f64* message; // null: frozen statistics
    const Param* weight; // null: 1
    int ahead;           // turns that a thread reads before it waits
};
static_assert(sizeof(GradInputArgs) == ARGS_BYTES, "grad_input.rs has another struct");

// dx = dy scale + (x - mean) slope + shift of some channels, where mean is rounded to Math and shift makes up for it.
struct Affine : Banks {
    Math mean[SIZE], scale[SIZE], slope[SIZE], shift[SIZE];
    f64 exact_mean[SIZE], per_dy[SIZE], per_dy_xmu[SIZE]; // what a sum counts for

    // What does not hang on the sums may be read while the kernel before still runs.
    __device__ void begin(const GradInputArgs& args, const Place& place) {
        const f64 *saved_mean = args.saved, *saved_invstd = args.saved + 2 * args.tile.channels;
        for_channels(args.tile, place, [&](int at, long long channel) {
            f64 count = args.saved[3 * args.tile.channels], invstd = saved_invstd[channel];
            f64 factor = args.weight ? args.weight[channel] * invstd : invstd;
            exact_mean[at] = saved_mean[channel];
            mean[at] = (Math)exact_mean[at];
            scale[at] = (Math)factor;
            per_dy[at] = count > 0 ? -factor / count : 0;
            per_dy_xmu[at] = per_dy[at] * invstd * invstd;
        });
    }

    // By the same threads.
    template <class Sums> __device__ void finish(const GradInputArgs& args, const Place& place, Sums sums) {
        for_channels(args.tile, place, [&](int at, long long channel) {
            auto [sum_dy, sum_dy_xmu] = sums(channel);
            f64 tilt = per_dy_xmu[at] * sum_dy_xmu;
            slope[at] = (Math)tilt;
            shift[at] = (Math)(per_dy[at] * sum_dy - (exact_mean[at] - (f64)mean[at]) * tilt);
        });
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    grad_input(const __grid_constant__ GradInputArgs args PEERS_PARAMETER) {
#if PEERS
    if (blockIdx.x == 0) {
        wait_for_previous_kernel();
        return meet_ranks(peers);
    }
#endif
    const Tile& tile = args.tile;
    Place place(tile, gridDim.x - 1 - blockIdx.x);
    Walk<true> walk(tile, place), behind(tile, place);
    Ahead ahead_dy(args.ahead, 0), ahead_x(args.ahead, 1);
    bool frozen = args.message == nullptr;
    Policy policy = forget();
    long long indices[UNROLL];
    Vector x[UNROLL], dy[UNROLL];
    auto load_next = [&] {
        int taken = walk.take(indices);
        for_taken(taken, [&](int u) {
            dy[u].raw = load((const Raw*)args.dy + indices[u], policy);
            if (!frozen) x[u].raw = load_constant((const Raw*)args.x + indices[u], policy);
        });
        return taken;
    };
#pragma unroll 1
    for (int turn = 0; turn < args.ahead; turn++) {
        for_taken(load_next(), [&](int u) {
            ahead_dy.at(turn * UNROLL + u) = dy[u].raw;
            ahead_x.at(turn * UNROLL + u) = x[u].raw;
        });
    }
    int taken = load_next();
    __shared__ Affine affine;
    affine.begin(args, place);
    int at[WIDTH];
    affine.find(tile, place, at);

    wait_for_previous_kernel();
#if PEERS
    Receiver receiver(peers);
    affine.finish(args, place, [&](long long channel) {
        Pair sums = {0, 0};
        receiver.for_ranks<false>(peers, channel, [&](int rank, f64 first, f64 second, f64) {
            sums = rank == 0 ? Pair{first, second} : Pair{sums.first + first, sums.second + second};
        });
        return sums;
    });
#else
    affine.finish(args, place, [&](long long channel) {
        if (frozen) return Pair{0, 0};
        return Pair{args.message[channel], args.message[tile.channels + channel]};
    });
#endif
    __syncthreads();
    Math mean[WIDTH], scale[WIDTH], slope[WIDTH], shift[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        mean[w] = affine.mean[at[w]];
        scale[w] = affine.scale[at[w]];
        slope[w] = affine.slope[at[w]];
        shift[w] = affine.shift[at[w]];
    }
    auto write = [&](const Vector& x, Vector& dy, long long index) {
        Math dx[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            int w = COLUMNS ? j : 0;
            Math rest = frozen ? 0 : (widen(x.element[j]) - mean[w]) * slope[w] + shift[w];
            dx[j] = widen(dy.element[j]) * scale[w] + rest;
        }
        narrow(dx, dy);
        store((Raw*)args.dx + index, dy.raw, policy);
    };
#pragma unroll 2
    for (int vector = 0; vector < args.ahead * UNROLL && behind.left > 0; vector++) {
        Vector x, dy;
        dy.raw = ahead_dy.at(vector);
        x.raw = ahead_x.at(vector);
        write(x, dy, behind.next());
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) { write(x[u], dy[u], indices[u]); });
    }
#pragma unroll 1
    for (unsigned e = place.split * blockDim.x + threadIdx.x; e < tile.tail; e += tile.splits * blockDim.x) {
        int c = affine.at(e % (unsigned)tile.pack);
        long long index = tile.runs * tile.slots * VEC + e;
        Math rest = frozen ? 0 : (element_at(args.x, index) - affine.mean[c]) * affine.slope[c] + affine.shift[c];
        narrow(element_at(args.dy, index) * affine.scale[c] + rest, ((Element*)args.dx)[index]);
    }
}
