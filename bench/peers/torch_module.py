"""syncbn's PyTorch module beside torch.nn.SyncBatchNorm and local batch norm, in one run. Started by torchrun, a process a GPU.

Layers: forward and backward of one module on the tensors of docs/performance.md's table of two GPUs: eager on the wall clock,
and captured in a CUDA graph (what can be), with the ranks lined up before each. Steps: ResNet-50 in DistributedDataParallel, f16
autocast, channels-last, eager and as one captured graph. Rank 0 prints medians in microseconds, then the ratios.
"""

import argparse
import math
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch import nn

import common
import syncbn
from resnet50 import resnet50

LAYERS = [
    "f16 nchw 2x64x256x512", "f16 nhwc 2x64x256x512", "f16 nchw 8x256x56x56", "f16 nhwc 8x256x56x56",
    "f32 nchw 2x256x128x256", "f32 nhwc 2x256x128x256", "f32 nchw 64x512x28x28", "f32 nchw 64x2048x7x7",
    "f32 nchw 2x512x7x7", "bf16 nchw 2x256x128x256", "f32 nhwc 3x67x13x13",
]  # fmt: skip
STEPS = [(32, 224), (8, 224), (2, 640)]
KINDS = {"local": nn.BatchNorm2d, "torch": nn.SyncBatchNorm, "syncbn": syncbn.SyncBatchNorm}


class Clock:
    def __init__(self, device, repetitions):
        self.token = torch.zeros(1, device=device)
        self.repetitions = repetitions

    def wall(self, work, prepare=lambda: None):
        """The median from the call until the device is done, the ranks lined up before each."""
        samples = []
        for _ in range(self.repetitions + 5):
            state = prepare()
            dist.all_reduce(self.token)
            torch.cuda.synchronize()
            began = time.perf_counter()
            work(state) if state is not None else work()
            torch.cuda.synchronize()
            samples.append((time.perf_counter() - began) * 1e6)
        return statistics.median(samples[5:])

    def captured(self, work, times=10):
        """The median of a graph of this much work, divided by how often it is in there."""
        graph = graph_of(lambda: [work() for _ in range(times)])
        return self.wall(graph.replay) / times


def graph_of(work):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    # NCCL's own threads may call CUDA meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph


def layers(clock, device):
    """Microseconds by (tensor, kind, pass)."""
    figures = {}
    for line in LAYERS:
        case = common.Case(line)
        x, dy = case.tensor(device).requires_grad_(), case.tensor(device)
        for kind, module in KINDS.items():
            layer = module(case.shape[1]).to(device)
            leaves = [x, layer.weight, layer.bias]
            figures[line, kind, "forward eager"] = clock.wall(lambda: layer(x))
            figures[line, kind, "backward eager"] = clock.wall(
                lambda y: torch.autograd.grad(y, leaves, dy), prepare=lambda: layer(x)
            )
            if kind != "torch":
                figures[line, kind, "forward captured"] = clock.captured(lambda: layer(x))
                both = clock.captured(lambda: torch.autograd.grad(layer(x), leaves, dy))
                figures[line, kind, "backward captured"] = both - figures[line, kind, "forward captured"]
            print_figures(figures, line, kind)
    return figures


def steps(clock, device):
    """Milliseconds of a training step, by (batch and size, kind, how)."""
    figures = {}
    for batch, size in STEPS:
        x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        target = torch.randint(0, 1000, (batch,), device=device)
        for kind in KINDS:
            line = f"{batch} at {size}x{size}"
            step = training_step(kind, x, target, device)
            figures[line, kind, "step eager"] = clock.wall(step)
            del step
            if kind != "torch":
                step = training_step(kind, x, target, device, captured=True)
                figures[line, kind, "step captured"] = clock.wall(graph_of_step(step).replay)
                del step
            torch.cuda.empty_cache()
            print_figures(figures, line, kind)
    return figures


def training_step(kind, x, target, device, captured=False):
    torch.manual_seed(0)
    model = resnet50(KINDS[kind]).to(device, memory_format=torch.channels_last)
    side = torch.cuda.Stream()
    # DDP is made on the stream that a capture would use, as torch's notes on graphs ask.
    with torch.cuda.stream(side) if captured else torch.cuda.stream(torch.cuda.current_stream()):
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device.index], broadcast_buffers=False)
    optimiser = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def step():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.float16, cache_enabled=not captured):
            loss = criterion(model(x), target)
        (loss * 128.0).backward()
        optimiser.step()

    return step


def graph_of_step(step):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # DDP wants eleven steps before a capture.
        for _ in range(11):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    return graph


def print_figures(figures, line, kind):
    if dist.get_rank() == 0:
        of = {how: f"{time:.1f}" for (one, other, how), time in figures.items() if (one, other) == (line, kind)}
        print(f"{line} {kind}: {of}", flush=True)


def print_ratios(figures):
    for how in sorted({how for _, _, how in figures}):
        lines = [line for line, kind, of in figures if kind == "syncbn" and of == how]
        for other in ("torch", "local"):
            # Torch's cannot be captured: it is compared as it runs.
            of = how.replace("captured", "eager") if other == "torch" else how
            pairs = [(figures[line, other, of], figures[line, "syncbn", how]) for line in lines]
            mean = math.exp(statistics.fmean(math.log(theirs / ours) for theirs, ours in pairs))
            each = ", ".join(f"{theirs / ours:.2f}" for theirs, ours in pairs)
            print(f"{how}: {other} ({of}) / syncbn = {mean:.2f} ({each})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["layers", "steps"])
    parser.add_argument("--repetitions", type=int, default=31)
    args = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    torch.manual_seed(dist.get_rank())
    clock = Clock(device, args.repetitions)
    if dist.get_rank() == 0:
        print(torch.cuda.get_device_name(device), dist.get_world_size(), "GPUs, torch", torch.__version__, flush=True)
    for name, run in (("layers", layers), ("steps", steps)):
        if args.only in (None, name):
            figures = run(clock, device)
            if dist.get_rank() == 0:
                print_ratios(figures)
    # Graphs hold sums of NCCL's: the process ends with them.
    torch.cuda.synchronize()
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
