// dx = weight invstd (dy - sum_dy/M - (x - mean) invstd^2 sum_dy_xmu/M); with frozen statistics dx = weight invstd dy.
// dx may lie over dy: each element is read and then written by one thread.
//
// It may start before the kernel that makes the message has ended: until it has waited, it only reads x and dy.

struct GradInputArgs {
    Tile tile;
    const void* x;
    const void* dy;
    void* dx;
    const f64* saved;
    const f64* message; // null: frozen statistics
    const Param* weight; // null: 1
};
static_assert(sizeof(GradInputArgs) == ARGS_BYTES, "grad_input.rs has another struct");

// dx = dy scale + (x - mean) slope + shift of some channels, where mean is rounded to Math and shift makes up for it.
struct Affine {
    Math mean[MOST_PACK], scale[MOST_PACK], slope[MOST_PACK], shift[MOST_PACK];

    __device__ void fill(const GradInputArgs& args, const Place& place) {
        long long first = place.first_channel(args.tile);
        for (int c = threadIdx.x; c < args.tile.pack && first + c < args.tile.channels; c += blockDim.x) {
            f64 exact = args.saved[first + c];
            f64 invstd = args.saved[args.tile.channels + first + c];
            f64 count = args.saved[2 * args.tile.channels];
            f64 factor = args.weight ? args.weight[first + c] * invstd : invstd;
            f64 offset = 0, tilt = 0;
            if (args.message && count > 0) {
                offset = -factor * (args.message[first + c] / count);
                tilt = -factor * invstd * invstd * (args.message[args.tile.channels + first + c] / count);
            }
            mean[c] = (Math)exact;
            scale[c] = (Math)factor;
            slope[c] = (Math)tilt;
            shift[c] = (Math)(offset - (exact - (f64)mean[c]) * tilt);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) grad_input(const __grid_constant__ GradInputArgs args) {
    const Tile& tile = args.tile;
    Place place(tile, gridDim.x - 1 - blockIdx.x);
    Walk<true> walk(tile, place);
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
    int taken = load_next();

    wait_for_previous_kernel();
    __shared__ Affine affine;
    affine.fill(args, place);
    __syncthreads();
    Math mean[WIDTH], scale[WIDTH], slope[WIDTH], shift[WIDTH];
#pragma unroll
    for (int w = 0; w < WIDTH; w++) {
        int c = place.local_channel(tile, w);
        mean[w] = affine.mean[c];
        scale[w] = affine.scale[c];
        slope[w] = affine.slope[c];
        shift[w] = affine.shift[c];
    }
    for (; taken > 0; taken = load_next()) {
        for_taken(taken, [&](int u) {
            Math dx[VEC];
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                int w = COLUMNS ? j : 0;
                Math rest = frozen ? 0 : (widen(x[u].element[j]) - mean[w]) * slope[w] + shift[w];
                dx[j] = widen(dy[u].element[j]) * scale[w] + rest;
            }
            narrow(dx, dy[u]);
            store((Raw*)args.dx + indices[u], dy[u].raw, policy);
        });
    }
    if (place.split > 0) return;
#pragma unroll 1
    for (unsigned e = threadIdx.x; e < tile.tail; e += blockDim.x) {
        int c = e % (unsigned)tile.pack;
        long long index = tile.runs * tile.slots * VEC + e;
        Math rest = frozen ? 0 : (element_at(args.x, index) - affine.mean[c]) * affine.slope[c] + affine.shift[c];
        narrow(element_at(args.dy, index) * affine.scale[c] + rest, ((Element*)args.dx)[index]);
    }
}
