"""PyTorch's batch norms on a CUDA device: the peers of `syncbn-bench --backend cuda`.

torch_sync: the kernels of torch.nn.SyncBatchNorm without its collectives; cudnn: cuDNN's local batch norm, which PyTorch does not
use for bf16; inductor: torch.compile of a local batch norm, forward.

The same method: events around replays of a captured graph, the L2 cache emptied before each by writing four times its size.

torch.compile takes seconds a tensor, so other processes compile first, into a cache that this one then finds; its choices between
kernels, which depend on clocks, are left to this one.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import torch
import torch.nn.functional as F

import common

EPS, MOMENTUM = 1e-5, 0.1
COMPILERS = max(1, min(14, (os.cpu_count() or 1) - 2))
WARM = "SYNCBN_PEER_WARM"


class Clock:
    """Times work on the device."""

    def __init__(self):
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flushed = torch.zeros(4 * max(cache, 16 << 20), dtype=torch.uint8, device="cuda")

    def samples(self, work):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        samples = []
        for _ in range(common.REPETITIONS + 1):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flushed.zero_()
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            samples.append(start.elapsed_time(end) * 1e3)
        return samples[1:]


class Layer:
    """The parameters and statistics of one layer."""

    def __init__(self, case):
        def vector(value):
            return torch.full((case.shape[1],), value, dtype=case.param_dtype, device="cuda")

        self.weight, self.bias = vector(1), vector(0)
        self.mean, self.var = vector(0), vector(1)


def batch_norm(x, layer):
    return F.batch_norm(x, layer.mean, layer.var, layer.weight, layer.bias, True, MOMENTUM, EPS)


def compiled(x, layer):
    """A forward pass of torch.compile, specialised for this tensor alone, and compiled."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: batch_norm(x, layer), dynamic=False)

    def forward():
        with torch.no_grad():
            return compiled(x)

    forward()
    return forward


def torch_sync(case, x, dy, layer):
    """Forward and backward of torch.nn.modules._functions.SyncBatchNorm on a world of 1."""
    count = torch.full((1,), x.numel() / case.shape[1], dtype=case.param_dtype, device="cuda")
    count_int = count.to(torch.int32)
    saved = []

    def forward():
        mean, invstd = torch.batch_norm_stats(x, EPS)
        mean, invstd = torch.batch_norm_gather_stats_with_counts(
            x, mean[None], invstd[None], layer.mean, layer.var, MOMENTUM, EPS, count
        )
        saved[:] = mean, invstd
        return torch.batch_norm_elemt(x, layer.weight, layer.bias, mean, invstd, EPS)

    forward()
    mean, invstd = saved

    def backward():
        sum_dy, sum_dy_xmu, _, _ = torch.batch_norm_backward_reduce(
            dy, x, mean, invstd, layer.weight, True, True, True
        )
        return torch.batch_norm_backward_elemt(dy, x, mean, invstd, layer.weight, sum_dy, sum_dy_xmu, count_int)

    return forward, backward


def cudnn(x, dy, layer):
    def forward():
        return torch.ops.aten.cudnn_batch_norm(
            x, layer.weight, layer.bias, layer.mean, layer.var, True, MOMENTUM, EPS
        )

    _, mean, var, reserve = forward()

    def backward():
        return torch.ops.aten.cudnn_batch_norm_backward(
            x, dy, layer.weight, layer.mean, layer.var, mean, var, EPS, reserve
        )

    return forward, backward


def measure(case, clock):
    x, dy = case.tensor("cuda"), case.tensor("cuda")
    y = torch.empty_like(x)
    layer = Layer(case)
    copy_us = sorted(clock.samples(lambda: y.copy_(x)))[common.REPETITIONS // 2]
    works = [("torch_sync", torch_sync(case, x, dy, layer)), ("inductor", (compiled(x, layer), None))]
    if case.dtype != torch.bfloat16:
        works.append(("cudnn", cudnn(x, dy, layer)))
    for name, (forward, backward) in works:
        yield common.row(name, "forward", case, clock.samples(forward), copy_us)
        if backward:
            yield common.row(name, "backward", case, clock.samples(backward), copy_us)


def warm(cases, path):
    """Compiles all tensors in other processes, a share in each."""
    command = [sys.executable, __file__, "--shapes", str(path), "--out", os.devnull]
    shares = [f"{share}/{COMPILERS}" for share in range(min(COMPILERS, len(cases)))]
    workers = [subprocess.Popen(command, env={**os.environ, WARM: share}) for share in shares]
    if any([worker.wait() != 0 for worker in workers]):
        raise SystemExit("torch.compile failed")
    for choice in pathlib.Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).rglob("*.best_config"):
        choice.unlink()


def main():
    args = common.arguments(__doc__)
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device")
    torch.manual_seed(0)
    cases = common.cases(args.shapes)
    if share := os.environ.get(WARM):
        number, of = map(int, share.split("/"))
        for case in cases[number::of]:
            compiled(case.tensor("cuda"), Layer(case))
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp())
    warm(cases, args.shapes)
    if str(args.out) == os.devnull:
        return
    clock = Clock()
    rows = [row for case in cases for row in measure(case, clock)]
    properties = torch.cuda.get_device_properties(0)
    machine = f"{properties.multi_processor_count} multiprocessors"
    versions = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
    }
    common.write(args.out, rows, torch.cuda.get_device_name(0), machine, versions)


if __name__ == "__main__":
    main()
