"""torch.nn.SyncBatchNorm on several GPUs: the peer of `syncbn-bench --backend cuda --launched`. Started by torchrun, a process a GPU.

Rank 0's figures: `forward` and `backward` between events on the device, with the ranks lined up by a sum before each and the L2
cache emptied; `forward_wall` and `backward_wall` on the wall clock until the device is done, as a training loop sees them, since
this layer waits for the device in between. It cannot be captured in a graph.
"""

import os
import time

import torch
import torch.distributed as dist

import common


class Clock:
    def __init__(self, device):
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flushed = torch.zeros(4 * max(cache, 16 << 20), dtype=torch.uint8, device=device)
        self.token = torch.zeros(1, device=device)

    def line_up(self):
        self.flushed.zero_()
        dist.all_reduce(self.token)

    def samples(self, prepare, work):
        """Times on the device and on the wall clock, in microseconds."""
        device, wall = [], []
        for _ in range(common.REPETITIONS + 3):
            state = prepare()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.line_up()
            start.record()
            work(state)
            end.record()
            end.synchronize()
            device.append(start.elapsed_time(end) * 1e3)
            state = prepare()
            self.line_up()
            torch.cuda.synchronize()
            began = time.perf_counter()
            work(state)
            torch.cuda.synchronize()
            wall.append((time.perf_counter() - began) * 1e6)
        return device[3:], wall[3:]


def measure(case, clock, device):
    x = case.tensor(device).requires_grad_()
    dy = case.tensor(device)
    layer = torch.nn.SyncBatchNorm(case.shape[1], dtype=case.param_dtype, device=device)
    forward = clock.samples(lambda: None, lambda _: layer(x))
    parameters = [x, layer.weight, layer.bias]
    backward = clock.samples(lambda: layer(x), lambda y: torch.autograd.grad(y, parameters, dy))
    for op, (on_device, wall) in (("forward", forward), ("backward", backward)):
        yield common.row("torch_sync", op, case, on_device)
        yield common.row("torch_sync", f"{op}_wall", case, wall)


def main():
    args = common.arguments(__doc__)
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    torch.manual_seed(rank)
    clock = Clock(device)
    rows = [row for case in common.cases(args.shapes) for row in measure(case, clock, device)]
    if rank == 0:
        versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
        common.write(args.out, rows, torch.cuda.get_device_name(device), f"{dist.get_world_size()} GPUs", versions)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
