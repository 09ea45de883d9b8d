// Sums over the threads and blocks that share a lane. No float atomics: the order is fixed, so every run gives the same bits.

// Replaces each value by its sum over the lane's members; all of them get it. Every thread of the block has to call it.
template <int N> __device__ void sum_over_members(f64 (&value)[N], const Place& place, int members) {
#if COLUMNS
    __shared__ f64 shared[N][THREADS];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) shared[n][threadIdx.x] = value[n];
    for (int half = members / 2; half > 0; half /= 2) {
        __syncthreads();
        if (place.member < half) {
#pragma unroll
            for (int n = 0; n < N; n++) shared[n][threadIdx.x] += shared[n][threadIdx.x + half * place.slots];
        }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) value[n] = shared[n][place.slot];
#else
    // At least a warp to a lane: first the warp, then its warps in order.
    __shared__ f64 shared[N][THREADS / 32];
#pragma unroll
    for (int n = 0; n < N; n++) {
        for (int half = 16; half > 0; half /= 2) value[n] += __shfl_xor_sync(0xffffffffu, value[n], half);
    }
    int warps = members / 32;
    if (warps == 1) return;
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int n = 0; n < N; n++) shared[n][threadIdx.x / 32] = value[n];
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) {
        f64 sum = 0;
        for (int w = 0; w < warps; w++) sum += shared[n][place.slot * warps + w];
        value[n] = sum;
    }
#endif
}

// Whether this block is the last of its group's splits to come here; if so it sees what all of them have written. The
// ticket wraps to 0, ready for the next kernel.
__device__ bool is_last_split(unsigned* tickets, const Place& place, int splits) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(&tickets[place.group], splits - 1) == (unsigned)(splits - 1);
    __syncthreads();
    __threadfence();
    return last;
}

// Where split `split` leaves its number `which` for `channel`.
__device__ inline f64* partial(f64* partials, const Tile& tile, int which, int split, long long channel) {
    return partials + ((long long)which * tile.splits + split) * tile.channels + channel;
}
