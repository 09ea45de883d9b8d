"""Under torch.compile: one graph, the same numbers, and a checkpointed forward pass that runs once."""

from __future__ import annotations

import copy

import pytest
import torch
from common import close
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn import operations
from syncbn.tokens import Tokens


def _model(device):
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers).double().to(device)


@pytest.fixture
def forwards(monkeypatch):
    """How often a forward pass has met its ranks."""
    calls = []
    note = Tokens.note
    monkeypatch.setattr(Tokens, "note", lambda *run: (calls.append(1), note(*run)))
    return calls


FORMS = {
    "plain": lambda net: net,
    "checkpointed": lambda net: lambda x: checkpoint(net, x, use_reentrant=False),
    "used_twice": lambda net: lambda x: checkpoint(lambda x: net(net(x)[:, :3]), x, use_reentrant=False),
    "nested": lambda net: lambda x: checkpoint(
        lambda x: net(x) + checkpoint(net, x.cos(), use_reentrant=False), x, use_reentrant=False
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_training_in_one_graph(device, form, forwards):
    torch._dynamo.reset()
    expected = _model(device)
    net = syncbn.convert_sync_batchnorm(copy.deepcopy(expected))
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, device=device)
    uses = {"plain": 1, "checkpointed": 1}.get(form, 2)
    compiled = torch.compile(FORMS[form](net), fullgraph=True)
    for step in range(2):
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        compiled(mine).pow(2).sum().backward()
        FORMS["plain"](FORMS[form](expected))(theirs).pow(2).sum().backward() if uses == 1 else _twice(form, expected, theirs)
        close(mine.grad, theirs.grad, 1e-10)
        met = 2 * uses * (step + 1)
        assert len(forwards) == met or not operations.HAS_EFFECTS and len(forwards) > met, "each layer meets its ranks once a use"
        assert net[1].num_batches_tracked.item() == uses * (step + 1)
    for got, other in zip(net.parameters(), expected.parameters(), strict=True):
        close(got.grad, other.grad, 1e-9)


def _twice(form, net, x):
    y = net(net(x)[:, :3]) if form == "used_twice" else net(x) + net(x.cos())
    y.pow(2).sum().backward()


def test_shapes_that_change(device):
    torch._dynamo.reset()
    net = syncbn.convert_sync_batchnorm(_model(device))
    compiled = torch.compile(net, fullgraph=True, dynamic=True)
    expected = copy.deepcopy(net)
    for batch in (4, 2, 7):
        x = torch.randn(batch, 3, 5, 5, dtype=torch.float64, device=device)
        close(compiled(x), expected(x), 1e-12)
    close(net[1].running_var, expected[1].running_var, 1e-12)


def test_evaluation_and_half_precision(device):
    torch._dynamo.reset()
    net = syncbn.convert_sync_batchnorm(_model(device)).to(torch.bfloat16)
    expected = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True)
    x = torch.randn(4, 3, 5, 5, dtype=torch.bfloat16, device=device)
    close(compiled(x), expected(x), 0.1)
    close(net[1].running_var, expected[1].running_var, 0.05)
    close(compiled.eval()(x), expected.eval()(x), 0.1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_compiled_part_of_a_checkpointed_region_moves_statistics_once(device, reentrant):
    torch._dynamo.reset()
    net = syncbn.convert_sync_batchnorm(_model(device))
    expected = copy.deepcopy(net)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, device=device)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    checkpoint(compiled, mine, use_reentrant=reentrant).pow(2).sum().backward()
    expected(theirs).pow(2).sum().backward()
    close(mine.grad, theirs.grad, 1e-10)
    for got, other in zip(net.buffers(), expected.buffers(), strict=True):
        close(got, other, 1e-12)


def test_a_training_step_in_a_backward_pass_moves_statistics(device):
    torch._dynamo.reset()
    net = syncbn.convert_sync_batchnorm(_model(device))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, device=device)
    compiled(x)
    leaf = torch.ones((), device=device, requires_grad=True)
    leaf.register_hook(lambda _: (compiled(x), None)[1])
    leaf.square().backward()
    assert net[1].num_batches_tracked.item() == net[4].num_batches_tracked.item() == 2


def test_what_make_fx_writes_down_is_the_pass():
    net = syncbn.convert_sync_batchnorm(_model("cpu"))
    expected = copy.deepcopy(net)
    x, other = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    graph = make_fx(net)(x)
    expected(x)
    close(graph(other), expected(other), 1e-12)
    close(net[1].running_var, expected[1].running_var, 1e-12)


def test_fake_tensors_have_shapes():
    with FakeTensorMode():
        module, x = syncbn.SyncBatchNorm(3), torch.randn(4, 3, 5, requires_grad=True)
        y = module(x)
        y.sum().backward()
    assert y.shape == x.grad.shape == (4, 3, 5) and module.weight.grad.shape == (3,)


def test_a_graph_whose_module_is_gone_is_an_error():
    module = syncbn.SyncBatchNorm(3)
    key, x = module.key, torch.randn(4, 3)
    del module
    with pytest.raises(syncbn.Error, match="is gone"):
        torch.ops.syncbn.forward(x, None, None, key)
