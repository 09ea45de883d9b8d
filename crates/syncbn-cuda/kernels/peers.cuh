// Ranks that meet inside the kernels, each on its own device of one host: every rank writes its numbers into its peers' memory.
//
// A kernel that sums sends one packet for each number of a channel, as soon as the channel's owner has it. The next kernel, or the same
// one where a pass is one launch, waits for the packets of the channels that it needs, in its own device's memory, and adds the ranks'
// numbers in the order of the ranks.
//
// A packet carries the number of its pass, which is how the receiver knows that it has arrived. Passes are counted on the device, so
// that graphs can be replayed. There are two sets of slots, for passes of even and of odd number. Two are enough: a rank that sends in
// pass n has received every packet of pass n - 1, and their senders had finished pass n - 2.
//
// Every wait ends, by the packets' arrival or by the time-out. peers.rs says why they arrive.

#if PEERS

typedef unsigned long long u64;

// 16 bytes, stored at once. Each half has the number, since only 8 bytes are guaranteed to arrive together.
struct Packet {
    unsigned low, number, high, number_again;

    __device__ bool is_of(unsigned pass) const { return number == pass && number_again == pass; }
    __device__ u64 bits() const { return (u64)high << 32 | low; }
};
static_assert(sizeof(Packet) == PACKET_BYTES && sizeof(uint4) == PACKET_BYTES, "a packet is one word of 16 bytes");
__device__ inline void store_packet(uint4* at, unsigned number, u64 bits) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %2};"
                 :
                 : "l"(at), "r"((unsigned)bits), "r"(number), "r"((unsigned)(bits >> 32))
                 : "memory");
}
__device__ inline Packet load_packet(const uint4* at) {
    Packet p;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(p.low), "=r"(p.number), "=r"(p.high), "=r"(p.number_again)
                 : "l"(at)
                 : "memory");
    return p;
}
__device__ inline Control load_control(const PeersParams& peers) {
    Control control;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(control.last), "=r"(control.current), "=r"(control.failed), "=r"(control.begun)
                 : "l"(peers.control)
                 : "memory");
    return control;
}

// Where the packets lie that `from` sends to `to` in a pass.
__device__ inline uint4* slot_of(const PeersParams& peers, int to, int from, unsigned number) {
    return peers.inboxes[to] + (long long)((number & 1) * peers.ranks + from) * peers.packets_per_slot;
}

// Counts up to `most` and then starts from 0 again; returns the count before. It orders nothing.
__device__ inline unsigned count_up(unsigned* counter, unsigned most) {
    unsigned before;
    asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(most) : "memory");
    return before;
}

// For kernels that sum.
struct Sender {
    unsigned number;
    bool may_send; // a rank that has failed sends nothing more; its peers time out

    __device__ Sender(const PeersParams& peers) {
        Control control = load_control(peers);
        number = control.last + 1;
        if (number == 0) number = 2; // memory that nobody has written yet holds zeros; even numbers stay even
        may_send = control.failed == 0;
    }
    // Called by every thread; the first block sends which call this is.
    __device__ void send_header(const PeersParams& peers, f64 count) const {
        if (blockIdx.x != 0) return;
        if (threadIdx.x == 0) *(volatile unsigned*)&peers.control->current = number;
        if (!may_send || threadIdx.x >= peers.ranks) return;
        uint4* slot = slot_of(peers, threadIdx.x, peers.rank, number);
        store_packet(slot + HASH, number, peers.hash);
        store_packet(slot + COUNT, number, __double_as_longlong(count));
        for (int word = 0; word < 3; word++) store_packet(slot + IDENTITY + word, number, peers.call[word]);
    }
    // For a kernel that is a whole pass; one thread of each block calls it. True in the block by whose call every block of the grid has
    // read the number: its thread may end the pass.
    __device__ bool is_last_to_begin(const PeersParams& peers) const {
        // The number, which is never 0, was read by then.
        return number != 0 && count_up(&peers.control->begun, gridDim.x - 1) == gridDim.x - 1;
    }
    // Sends a channel's two numbers.
    __device__ void send(const PeersParams& peers, long long channel, f64 first, f64 second) const {
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

// Ends this rank's part in the group. Only the first thread to come here, which gets true, tells the host why.
__device__ inline bool fails_first(const PeersParams& peers) { return atomicCAS(&peers.control->failed, 0u, 1u) == 0; }

// Called by one thread of the receiving grid. Only the next pass reads what it changes.
__device__ inline void end_pass(const PeersParams& peers, unsigned number) { *(volatile unsigned*)&peers.control->last = number; }

// The report is complete.
__device__ inline void tell(Report* report) {
    __threadfence_system();
    *(volatile unsigned*)&report->done = 1;
}
__device__ inline void tell_call(const PeersParams& peers, unsigned number) {
    peers.report->number = number;
    for (int word = 0; word < 3; word++) peers.report->call[word] = peers.call[word];
}

struct Receiver {
    unsigned number;

    // For the second kernel of a pass; it is made after the first has ended.
    __device__ Receiver(const PeersParams& peers) { number = load_control(peers).current; }
    // For a kernel that is a whole pass.
    __device__ Receiver(const Sender& sender) { number = sender.number; }

    // Waits for the packets at N addresses, and reads their N values. Returns whether they have arrived and, with COMPARES, every rank
    // that has sent something is in this call. Everything is inlined: a call would cost the surrounding kernels registers.
    template <bool COMPARES, int N>
    __device__ bool wait(const PeersParams& peers, const uint4* const* at, f64* values) const {
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
            if (look % LOOKS != 0) continue;
            if (is_over(peers, look) || (COMPARES && !compare(peers)) || is_late(peers, since, peers.timeout)) return false;
        }
    }

    // What else may end a wait is looked at once in so many looks at the packets; the host's word, once in so many times as often. It
    // lies in the host's memory, and thousands of threads wait: if all of them read it all the time, those reads alone would take
    // half a millisecond of a pass.
    static const unsigned LOOKS = 256, LOOKS_AT_HOST = 32 * LOOKS;

    // Whether this rank has failed, or the host has told it to stop: then it has failed, too, and the other threads see that.
    __device__ static bool is_over(const PeersParams& peers, unsigned look) {
        if (load_control(peers).failed != 0) return true;
        if (look % LOOKS_AT_HOST != 0 || *(volatile unsigned*)&peers.report->stop == 0) return false;
        fails_first(peers);
        return true;
    }

    // Whether the time has passed since the first call with this `since`, which was 0; then the group has failed.
    __device__ bool is_late(const PeersParams& peers, u64& since, u64 time) const {
        u64 now = nanoseconds();
        if (since == 0) since = now;
        if (now - since < time) return false;
        if (fails_first(peers)) {
            tell_call(peers, number);
            tell(peers.report);
        }
        return true;
    }

    // Calls `add(from, first, second, count)` with a channel's numbers of each rank, in the order of the ranks; the count is that of
    // the rank's elements, with COUNTED. Returns whether all have arrived.
    template <bool COUNTED, class Add> __device__ bool for_ranks(const PeersParams& peers, long long channel, Add add) const {
#pragma unroll 1
        for (int from = 0; from < peers.ranks; from++) {
            const uint4 *slot = slot_of(peers, peers.rank, from, number), *own = slot + HEADER + 2 * channel;
            const uint4* const at[3] = {own, own + 1, slot + COUNT};
            f64 values[3] = {};
            if (!wait<false, COUNTED ? 3 : 2>(peers, at, values)) return false;
            add(from, values[0], values[1], values[2]);
        }
        return true;
    }

    // The same with counts, and true only if all ranks are in this call. The packets of two ranks are waited for at once; the last of an
    // odd number of ranks is read twice.
    template <class Add> __device__ bool for_agreeing_ranks(const PeersParams& peers, long long channel, Add add) const {
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
            if (!wait<true, 8>(peers, at, values)) return false;
            agree = agree && is_ours(peers, values[3]) && is_ours(peers, values[7]);
            add(from, values[0], values[1], values[2]);
            if (next > from) add(next, values[4], values[5], values[6]);
        }
        return agree || compare(peers);
    }

    // The same for a thread that has its own rank's numbers: it waits for the others' alone. Without AGREES it asks for no counts, and
    // it looks at the others' calls only while it waits.
    template <bool AGREES, class Add>
    __device__ bool for_others(const PeersParams& peers, long long channel, f64 first, f64 second, f64 count, Add add) const {
        bool agree = true;
#pragma unroll 1
        for (int from = 0; from < peers.ranks; from++) {
            f64 values[4] = {first, second, count, 0};
            if (from != peers.rank) {
                const uint4 *slot = slot_of(peers, peers.rank, from, number), *own = slot + HEADER + 2 * channel;
                const uint4* const at[4] = {own, own + 1, slot + COUNT, slot + HASH};
                if (!wait<true, AGREES ? 4 : 2>(peers, at, values)) return false;
                agree = agree && (!AGREES || is_ours(peers, values[3]));
            }
            add(from, values[0], values[1], values[2]);
        }
        return agree || compare(peers);
    }

    __device__ static bool is_ours(const PeersParams& peers, f64 hash) {
        return (u64)__double_as_longlong(hash) == peers.hash;
    }

    // Whether every rank that has sent something is in this call.
    __device__ bool compare(const PeersParams& peers) const {
        for (int from = 0; from < peers.ranks; from++) {
            const uint4* slot = slot_of(peers, peers.rank, from, number);
            Packet hash = load_packet(slot + HASH);
            if (!hash.is_of(number) || hash.bits() == peers.hash) continue;
            // Which call the rank is in was sent with the hash.
            const uint4* const where[3] = {slot + IDENTITY, slot + USE, slot + STEP};
            f64 call[3];
            if (!wait<false, 3>(peers, where, call) || !fails_first(peers)) return false;
            tell_call(peers, number);
            for (int word = 0; word < 3; word++) peers.report->other_call[word] = __double_as_longlong(call[word]);
            peers.report->other_rank = from + 1;
            tell(peers.report);
            return false;
        }
        return true;
    }

    // Makes a channel's two results available to all blocks of the grid. normalize's first blocks do this. Blocks start in the order
    // of their numbers, so when others wait for the results, the first blocks are running.
    __device__ void publish(const PeersParams& peers, long long channel, f64 first, f64 second) const {
        uint4* at = (uint4*)(peers.control + 1) + 2 * channel;
        store_packet(at, number, __double_as_longlong(first));
        store_packet(at + 1, number, __double_as_longlong(second));
    }
    // Waits for them; returns whether they were published.
    __device__ bool wait_for_published(const PeersParams& peers, long long channel, f64& first, f64& second) const {
        const uint4* at = (const uint4*)(peers.control + 1) + 2 * channel;
        u64 since = 0;
#pragma unroll 1
        for (unsigned look = 1;; look++) {
            Packet a = load_packet(at), b = load_packet(at + 1);
            first = __longlong_as_double(a.bits());
            second = __longlong_as_double(b.bits());
            if (a.is_of(number) && b.is_of(number)) return true;
            // Whoever publishes waits for one time-out for each pair of ranks, at most. This one gives up only if that block never started.
            if (look % LOOKS == 0 && (is_over(peers, look) || is_late(peers, since, peers.ranks * peers.timeout))) return false;
        }
    }
};

// Waits for every rank, and compares its call with ours, in one block.
__device__ inline void compare_ranks(const PeersParams& peers, const Receiver& receiver) {
    if (threadIdx.x >= peers.ranks) return;
    f64 hash[1];
    const uint4* const at[1] = {slot_of(peers, peers.rank, threadIdx.x, receiver.number) + HASH};
    if (receiver.wait<false, 1>(peers, at, hash) && !Receiver::is_ours(peers, hash[0])) receiver.compare(peers);
}

// The same, and ends the pass. For passes in which no other thread ends it.
__device__ inline void meet_ranks(const PeersParams& peers) {
    Receiver receiver(peers);
    compare_ranks(peers, receiver);
    __syncthreads();
    if (threadIdx.x == 0) end_pass(peers, receiver.number);
}

// The second parameter of such kernels, and of the functions that they call.
#define PEERS_PARAMETER , const __grid_constant__ PeersParams peers
#define PEERS_REFERENCE , const PeersParams& peers
#else
#define PEERS_PARAMETER
#define PEERS_REFERENCE
#endif
