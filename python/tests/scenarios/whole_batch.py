"""Ranks together compute what one rank computes of the whole batch: peers' scenarios (torch's and apex's), written anew."""

from __future__ import annotations

import contextlib

import torch
from common import BARS, close
from common_ranks import Ranks
from torch import nn

import syncbn


def all_shapes_and_types(ranks: Ranks) -> None:
    for shape in [(8, 3), (9, 4, 5), (7, 5, 4, 6), (6, 3, 2, 3, 4), (6, 1, 3, 3), (8, 130)]:
        for dtype in (torch.float64, torch.float32):
            ours, oracle = ranks.pair(shape[1], dtype)
            bar = 1e-12 if dtype is torch.float64 else 2e-5
            ranks.compare(ours, oracle, ranks.randn(*shape, dtype=dtype), ranks.randn(*shape, dtype=dtype), bar)


def half_types(ranks: Ranks) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        ours, oracle = ranks.pair(5, dtype)
        x, dy = ranks.randn(7, 5, 4, 6, dtype=dtype), ranks.randn(7, 5, 4, 6, dtype=dtype)
        ranks.compare(ours, oracle, x, dy, BARS[dtype])
        assert ours(ranks.part(x)).dtype is dtype


def channels_last(ranks: Ranks) -> None:
    for shape, layout in [((7, 5, 4, 6), torch.channels_last), ((6, 3, 2, 3, 4), torch.channels_last_3d)]:
        for last in [(True, True), (True, False), (False, True)]:
            ours, oracle = ranks.pair(shape[1])
            x, dy = (ranks.randn(*shape) for _ in range(2))
            x, dy = (t.contiguous(memory_format=layout) if is_last else t for t, is_last in zip((x, dy), last, strict=True))
            ranks.compare(ours, oracle, x, dy, 1e-12)


def settings(ranks: Ranks) -> None:
    for options in [{"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.5, "momentum": 0.9}]:
        ours, oracle = ranks.pair(3, **options)
        for _ in range(3):
            ranks.compare(ours, oracle, ranks.randn(8, 3, 4), ranks.randn(8, 3, 4), 1e-12)


def one_sample_a_rank(ranks: Ranks) -> None:
    """(1, C) on each rank: torch's own single_input_per_process. One rank alone has no variance."""
    if ranks.world == 1:
        return
    ours, oracle = ranks.pair(3)
    whole = ranks.randn(ranks.world, 3)
    expected = oracle(whole)
    close(ours(whole[ranks.rank : ranks.rank + 1]), expected[ranks.rank : ranks.rank + 1], 1e-12)
    close(ours.running_var, oracle.running_var, 1e-12)


def different_sizes_running_value(ranks: Ranks) -> None:
    """Rank r has 10^(r + 1) elements, momentum 0.99, a hundred steps: the pooled mean and variance."""
    ours, oracle = ranks.pair(1, momentum=0.99)
    parts = [ranks.randn(10 ** (rank + 1), 1) + rank for rank in range(ranks.world)]
    for _ in range(100):
        ours(parts[ranks.rank])
        oracle(torch.cat(parts))
    close(ours.running_mean, oracle.running_mean, 1e-12)
    close(ours.running_var, oracle.running_var, 1e-12)


def one_rank_scaled(ranks: Ranks) -> None:
    """A rank whose data are fifty times as large, and data whose mean is far from 0."""
    for scale, shift in [(50.0, 0.0), (1.0, 1e4)]:
        x = ranks.randn(12, 3, 5) + shift
        x[sum(ranks.sizes(12, empty=False)[:-1]) :] *= scale
        ours, oracle = ranks.pair(3)
        ranks.compare(ours, oracle, x, ranks.randn(12, 3, 5), 1e-12 * max(1.0, shift), empty=False)


def five_steps_of_training(ranks: Ranks) -> None:
    """Parameters after each of five steps of SGD, affine and not."""
    for affine in (True, False):
        models = []
        for synchronised in (True, False):
            torch.manual_seed(4)
            layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, affine=affine), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)]
            model = nn.Sequential(*layers).double().to(ranks.device)
            models.append(syncbn.convert_sync_batchnorm(model) if synchronised else model)
        ours, whole = models
        for _ in range(5):
            x, target = ranks.randn(9, 2, 6, 6), ranks.randn(9, 2)
            for model, pick, total in ((ours, ranks.part, ranks.sum), (whole, lambda t: t, lambda t: t)):
                model.zero_grad()
                (model(pick(x)) - pick(target)).square().sum().backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= 0.01 * total(parameter.grad)
            for got, expected in zip(ours.state_dict().values(), whole.state_dict().values(), strict=True):
                close(got, expected, 1e-11)


def every_rank_empty(ranks: Ranks) -> None:
    ours, _ = ranks.pair(3)
    before = [buffer.clone() for buffer in ours.buffers()]
    x = ranks.randn(0, 3, 4, 4).requires_grad_()
    y = ours(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape and not ours.weight.grad.any()
    assert all(torch.equal(a, b) for a, b in zip(before, ours.buffers(), strict=True))


def one_rank_evaluates(ranks: Ranks) -> None:
    """While others do nothing."""
    ours, oracle = ranks.pair(3)
    if ranks.rank == 0:
        x = ranks.randn(4, 3, 5)
        close(ours.eval()(x), oracle.eval()(x), 1e-12)


def used_twice(ranks: Ranks) -> None:
    ours, oracle = ranks.pair(3)
    x = ranks.randn(8, 3, 4)
    part = ranks.part(x)
    for module, value in ((ours, part), (oracle, x)):
        (module(value) * module(value.sin()).cos()).sum().backward()
    close(ranks.sum(ours.weight.grad), oracle.weight.grad, 1e-11)
    close(ours.running_var, oracle.running_var, 1e-12)


def saved_and_loaded_in_the_middle(ranks: Ranks) -> None:
    """Bits are those of the run that was not interrupted."""
    straight, _ = ranks.pair(3, torch.float32)
    stopped, _ = ranks.pair(3, torch.float32)
    for step in range(4):
        x = ranks.part(ranks.randn(8, 3, 4, dtype=torch.float32))
        if step == 2:
            state = {name: value.clone() for name, value in stopped.state_dict().items()}
            stopped = syncbn.SyncBatchNorm(3, device=ranks.device)
            stopped.load_state_dict(state)
        assert torch.equal(straight(x), stopped(x))
    assert torch.equal(straight.running_var, stopped.running_var)


def second_derivatives(ranks: Ranks) -> None:
    ours, oracle = ranks.pair(3)
    x, dy, a = (ranks.randn(8, 3, 4) for _ in range(3))
    results = []
    for module, pick in ((ours, ranks.part), (oracle, lambda t: t)):
        leaf, given = (pick(t).clone().requires_grad_() for t in (x, dy))
        dx, dw, db = torch.autograd.grad(module(leaf), (leaf, module.weight, module.bias), given, create_graph=True)
        # What a rank does with its own part of d_weight is in its loss, and d_weight is linear in the ranks.
        loss = (dx.sin() * pick(a)).sum() + (dw * torch.arange(3.0, device=dw.device)).sum() + db.sum()
        results.append(torch.autograd.grad(loss, (leaf, given, module.weight)))
    (got_x, got_dy, got_w), (expected_x, expected_dy, expected_w) = results
    close(got_x, ranks.part(expected_x), 1e-11)
    close(got_dy, ranks.part(expected_dy), 1e-11)
    close(ranks.sum(got_w), expected_w, 1e-11)


def compiled_and_moved_on_one_rank(ranks: Ranks) -> None:
    """Hooks for saved tensors move what a graph has saved; the layer is used twice before its backward passes."""
    ours, oracle = ranks.pair(3)
    torch._dynamo.reset()
    run = torch.compile(ours, fullgraph=True, backend="aot_eager")
    moved = torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone) if ranks.rank == 0 else contextlib.nullcontext()
    for _ in range(3):
        x = ranks.randn(8, 3, 4)
        whole, part = x.clone().requires_grad_(), ranks.part(x, empty=False).clone().requires_grad_()
        (oracle(whole).sin() * oracle(whole.cos())).sum().backward()
        with moved:
            y = run(part).sin() * run(part.cos())
        y.sum().backward()
        close(part.grad, ranks.part(whole.grad, empty=False), 1e-11)


def compiled(ranks: Ranks) -> None:
    ours, oracle = ranks.pair(3)
    torch._dynamo.reset()
    run = torch.compile(ours, fullgraph=True)
    for size in (8, 9):
        x, dy = ranks.randn(size, 3, 4), ranks.randn(size, 3, 4)
        whole = x.clone().requires_grad_()
        oracle(whole).backward(dy)
        part = ranks.part(x, empty=False).clone().requires_grad_()
        run(part).backward(ranks.part(dy, empty=False))
        close(part.grad, ranks.part(whole.grad, empty=False), 1e-11)
    close(ours.running_var, oracle.running_var, 1e-12)
    ranks.same(ours.running_mean, "running_mean")
