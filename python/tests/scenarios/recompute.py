"""A checkpointed region's second run asks no rank: one rank checkpoints, and the others do not."""

from __future__ import annotations

from contextlib import nullcontext

from common import close
from common_ranks import Ranks
from test_checkpoint import FORMS, model

import torch
from syncbn import operations


def _models(ranks: Ranks):
    """One over all ranks, and the oracle: the whole batch on one rank, in a group of its own."""
    models = model(ranks.device), model(ranks.device)
    for net, group in zip(models, (ranks.group, ranks.alone), strict=True):
        net[1].process_group = net[4].process_group = group
    return models


def one_rank_checkpoints(ranks: Ranks) -> None:
    for way in ("reentrant", "not_reentrant"):
        for form in FORMS:
            net, whole = _models(ranks)
            x = ranks.randn(8, 4)
            part = ranks.part(x).clone().requires_grad_()
            every = x.clone().requires_grad_()
            FORMS[form](way if ranks.rank == 0 else "plain", net)(part).pow(3).sum().backward()
            FORMS[form]("plain", whole)(every).pow(3).sum().backward()
            close(part.grad, ranks.part(every.grad), 1e-10, f"{way} {form}")
            for mine, expected in zip(net.parameters(), whole.parameters(), strict=True):
                close(ranks.sum(mine.grad), expected.grad, 1e-9, f"{way} {form}")
            for mine, expected in zip(net.buffers(), whole.buffers(), strict=True):
                close(mine, expected, 1e-12, f"{way} {form}")


def one_rank_checkpoints_and_compiles(ranks: Ranks) -> None:
    if not operations.HAS_EFFECTS:
        return
    torch._dynamo.reset()
    net, whole = _models(ranks)
    run = torch.compile(FORMS["nested"]("not_reentrant", net), fullgraph=True) if ranks.rank == 0 else FORMS["nested"]("plain", net)
    x = ranks.randn(8, 4)
    own = x.chunk(ranks.world)[ranks.rank]
    part, every = own.clone().requires_grad_(), x.clone().requires_grad_()
    run(part).pow(3).sum().backward()
    FORMS["nested"]("plain", whole)(every).pow(3).sum().backward()
    close(part.grad, every.grad.chunk(ranks.world)[ranks.rank], 1e-10)
    close(net[4].running_var, whole[4].running_var, 1e-12)


def one_rank_moves_what_one_use_saves(ranks: Ranks) -> None:
    """As save_on_cpu does. In a graph a use is known by its saved memory: the other use's is gone by then, too."""
    net, whole = _models(ranks)
    x = ranks.randn(4 * ranks.world, 3)
    own = x.chunk(ranks.world)[ranks.rank]
    part, every = own.clone().requires_grad_(), x.clone().requires_grad_()
    moved = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.clone(), lambda tensor: tensor)
    with moved if ranks.rank == 0 else nullcontext():
        y = _in_a_graph(net[1], part)
    _in_a_graph(net[1], y.tanh()).pow(3).sum().backward()
    whole[1](whole[1](every).tanh()).pow(3).sum().backward()
    close(part.grad, every.grad.chunk(ranks.world)[ranks.rank], 1e-10)


def _in_a_graph(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The operations that torch.compile puts there."""
    return operations.training_step(layer, x, layer.weight, layer.bias)
