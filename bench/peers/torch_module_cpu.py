"""syncbn's PyTorch module on CPUs beside local nn.BatchNorm2d, in turn, on the threads that torch has. Started by torchrun with several
processes, also what the sum over the ranks costs: a pass of a tiny tensor, in the group and alone.
"""

import argparse
import os
import pathlib
import statistics
import time

import torch
import torch.distributed as dist

import common
import syncbn

SHAPES = pathlib.Path(__file__).resolve().parent.parent / "shapes-cpu.txt"


def in_turn(works, rounds):
    """The best of each, in microseconds; neighbours on the machine disturb all alike."""
    times = [[] for _ in works]
    for _ in range(rounds):
        for samples, work in zip(times, works):
            began = time.perf_counter()
            work()
            samples.append((time.perf_counter() - began) * 1e6)
    return [min(samples) for samples in times]


def passes(layer, x, dy):
    leaves = [x, layer.weight, layer.bias]
    kept = layer(x)
    return lambda: layer(x), lambda: torch.autograd.grad(kept, leaves, dy, retain_graph=True)


def beside_local(rounds):
    ratios = {"forward": [], "backward": []}
    for case in common.cases(SHAPES):
        x, dy = case.tensor("cpu").requires_grad_(), case.tensor("cpu")
        kind = torch.nn.BatchNorm2d if x.dim() == 4 else torch.nn.BatchNorm1d
        ours, local = (passes(layer(case.shape[1]), x, dy) for layer in (syncbn.SyncBatchNorm, kind))
        for name, mine, theirs in zip(ratios, ours, local):
            best, other = in_turn([mine, theirs], rounds)
            ratios[name].append(other / best)
            print(f"{case} {name}: syncbn {best:.0f}, nn.BatchNorm {other:.0f} us", flush=True)
    for name, each in ratios.items():
        print(f"{name}: nn.BatchNorm / syncbn = {statistics.geometric_mean(each):.2f}", flush=True)


def sum_over_ranks(rounds):
    dist.init_process_group("gloo")
    alone, _ = dist.new_subgroups(1)
    x, dy = torch.randn(2, 64, 2, 2, requires_grad=True), torch.randn(2, 64, 2, 2)
    layers = [syncbn.SyncBatchNorm(64, process_group=group) for group in (None, alone)]
    figures = [in_turn(works, rounds) for works in zip(*(passes(layer, x, dy) for layer in layers))]
    if dist.get_rank() == 0:
        for name, (group, local) in zip(("forward", "backward"), figures):
            print(f"{name}: {group:.0f} us in a group of {dist.get_world_size()}, {local:.0f} us alone", flush=True)
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        torch.set_num_threads(1)
        sum_over_ranks(20 * rounds)
    else:
        beside_local(rounds)


if __name__ == "__main__":
    main()
