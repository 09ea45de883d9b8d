"""PyTorch's batch norm on the processor, all cores: the peer of `syncbn-bench --backend cpu`.

The same method: wall clock, every cache emptied before each repetition by writing more than any of them holds. Ours is
given the memory of its results, so the C library is told to keep what PyTorch's results are allocated from.
"""

import ctypes
import os
import platform
import re
import time

import torch
import torch.nn.functional as F

import common

FLUSH_BYTES = 512 << 20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory():
    """Freed memory stays mapped, so that fresh results cost no page faults."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        raise SystemExit("no mallopt in this C library: PyTorch's times would include page faults")
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def timed(flushed, work):
    samples = []
    for repetition in range(common.REPETITIONS + 1):
        flushed.fill_(repetition)
        start = time.perf_counter()
        work()
        samples.append((time.perf_counter() - start) * 1e6)
    return samples[1:]


def measure(case, flushed):
    x, dy = case.tensor("cpu"), case.tensor("cpu")
    y = torch.empty_like(x)
    channels = case.shape[1]
    weight = torch.ones(channels, dtype=case.param_dtype)
    bias = torch.zeros(channels, dtype=case.param_dtype)
    mean = torch.zeros(channels, dtype=case.param_dtype)
    var = torch.ones(channels, dtype=case.param_dtype)

    def forward():
        with torch.no_grad():
            F.batch_norm(x, mean, var, weight, bias, training=True)

    _, saved_mean, saved_invstd = torch.native_batch_norm(x, weight, bias, mean, var, True, 0.1, 1e-5)

    def backward():
        torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, saved_mean, saved_invstd, True, 1e-5, [True, True, True]
        )

    copy_us = sorted(timed(flushed, lambda: y.copy_(x)))[common.REPETITIONS // 2]
    yield common.row("torch-cpu", "forward", case, timed(flushed, forward), copy_us)
    yield common.row("torch-cpu", "backward", case, timed(flushed, backward), copy_us)


def device_name():
    try:
        found = re.search(r"^model name\s*:\s*(.*)$", open("/proc/cpuinfo").read(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else f"{platform.machine()} processor"


def main():
    args = common.arguments(__doc__)
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    flushed = torch.zeros(FLUSH_BYTES, dtype=torch.uint8)
    rows = [row for case in common.cases(args.shapes) for row in measure(case, flushed)]
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    common.write(args.out, rows, device_name(), f"{torch.get_num_threads()} threads", versions)


if __name__ == "__main__":
    main()
