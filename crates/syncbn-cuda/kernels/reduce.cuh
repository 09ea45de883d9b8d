// Two sums for each channel, over all threads and blocks that have elements of it. There are no atomics on floats: the order of additions
// is fixed, so every run gives the same bits.
//
// Columns: the threads store the sums of each chain in shared memory; then `reducers_per_channel` threads, neighbours in a warp, add
// up those of one channel. Rows: each thread adds up its own chains, and a channel has at least a warp.

struct Pair {
    f64 first, second;
    __device__ void add(const Pair& other) {
        first += other.first;
        second += other.second;
    }
};

// Which channel a thread adds up, and as which of the `count` threads that do. The first of them, the owner, writes the result.
struct Reducer {
    int local_channel, index, count;
    long long channel;
    bool inside, owner;

    __device__ Reducer(const WalkParams& walk, const Position& position) {
#if COLUMNS
        count = walk.reducers_per_channel;
        local_channel = threadIdx.x / (unsigned)count;
        index = threadIdx.x - local_channel * count;
        bool is_reducer = local_channel < walk.channels_per_block;
#else
        count = 32;
        local_channel = position.lane_of_block;
        index = position.thread_of_lane;
        bool is_reducer = true;
#endif
        channel = position.first_channel(walk) + local_channel;
        inside = is_reducer && channel < walk.channels;
        owner = inside && index == 0;
    }

    // The sum over the reducers of a channel that are in one warp; all of them get it. Every thread of the warp has to call this.
    __device__ void sum(Pair& pair) const {
#pragma unroll 1
        for (int half = count / 2; half > 0; half /= 2) {
            pair.first += __shfl_xor_sync(0xffffffffu, pair.first, half);
            pair.second += __shfl_xor_sync(0xffffffffu, pair.second, half);
        }
    }
};

// The sums over the block; the owner gets them. Every thread of the block has to call this.
__device__ inline void sum_over_threads(const WalkParams& walk, const Position& position, const Reducer& reducer, Pair& pair) {
    reducer.sum(pair);
#if !COLUMNS
    int warps = walk.threads_per_lane / 32;
    if (warps == 1) return;
    __shared__ Pair exchange[THREADS / 32];
    if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = pair;
    __syncthreads();
    pair = {0, 0};
    if (threadIdx.x % 32 < warps) pair = exchange[position.lane_of_block * warps + threadIdx.x % 32];
    reducer.sum(pair);
#endif
}

// Counts up to `most` and then starts from 0 again; returns the count before. What a block wrote before its call is visible to blocks
// after theirs.
__device__ inline unsigned take_ticket(unsigned* ticket, unsigned most) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(ticket), "r"(most) : "memory");
    return before;
}

// The sums over all blocks of a channel: the last of them to come here adds up the partial sums of all. Returns whether this thread is
// the channel's owner in that block, which writes the result. The ticket is 0 again afterwards, ready for the next kernel.
__device__ inline bool sum_over_blocks(
    const WalkParams& walk, const Position& position, const Reducer& reducer, double2* partials, unsigned* tickets,
    Pair& pair
) {
    if (walk.blocks_per_channel == 1) return reducer.owner;
    __shared__ bool last;
    if (reducer.owner) {
        partials[position.block_of_channel * walk.channels + reducer.channel] = make_double2(pair.first, pair.second);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        last = take_ticket(&tickets[position.group], walk.blocks_per_channel - 1) == walk.blocks_per_channel - 1;
    }
    __syncthreads();
    if (!last) return false;
    pair = {0, 0};
    if (reducer.inside && reducer.index < reducer.count) {
        // As many loads in flight as there are registers for: one after the other, their latencies would dominate the kernel's time.
        const int batch = !COLUMNS ? 2 : BLOCKS > 1 ? 8 : 16;
#pragma unroll 1
        for (int first = reducer.index; first < walk.blocks_per_channel; first += batch * reducer.count) {
            double2 other[batch];
#pragma unroll
            for (int b = 0; b < batch; b++) {
                int block_of_channel = first + b * reducer.count;
                if (block_of_channel < walk.blocks_per_channel) {
                    other[b] = __ldcg(partials + block_of_channel * walk.channels + reducer.channel);
                }
            }
#pragma unroll
            for (int b = 0; b < batch; b++) {
                if (first + b * reducer.count < walk.blocks_per_channel) pair.add({other[b].x, other[b].y});
            }
        }
    }
    reducer.sum(pair);
    return reducer.owner;
}

#if COLUMNS

// One value for each thread and column of its vector, in shared memory. The values of one column are contiguous; those of the next begin
// one bank further, so that neither storing nor adding them up has bank conflicts.
template <class T> struct PerColumn {
    T value[(THREADS + 1) * VEC];

    __device__ T& mine(int w) { return value[w * (THREADS + 1) + threadIdx.x]; }
    __device__ static int at(const WalkParams& walk, int thread_of_lane, int column) {
        return column % VEC * (THREADS + 1) + thread_of_lane * walk.lanes_per_block + column / VEC;
    }
};

// Calls `item(entry, thread_of_lane)` for this reducer's part of its channel's entries: the columns of one thread, then those of the next.
template <class Item> __device__ inline void for_entries(const WalkParams& walk, const Reducer& reducer, Item item) {
    if (!reducer.inside) return;
    int columns = walk.lanes_per_block * VEC / (unsigned)walk.channels_per_block;
    int first = walk.inner > 1 ? reducer.local_channel * walk.inner : reducer.local_channel;
    int stride = walk.inner > 1 ? 1 : walk.channels_per_block;
    int thread_of_lane = reducer.index / (unsigned)columns;
    int column = reducer.index - thread_of_lane * columns;
    int thread_step = reducer.count / (unsigned)columns, column_step = reducer.count - thread_step * columns;
#pragma unroll 4
    while (thread_of_lane < walk.threads_per_lane) {
        item(PerColumn<int>::at(walk, thread_of_lane, first + column * stride), thread_of_lane);
        thread_of_lane += thread_step;
        column += column_step;
        if (column >= columns) {
            column -= columns;
            thread_of_lane++;
        }
    }
}

// Calls `item(index)` for this reducer's part of its channel's elements after the last whole row. The channel's first block has them.
template <class Item>
__device__ inline void for_tail(const WalkParams& walk, const Position& position, const Reducer& reducer, Item item) {
    if (position.block_of_channel > 0 || !reducer.inside) return;
#pragma unroll 1
    for (int e = reducer.local_channel + reducer.index * walk.channels_per_block; e < walk.tail;
         e += reducer.count * walk.channels_per_block) {
        item(walk.runs * walk.lanes_per_block * VEC + e);
    }
}

#endif
