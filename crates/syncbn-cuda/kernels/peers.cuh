// Ranks that meet inside the kernels, each on its own device of one host: every rank writes its numbers into its peers' memory.
//
// A kernel that sums sends a packet for each number of a channel as soon as its owner has it; the kernel that comes next waits for the
// packets of the channels that it needs, in its own device's memory, and adds the ranks' numbers in the order of the ranks.
//
// A packet carries the number of the pass, so that nothing else says that it has come. Passes are counted on the device, so that
// graphs can be replayed. There are two sets of slots, for passes of even and of odd number. That is enough: a rank that sends in pass
// n has had every packet of pass n - 1, whose senders were done with pass n - 2.
//
// Kernels that send never wait for a peer, so those that wait for their packets end, or the time-out does.

#if PEERS

typedef unsigned long long u64;

// Packets in front of those of the channels.
enum Header { HASH, IDENTITY, USE, STEP, COUNT, HEADER = 8 };

// In the device's memory, written by this rank alone.
struct Control {
    unsigned last;    // the last pass that is over: written by the kernel that waits, read by the kernel that sends
    unsigned current; // the pass under way: written by the kernel that sends, read by the kernel that waits
    unsigned failed;
    unsigned unused[13];
    // Behind it, two packets for each channel: what the first blocks of a forward pass have made of the ranks' numbers.
};

// In the host's memory: why this rank has failed. Which ranks have not come is asked of the inbox, by the host.
struct Report {
    unsigned stop; // the host's: whoever waits gives up
    unsigned done; // the rest is written
    u64 call[3];   // identity, use, step
    u64 number;    // of the pass
    u64 elsewhere; // 1 + the rank that is in another call; 0 where some rank has not come in time
    u64 other[3];  // where that rank is
};

struct Peers {
    uint4* inboxes[MOST_RANKS]; // each rank's; in each, the slots of all ranks for even passes, then for odd ones
    Control* control;
    Report* report;
    u64 hash, call[3];
    u64 timeout; // nanoseconds
    int rank, ranks;
    int slot; // packets
    int unused;
};
static_assert(sizeof(Peers) == PEERS_BYTES && sizeof(Report) == REPORT_BYTES, "raw/peers.rs has other structs");

// 16 bytes in one store. Each half has the number, since no more than 8 bytes are promised to come at once.
struct Packet {
    unsigned low, number, high, again;

    __device__ bool is_of(unsigned pass) const { return number == pass && again == pass; }
    __device__ u64 bits() const { return (u64)high << 32 | low; }
};
__device__ inline void store_packet(uint4* at, unsigned number, u64 bits) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %2};"
                 :
                 : "l"(at), "r"((unsigned)bits), "r"(number), "r"((unsigned)(bits >> 32))
                 : "memory");
}
__device__ inline Packet load_packet(const uint4* at) {
    Packet p;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p.low), "=r"(p.number), "=r"(p.high), "=r"(p.again)
                 : "l"(at)
                 : "memory");
    return p;
}
__device__ inline Control load_control(const Peers& peers) {
    Control control;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(control.last), "=r"(control.current), "=r"(control.failed), "=r"(control.unused[0])
                 : "l"(peers.control)
                 : "memory");
    return control;
}

// The packets that `from` sends to `to` in a pass.
__device__ inline uint4* slot_of(const Peers& peers, int to, int from, unsigned number) {
    return peers.inboxes[to] + (long long)((number & 1) * peers.ranks + from) * peers.slot;
}

// What a kernel that sums does.
struct Sender {
    unsigned number;
    bool may_send; // a rank that has failed is silent: its peers' time-out tells them

    __device__ Sender(const Peers& peers) {
        Control control = load_control(peers);
        number = control.last + 1;
        may_send = control.failed == 0;
    }
    // Called by every thread: the first block says which call this is.
    __device__ void send_header(const Peers& peers, f64 count) const {
        if (blockIdx.x != 0) return;
        if (threadIdx.x == 0) *(volatile unsigned*)&peers.control->current = number;
        if (!may_send || threadIdx.x >= peers.ranks) return;
        uint4* slot = slot_of(peers, threadIdx.x, peers.rank, number);
        store_packet(slot + HASH, number, peers.hash);
        store_packet(slot + COUNT, number, __double_as_longlong(count));
        for (int word = 0; word < 3; word++) store_packet(slot + IDENTITY + word, number, peers.call[word]);
    }
    // A channel's two numbers.
    __device__ void send(const Peers& peers, long long channel, f64 first, f64 second) const {
        if (!may_send) return;
        for (int to = 0; to < peers.ranks; to++) {
            uint4* at = slot_of(peers, to, peers.rank, number) + HEADER + 2 * channel;
            store_packet(at, number, __double_as_longlong(first));
            store_packet(at + 1, number, __double_as_longlong(second));
        }
    }
};

__device__ inline u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

// Ends this rank's part in the group. The first thread to come here may tell the host why.
__device__ inline bool fails_first(const Peers& peers) { return atomicCAS(&peers.control->failed, 0u, 1u) == 0; }

// Called by one thread of the grid that waits, once all have its number, or have it from elsewhere.
__device__ inline void end_pass(const Peers& peers, unsigned number) { *(volatile unsigned*)&peers.control->last = number; }

// What is told is complete.
__device__ inline void tell(Report* report) {
    __threadfence_system();
    *(volatile unsigned*)&report->done = 1;
}
__device__ inline void tell_call(const Peers& peers, unsigned number) {
    peers.report->number = number;
    for (int word = 0; word < 3; word++) peers.report->call[word] = peers.call[word];
}

// What the kernel after it does: made once the previous kernel has ended.
struct Receiver {
    unsigned number;

    __device__ Receiver(const Peers& peers) { number = load_control(peers).current; }

    // Waits for the packets at N places; whether they have come, and every rank of which something has come is in this call. Nothing
    // here is a call of a function: it would cost the kernels around it their registers.
    template <bool COMPARES, int N>
    __device__ bool wait(const Peers& peers, const uint4* const (&at)[N], f64 (&values)[N]) const {
        u64 since = 0;
#pragma unroll 1
        for (unsigned look = 1;; look++) {
            bool all = true;
#pragma unroll
            for (int n = 0; n < N; n++) {
                Packet packet = load_packet(at[n]);
                all = all && packet.is_of(number);
                values[n] = __longlong_as_double(packet.bits());
            }
            if (all) return true;
            if (look % 256 != 0) continue;
            if (is_over(peers) || (COMPARES && !compare(peers))) return false;
            u64 now = nanoseconds();
            if (since == 0) since = now;
            if (now - since < peers.timeout) continue;
            if (fails_first(peers)) {
                tell_call(peers, number);
                tell(peers.report);
            }
            return false;
        }
    }

    // Whether this rank has failed, or was told to give up.
    __device__ static bool is_over(const Peers& peers) {
        return load_control(peers).failed != 0 || *(volatile unsigned*)&peers.report->stop != 0;
    }

    // Calls `add(from, first, second, count)` with a channel's numbers of each rank, in the order of the ranks, and its count where a
    // pass has one; whether all have come.
    template <bool COUNTED, class Add> __device__ bool for_ranks(const Peers& peers, long long channel, Add add) const {
#pragma unroll 1
        for (int from = 0; from < peers.ranks; from++) {
            const uint4 *slot = slot_of(peers, peers.rank, from, number), *own = slot + HEADER + 2 * channel;
            const uint4* const at[3] = {own, own + 1, COUNTED ? slot + COUNT : own};
            f64 values[3];
            if (!wait<false>(peers, at, values)) return false;
            add(from, values[0], values[1], values[2]);
        }
        return true;
    }

    // The same with counts, and only if all ranks are in this call. Two ranks at a time: their packets are waited for at once. An odd
    // one is read twice.
    template <class Add> __device__ bool for_agreeing_ranks(const Peers& peers, long long channel, Add add) const {
        bool agree = true;
#pragma unroll 1
        for (int from = 0; from < peers.ranks; from += 2) {
            int next = min(from + 1, peers.ranks - 1);
            const uint4 *a = slot_of(peers, peers.rank, from, number), *b = slot_of(peers, peers.rank, next, number);
            long long first = HEADER + 2 * channel, second = first + 1;
            const uint4* const at[8] = {
                a + first, a + second, a + COUNT, a + HASH, b + first, b + second, b + COUNT, b + HASH,
            };
            f64 values[8];
            if (!wait<true>(peers, at, values)) return false;
            agree = agree && is_ours(peers, values[3]) && is_ours(peers, values[7]);
            add(from, values[0], values[1], values[2]);
            if (next > from) add(next, values[4], values[5], values[6]);
        }
        return agree || compare(peers);
    }

    __device__ static bool is_ours(const Peers& peers, f64 hash) {
        return (u64)__double_as_longlong(hash) == peers.hash;
    }

    // Whether every rank of which something has come is in this call.
    __device__ bool compare(const Peers& peers) const {
        for (int from = 0; from < peers.ranks; from++) {
            const uint4* slot = slot_of(peers, peers.rank, from, number);
            Packet hash = load_packet(slot + HASH);
            if (!hash.is_of(number) || hash.bits() == peers.hash) continue;
            // What says where it is was sent with the hash.
            const uint4* const where[3] = {slot + IDENTITY, slot + USE, slot + STEP};
            f64 call[3];
            if (!wait<false>(peers, where, call) || !fails_first(peers)) return false;
            tell_call(peers, number);
            for (int word = 0; word < 3; word++) peers.report->other[word] = __double_as_longlong(call[word]);
            peers.report->elsewhere = from + 1;
            tell(peers.report);
            return false;
        }
        return true;
    }

    // A channel's two results, which the first blocks of a forward pass leave for all others. Blocks are started in the order of their
    // numbers, so those that leave them run.
    __device__ void leave(const Peers& peers, long long channel, f64 first, f64 second) const {
        uint4* at = (uint4*)(peers.control + 1) + 2 * channel;
        store_packet(at, number, __double_as_longlong(first));
        store_packet(at + 1, number, __double_as_longlong(second));
    }
    // Waits for them; whether they were left.
    __device__ bool find(const Peers& peers, long long channel, f64& first, f64& second) const {
        const uint4* at = (const uint4*)(peers.control + 1) + 2 * channel;
#pragma unroll 1
        for (unsigned look = 1;; look++) {
            Packet a = load_packet(at), b = load_packet(at + 1);
            first = __longlong_as_double(a.bits());
            second = __longlong_as_double(b.bits());
            if (a.is_of(number) && b.is_of(number)) return true;
            if (look % 256 == 0 && is_over(peers)) return false;
        }
    }
};

// The part of the block that waits for every rank, in a pass in which no thread of it has another: the pass is over then.
__device__ inline void meet_ranks(const Peers& peers) {
    Receiver receiver(peers);
    if (threadIdx.x < peers.ranks) {
        f64 hash[1];
        const uint4* const at[1] = {slot_of(peers, peers.rank, threadIdx.x, receiver.number) + HASH};
        if (receiver.wait<false>(peers, at, hash) && !Receiver::is_ours(peers, hash[0])) receiver.compare(peers);
    }
    __syncthreads();
    if (threadIdx.x == 0) end_pass(peers, receiver.number);
}

// What such kernels take besides their own arguments, and the functions that they call.
#define PEERS_PARAMETER , const __grid_constant__ Peers peers
#define PEERS_REFERENCE , const Peers& peers
#else
#define PEERS_PARAMETER
#define PEERS_REFERENCE
#endif
