// Two sums per channel over the threads and blocks that share it. No float atomics: the order is fixed, so every run gives the
// same bits.
//
// Columns: the threads leave the sums of each chain in shared memory; then `shares` threads, neighbours in a warp, add up
// one channel's. Rows: a thread adds up its own chains; a channel has at least a warp.

struct Pair {
    f64 first, second;
    __device__ void add(const Pair& other) {
        first += other.first;
        second += other.second;
    }
};

// Which channel a thread adds up, and as which of its sharers. The first of them is its owner.
struct Share {
    int local, number, of;
    long long channel;
    bool inside, owner;

    __device__ Share(const Tile& tile, const Place& place) {
#if COLUMNS
        of = tile.shares;
        local = threadIdx.x / (unsigned)of;
        number = threadIdx.x - local * of;
        bool is = local < tile.pack;
#else
        of = 32;
        local = place.slot;
        number = place.member;
        bool is = true;
#endif
        channel = place.first_channel(tile) + local;
        inside = is && channel < tile.channels;
        owner = inside && number == 0;
    }

    // The sum over sharers in one warp; all of them get it. Every thread of the warp has to call it.
    __device__ void sum(Pair& pair) const {
#pragma unroll 1
        for (int half = of / 2; half > 0; half /= 2) {
            pair.first += __shfl_xor_sync(0xffffffffu, pair.first, half);
            pair.second += __shfl_xor_sync(0xffffffffu, pair.second, half);
        }
    }
};

// The block's sums; the owner gets them. Every thread of the block has to call it.
__device__ inline void sum_block(const Tile& tile, const Place& place, const Share& share, Pair& pair) {
    share.sum(pair);
#if !COLUMNS
    int warps = tile.members / 32;
    if (warps == 1) return;
    __shared__ Pair exchange[THREADS / 32];
    if (threadIdx.x % 32 == 0) exchange[threadIdx.x / 32] = pair;
    __syncthreads();
    pair = {0, 0};
    if (threadIdx.x % 32 < warps) pair = exchange[place.slot * warps + threadIdx.x % 32];
    share.sum(pair);
#endif
}

// Counts up to `most` and then from 0 again; returns what was there before. What the block wrote before it comes here is seen
// by the block that comes after it.
__device__ inline unsigned take_ticket(unsigned* ticket, unsigned most) {
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(ticket), "r"(most) : "memory");
    return before;
}

// The sums over all splits: the last block of a group to come here adds up what all have left. Whether this thread is a
// channel's owner, and is to write them. The ticket wraps to 0, ready for the next kernel.
__device__ inline bool sum_splits(
    const Tile& tile, const Place& place, const Share& share, double2* partials, unsigned* tickets, Pair& pair
) {
    if (tile.splits == 1) return share.owner;
    __shared__ bool last;
    if (share.owner) {
        partials[place.split * tile.channels + share.channel] = make_double2(pair.first, pair.second);
    }
    __syncthreads();
    if (threadIdx.x == 0) last = take_ticket(&tickets[place.group], tile.splits - 1) == tile.splits - 1;
    __syncthreads();
    if (!last) return false;
    pair = {0, 0};
    if (share.inside && share.number < share.of) {
        // Many loads at once: one after the other, their latencies would be what the kernel takes. As many as find registers.
        const int batch = !COLUMNS ? 2 : BLOCKS > 1 ? 8 : 16;
#pragma unroll 1
        for (int first = share.number; first < tile.splits; first += batch * share.of) {
            double2 other[batch];
#pragma unroll
            for (int b = 0; b < batch; b++) {
                int split = first + b * share.of;
                if (split < tile.splits) other[b] = __ldcg(partials + split * tile.channels + share.channel);
            }
#pragma unroll
            for (int b = 0; b < batch; b++) {
                if (first + b * share.of < tile.splits) pair.add({other[b].x, other[b].y});
            }
        }
    }
    share.sum(pair);
    return share.owner;
}

#if COLUMNS

// What the threads leave of one chain, one after the other for each w; one number apart, so that neither those who leave it nor
// those who add it up meet in a bank.
template <class T> struct Left {
    T value[(THREADS + 1) * VEC];

    __device__ T& mine(int w) { return value[w * (THREADS + 1) + threadIdx.x]; }
    __device__ static int at(const Tile& tile, int member, int column) {
        return column % VEC * (THREADS + 1) + member * tile.slots + column / VEC;
    }
};

// Calls `item(at, member)` for this thread's share of what was left for its channel: of a member's columns in turn, then of
// the next member's.
template <class Item> __device__ inline void for_share(const Tile& tile, const Share& share, Item item) {
    if (!share.inside) return;
    int columns = tile.slots * VEC / (unsigned)tile.pack;
    int first = tile.inner > 1 ? share.local * tile.inner : share.local, stride = tile.inner > 1 ? 1 : tile.pack;
    int member = share.number / (unsigned)columns, column = share.number - member * columns;
    int member_step = share.of / (unsigned)columns, column_step = share.of - member_step * columns;
#pragma unroll 4
    while (member < tile.members) {
        item(Left<int>::at(tile, member, first + column * stride), member);
        member += member_step;
        column += column_step;
        if (column >= columns) {
            column -= columns;
            member++;
        }
    }
}

// Calls `item(index)` for this thread's share of its channel's elements after the last whole row; the first split has them.
template <class Item> __device__ inline void for_tail(const Tile& tile, const Place& place, const Share& share, Item item) {
    if (place.split > 0 || !share.inside) return;
#pragma unroll 1
    for (int e = share.local + share.number * tile.pack; e < tile.tail; e += share.of * tile.pack) {
        item(tile.runs * tile.slots * VEC + e);
    }
}

#endif
