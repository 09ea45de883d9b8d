// Which thread takes which elements. tile.rs fills the struct in and explains it; the two have to agree byte for byte.
//
// A lane is a sequence of vectors that one accumulator may take: one channel (rows), or VEC neighbouring channels
// (columns). Vector number l of a lane lies at ((l / segment) * lanes + lane) * segment + l % segment. A block has
// `slots` lanes; `members` threads share a lane, and so do `splits` blocks.

#define THREADS 256
#define UNROLL 4
// Channels per lane, and elements that each of a lane's channels gets from one vector.
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
    long long vectors;
    long long step_index;
    long long step_within;
    long long wrap;
    int members;
    int splits;
};

struct Place {
    int slots;
    int member;
    int slot;
    int split;
    long long group;
    long long lane;

    // `block` counts from the first block that walks the tensor.
    __device__ Place(const Tile& tile, long long block) {
        slots = THREADS / tile.members;
#if COLUMNS
        member = threadIdx.x / slots;
        slot = threadIdx.x % slots;
#else
        member = threadIdx.x % tile.members;
        slot = threadIdx.x / tile.members;
#endif
        group = block / tile.splits;
        split = (int)(block - group * tile.splits);
        lane = group * slots + slot;
    }

    // The first of the lane's WIDTH channels.
    __device__ long long channel() const { return lane * WIDTH; }
    __device__ long long first_channel() const { return group * slots * WIDTH; }
};

// A thread's way through its lane; backwards, it meets first what an earlier kernel left in the cache.
template <bool BACKWARDS> struct Walk {
    const Tile& tile;
    long long at, step, index, within;

    __device__ Walk(const Tile& tile_, const Place& place) : tile(tile_) {
        at = (long long)place.split * tile.members + place.member;
        step = (long long)tile.splits * tile.members;
        if (place.lane >= tile.lanes || at >= tile.vectors) {
            at = tile.vectors;
            index = within = 0;
            return;
        }
        long long number = BACKWARDS ? tile.vectors - 1 - at : at;
        long long outer = number / tile.segment;
        within = number - outer * tile.segment;
        index = (outer * tile.lanes + place.lane) * tile.segment + within;
    }

    __device__ bool more() const { return at < tile.vectors; }

    // The next UNROLL vectors, at most; returns how many.
    __device__ int take(long long (&indices)[UNROLL]) {
        int taken = 0;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            indices[u] = index;
            taken += more() ? 1 : 0;
            advance();
        }
        return taken;
    }

  private:
    __device__ void advance() {
        at += step;
        if (BACKWARDS) {
            index -= tile.step_index;
            within -= tile.step_within;
            if (within < 0) {
                within += tile.segment;
                index -= tile.wrap;
            }
        } else {
            index += tile.step_index;
            within += tile.step_within;
            if (within >= tile.segment) {
                within -= tile.segment;
                index += tile.wrap;
            }
        }
    }
};
