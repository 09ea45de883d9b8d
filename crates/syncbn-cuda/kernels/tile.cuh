// Which thread takes which elements. tile.rs fills the struct in and explains it; the two have to agree byte for byte.
//
// A lane is a sequence of vectors that the same accumulators take. Rows: a lane is a channel, its vectors lie in runs
// of `segment`. Columns: the tensor is a matrix of `vectors` rows by `lanes` vectors, a lane is one column of vectors, and
// each of a vector's elements has accumulators of its own. Vector number l of a lane lies at
// ((l / segment) * lanes + lane) * segment + l % segment, with segments of 1 for columns.
//
// A block has `slots` lanes, which make up `pack` channels; `members` threads share a lane, and so do `splits` blocks.

// Accumulators per lane, and elements that each of them gets from one vector.
#if COLUMNS
#define WIDTH VEC
#else
#define WIDTH 1
#endif
#define DEPTH (VEC / WIDTH)

struct Tile {
    long long channels;
    long long lanes;
    long long segment;
    long long runs;       // of a lane: vectors / segment
    long long step_index; // the next vector of the same thread, if it is in the same run
    long long wrap;       // what is added if it is not
    long long tail;       // elements after the last whole row of columns
    int step_within;
    int whole; // vectors of every thread
    int rest;  // threads of a lane, over all splits, that have one more
    int inner; // columns: neighbouring elements of one channel
    int slots;
    int members;
    int splits;
    int pack;
    int shares; // columns: threads that add up one channel
};
static_assert(sizeof(Tile) == TILE_BYTES, "tile.rs has another struct");

struct Place {
    int member, slot, split;
    long long group, lane;
    bool inside;

    // `block` counts from the first block that walks the tensor.
    __device__ Place(const Tile& tile, unsigned block) {
        unsigned thread = threadIdx.x;
#if COLUMNS
        member = thread / (unsigned)tile.slots;
        slot = thread - member * tile.slots;
#else
        slot = thread / (unsigned)tile.members;
        member = thread - slot * tile.members;
#endif
        unsigned groups_before = block / (unsigned)tile.splits;
        group = groups_before;
        split = block - groups_before * tile.splits;
        lane = group * tile.slots + slot;
        inside = lane < tile.lanes && member < tile.members;
    }

    __device__ long long first_channel(const Tile& tile) const { return group * tile.pack; }

    // How many vectors a member of this block has.
    __device__ int vectors(const Tile& tile, int of_member) const {
        return tile.whole + (split * tile.members + of_member < tile.rest ? 1 : 0);
    }

    // Which of the block's channels accumulator w of this thread is for.
    __device__ int local_channel(const Tile& tile, int w) const {
#if COLUMNS
        unsigned column = slot * VEC + w;
        if (tile.inner > 1) return column / (unsigned)tile.inner;
        return tile.slots * VEC == tile.pack ? column : column % (unsigned)tile.pack;
#else
        return slot;
#endif
    }
    __device__ long long channel(const Tile& tile, int w) const { return first_channel(tile) + local_channel(tile, w); }
};

// A thread's way through its lane; backwards, it meets first what an earlier kernel left in the cache.
template <bool BACKWARDS> struct Walk {
    const Tile& tile;
    long long index;
    long long within;
    int left;

    __device__ Walk(const Tile& tile_, const Place& place) : tile(tile_) {
        unsigned at = place.split * tile.members + place.member;
        left = place.inside ? place.vectors(tile, place.member) : 0;
#if COLUMNS
        long long row = BACKWARDS ? tile.runs - 1 - at : at;
        index = row * tile.lanes + place.lane;
        within = 0;
#else
        bool short_runs = tile.segment <= at;
        unsigned before = short_runs ? at / (unsigned)tile.segment : 0;
        within = at - before * (unsigned)tile.segment;
        long long run = BACKWARDS ? tile.runs - 1 - before : before;
        index = (run * tile.lanes + place.lane) * tile.segment + (BACKWARDS ? tile.segment - 1 - within : within);
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
        long long step = tile.step_index;
#if !COLUMNS
        within += tile.step_within;
        if (within >= tile.segment) {
            within -= tile.segment;
            step += tile.wrap;
        }
#endif
        index += BACKWARDS ? -step : step;
        return now;
    }
};

// What a thread has read ahead of its use: `turns` turns of UNROLL vectors, in shared memory. Nobody else looks at them, so
// nobody waits for anybody. The host asks for as much dynamic shared memory as all its tensors' turns take.
struct Ahead {
    int turns;
    Raw* mine;

    __device__ Ahead(int turns_, int tensor) : turns(turns_) {
        extern __shared__ __align__(16) unsigned char ahead_memory[];
        mine = (Raw*)ahead_memory + tensor * turns * UNROLL * blockDim.x + threadIdx.x;
    }
    __device__ Raw& at(int vector) const { return mine[vector * blockDim.x]; }
};

// Where a block has the numbers of its channels, in shared memory: those of 32 neighbours in the 32 banks, and those of every
// VEC-th channel in neighbouring ones.
struct Banks {
    static const int RUN = MOST_PACK / VEC + 32 / VEC, SIZE = RUN * VEC;

    __device__ static int at(int local_channel) { return local_channel % VEC * RUN + local_channel / VEC; }

    // Those of the channels that a thread walks.
    __device__ static void find(const Tile& tile, const Place& place, int (&places)[WIDTH]) {
#pragma unroll
        for (int w = 0; w < WIDTH; w++) places[w] = at(place.local_channel(tile, w));
    }

    // Calls `make(at, channel)` for each of the block's channels, by always the same thread.
    template <class Make> __device__ static void for_channels(const Tile& tile, const Place& place, Make make) {
        long long first = place.first_channel(tile);
        for (int c = threadIdx.x; c < tile.pack && first + c < tile.channels; c += blockDim.x) make(at(c), first + c);
    }
};

// Calls `use(u)` for each u < taken; a whole turn has no branches.
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

// Programmatic dependent launch: the next kernel of the stream, if it was launched so, may start and wait...
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// ... until all of this one's predecessor is done and seen. What the predecessor writes may only be touched after it; tensors,
// parameters, and what earlier passes left (running and saved statistics) were there before the predecessor began.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
