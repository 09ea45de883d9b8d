// Which thread takes which elements. src/plan.rs computes WalkParams (src/raw/params.rs).
//
// The unit of work is a vector of VEC elements. A lane is a sequence of vectors that are added to the same accumulators.
// - Rows (COLUMNS is 0): a lane is a channel. It consists of `runs` runs of `segment` neighbouring vectors.
// - Columns (COLUMNS is 1): the tensor is a matrix of `runs` rows of `lanes` vectors. A lane is one column of vectors, and each
//   element of its vectors has accumulators of its own. The segment is 1.
// Vector number l of a lane lies at ((l / segment) * lanes + lane) * segment + l % segment.
//
// A block has `lanes_per_block` lanes, which are `channels_per_block` channels; `threads_per_lane` threads share a lane. If that
// is not enough to fill the device, `blocks_per_channel` blocks have the same lanes.

// Columns of a vector with accumulators and coefficients of their own, and elements of a vector in each of them.
#if COLUMNS
#define VECTOR_COLUMNS VEC
#else
#define VECTOR_COLUMNS 1
#endif
#define ELEMENTS_PER_COLUMN (VEC / VECTOR_COLUMNS)

// Where a thread is in the walk.
struct Position {
    int thread_of_lane, lane_of_block, block_of_channel;
    long long group, lane;
    bool inside;

    // `block` counts from the first block that walks the tensor.
    __device__ Position(const WalkParams& walk, unsigned block) {
        unsigned thread = threadIdx.x;
#if COLUMNS
        thread_of_lane = thread / (unsigned)walk.lanes_per_block;
        lane_of_block = thread - thread_of_lane * walk.lanes_per_block;
#else
        lane_of_block = thread / (unsigned)walk.threads_per_lane;
        thread_of_lane = thread - lane_of_block * walk.threads_per_lane;
#endif
        unsigned groups_before = block / (unsigned)walk.blocks_per_channel;
        group = groups_before;
        block_of_channel = block - groups_before * walk.blocks_per_channel;
        lane = group * walk.lanes_per_block + lane_of_block;
        inside = lane < walk.lanes && thread_of_lane < walk.threads_per_lane;
    }

    __device__ long long first_channel(const WalkParams& walk) const { return group * walk.channels_per_block; }

    // How many vectors a thread of a lane of this block has.
    __device__ int vectors(const WalkParams& walk, int of_thread) const {
        return walk.vectors_per_thread + (block_of_channel * walk.threads_per_lane + of_thread < walk.threads_with_one_more ? 1 : 0);
    }

    // Which of the block's channels column w of this thread's vectors belongs to.
    __device__ int local_channel(const WalkParams& walk, int w) const {
#if COLUMNS
        unsigned column = lane_of_block * VEC + w;
        if (walk.inner > 1) return column / (unsigned)walk.inner;
        return walk.lanes_per_block * VEC == walk.channels_per_block ? column : column % (unsigned)walk.channels_per_block;
#else
        return lane_of_block;
#endif
    }
    __device__ long long channel(const WalkParams& walk, int w) const { return first_channel(walk) + local_channel(walk, w); }
};

// A thread's vectors, one after the other. Backwards, the first are those that the previous kernel read last, which are still in
// the cache.
template <bool BACKWARDS> struct Cursor {
    const WalkParams& walk;
    long long index;
    long long within;
    int left;

    __device__ Cursor(const WalkParams& walk_, const Position& position) : walk(walk_) {
        unsigned at = position.block_of_channel * walk.threads_per_lane + position.thread_of_lane;
        left = position.inside ? position.vectors(walk, position.thread_of_lane) : 0;
#if COLUMNS
        long long row = BACKWARDS ? walk.runs - 1 - at : at;
        index = row * walk.lanes + position.lane;
        within = 0;
#else
        bool short_runs = walk.segment <= at;
        unsigned before = short_runs ? at / (unsigned)walk.segment : 0;
        within = at - before * (unsigned)walk.segment;
        long long run = BACKWARDS ? walk.runs - 1 - before : before;
        index = (run * walk.lanes + position.lane) * walk.segment + (BACKWARDS ? walk.segment - 1 - within : within);
#endif
    }

    // The next UNROLL vectors, at most; returns how many.
    __device__ int take(long long (&indices)[UNROLL]) {
        int taken = left < UNROLL ? left : UNROLL;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) indices[u] = next();
        left += UNROLL - taken;
        return taken;
    }

    // The next vector.
    __device__ long long next() {
        long long now = index;
        left--;
        long long step = walk.step_index;
#if !COLUMNS
        within += walk.step_within;
        if (within >= walk.segment) {
            within -= walk.segment;
            step += walk.run_gap;
        }
#endif
        index += BACKWARDS ? -step : step;
        return now;
    }
};

// What a thread has read before it waits for the previous kernel, or all that it reads, in shared memory: `rounds` rounds of UNROLL
// vectors. A thread reads only what it has written itself, so no barrier is needed. The host asks for the dynamic shared memory of all
// tensors.
struct Prefetch {
    int rounds;
    Raw* mine;

    __device__ Prefetch(int rounds_, int tensor) : rounds(rounds_) {
        extern __shared__ __align__(16) unsigned char prefetch_memory[];
        mine = (Raw*)prefetch_memory + tensor * rounds * UNROLL * blockDim.x + threadIdx.x;
    }
    __device__ Raw& at(int vector) const { return mine[vector * blockDim.x]; }
};

// Numbers of the channels of a block, in shared memory. Entries are ordered so that the threads of a warp, which read the numbers of
// 32 neighbouring channels or of every VEC-th one, use different banks.
struct ChannelTable {
    static const int STRIDE = MOST_CHANNELS_PER_BLOCK / VEC + 32 / VEC, SIZE = STRIDE * VEC;

    __device__ static int at(int local_channel) { return local_channel % VEC * STRIDE + local_channel / VEC; }

    // The entries for the columns of a thread's vectors.
    __device__ static void find(const WalkParams& walk, const Position& position, int (&entries)[VECTOR_COLUMNS]) {
#pragma unroll
        for (int w = 0; w < VECTOR_COLUMNS; w++) entries[w] = at(position.local_channel(walk, w));
    }

    // Calls `make(entry, channel)` for each channel of the block. A channel has the same thread in every call.
    template <class Make> __device__ static void for_channels(const WalkParams& walk, const Position& position, Make make) {
        long long first = position.first_channel(walk);
        for (int c = threadIdx.x; c < walk.channels_per_block && first + c < walk.channels; c += blockDim.x) make(at(c), first + c);
    }
};

// Calls `use(u)` for each u < taken. A complete round has no branches.
template <class Use> __device__ inline void for_taken(int taken, Use use) {
    if (taken == UNROLL) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) use(u);
    } else {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (u < taken) use(u);
        }
    }
}

// Programmatic dependent launch: from here on the next kernel of the stream may start, if it was launched with that attribute.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Waits until the previous kernel has ended and its writes are visible. Before that only memory which the previous kernel does not
// write may be read: tensors, parameters, and the running and saved statistics of earlier passes.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
