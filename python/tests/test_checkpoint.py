"""A checkpointed region's second run moves no running statistics, and gives the same gradients. That it asks no rank is
scenarios/recompute.py's to show, where one rank checkpoints and the others do not."""

from __future__ import annotations

import pytest
import torch
from common import close
from torch import nn
from torch.utils.checkpoint import checkpoint

import syncbn

WAYS = ["reentrant", "not_reentrant", "no_early_stop"]


def run(way, function, x):
    if way == "no_early_stop":
        with torch.utils.checkpoint.set_checkpoint_early_stop(False):
            return checkpoint(function, x, use_reentrant=False)
    if way == "plain":
        return function(x)
    return checkpoint(function, x, use_reentrant=way == "reentrant")


def model(device):
    torch.manual_seed(5)
    layers = [nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3), nn.BatchNorm1d(3)]
    return syncbn.convert_sync_batchnorm(nn.Sequential(*layers).double().to(device))


def twice(net):
    """A layer used twice, with other work between."""
    return lambda x: net[4](net[1](net[0](x)).tanh() + net[1](net[0](x.sin()))) + x[:, :3]


FORMS = {
    "plain": lambda way, net: lambda x: run(way, net, x),
    "twice_in_one": lambda way, net: lambda x: run(way, twice(net), x),
    "twice_in_two": lambda way, net: lambda x: run(way, net, x) + run(way, net, x.cos()),
    "in_and_out": lambda way, net: lambda x: net(x) * run(way, net, x.cos()) + net(x.sin()),
    "nested": lambda way, net: lambda x: run(way, lambda x: run(way, net, x.cos()) + net(x), x),
    "nested_twice": lambda way, net: lambda x: run(
        way, lambda x: run(way, lambda x: run(way, net, x) * net(x), x.cos()) + run(way, net, x.sin()), x
    ),
    "part_unused": lambda way, net: lambda x: (run(way, net, x), run(way, net, x.cos()))[0],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", FORMS)
def test_a_second_run(device, way, form):
    results = []
    for function in (FORMS[form](way, net := model(device)), FORMS[form]("plain", other := model(device))):
        torch.manual_seed(1)
        x = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)
        function(x).pow(3).sum().backward()
        results.append(x.grad)
    close(*results, 1e-12)
    for mine, expected in zip(net.parameters(), other.parameters(), strict=True):
        close(mine.grad, expected.grad, 1e-10)
    for mine, expected in zip(net.buffers(), other.buffers(), strict=True):
        assert torch.equal(mine, expected)


def test_a_graph_that_is_kept_runs_again(device):
    net = model(device)
    x = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)
    y = checkpoint(lambda x: net(x) + net(x.cos()), x, use_reentrant=False).pow(3).sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second) and net[1].num_batches_tracked.item() == 2


def test_other_hooks_between(device):
    net = model(device)
    x = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)

    def inside(x):
        with torch.autograd.graph.save_on_cpu():
            return net(x)

    y = checkpoint(inside, x, use_reentrant=False)
    y.pow(3).sum().backward()
    assert net[1].num_batches_tracked.item() == 1
    expected = model(device)
    expected(leaf := x.detach().clone().requires_grad_()).pow(3).sum().backward()
    close(x.grad, leaf.grad, 1e-12)


def test_a_layer_that_runs_more_often_the_second_time_is_an_error(device):
    net, runs = model(device), []

    def unsteady(x):
        runs.append(1)
        return net(x) if len(runs) == 1 else net(x) + net(x)

    x = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)
    y = checkpoint(unsteady, x, use_reentrant=True)
    with pytest.raises(syncbn.Error, match="recomputation of layer `1`.*more often in the second run"):
        y.sum().backward()


def test_what_was_noted_goes_with_the_graph(device):
    net = model(device)
    for way in ("reentrant", "not_reentrant"):
        x = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)
        run(way, net, x).sum().backward()
        del x
    uses = net[1].passes(torch.randn(1, dtype=torch.float64, device=device)).uses
    assert len(uses._first) == 0 and len(uses._latest) == 0
