// For a pass in which no kernel needs the peers' numbers: the ranks wait for each other all the same, so that none is two passes ahead.

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    meet(const __grid_constant__ MeetParams params, const __grid_constant__ PeersParams peers) {
    if (params.sends) {
        Sender(peers).send_header(peers, params.count);
        __syncthreads();
    }
    meet_ranks(peers);
}
