// A pass in which no kernel needs the peers' numbers: the ranks wait for each other all the same, so that none is two passes ahead.

struct MeetArgs {
    f64 count;
    int sends; // whether this kernel is also the one that sends
};
static_assert(sizeof(MeetArgs) == ARGS_BYTES, "raw/params.rs has another struct");

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    meet(const __grid_constant__ MeetArgs args, const __grid_constant__ Peers peers) {
    if (args.sends) {
        Sender(peers).send_header(peers, args.count);
        __syncthreads();
    }
    meet_ranks(peers);
}
