"""What is a CUDA device's alone: graphs, streams, memory, several devices."""

from __future__ import annotations

import pytest
import torch
from common import close
from torch import nn

import syncbn

pytestmark = pytest.mark.cuda


def _model(kind=syncbn.SyncBatchNorm):
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 8, 3, padding=1), kind(8), nn.ReLU(), nn.Conv2d(8, 8, 1), kind(8)]
    return nn.Sequential(*layers).cuda()


def _step(model, x, optimiser):
    optimiser.zero_grad(set_to_none=False)
    loss = model(x).square().mean()
    loss.backward()
    optimiser.step()
    return loss


@pytest.mark.parametrize("batch", [4, 0])
def test_a_step_in_a_graph(batch):
    """Captured on torch's stream, after a step on another; replays are the eager steps' bits."""
    captured, eager = _model(), _model()
    optimisers = [torch.optim.SGD(model.parameters(), 0.1) for model in (captured, eager)]
    x = torch.randn(max(batch, 1), 3, 8, 8, device="cuda")[:batch]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            _step(captured, x, optimisers[0])
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _step(captured, x, optimisers[0])
    for _ in range(4):
        graph.replay()
    for _ in range(7):
        _step(eager, x, optimisers[1])
    for got, expected in zip(captured.state_dict().values(), eager.state_dict().values(), strict=True):
        assert torch.equal(got, expected)
    assert captured[1].num_batches_tracked.item() == (7 if batch else 0)


def test_graphed_callables():
    eager = _model()
    sample = torch.randn(4, 3, 8, 8, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(_model(), (sample,))
    x = torch.randn(4, 3, 8, 8, device="cuda")
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    graphed(mine).square().sum().backward()
    eager(theirs).square().sum().backward()
    close(mine.grad, theirs.grad, 1e-4)


def test_eager_steps_between_replays():
    model = _model()
    x = torch.randn(4, 3, 8, 8, device="cuda", requires_grad=True)
    model(x).sum().backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    expected = model(x).detach()
    graph.replay()
    assert torch.equal(y.detach(), expected)
    assert torch.equal(model(x).detach(), expected)


def test_another_stream():
    model, eager = _model(), _model()
    x = torch.randn(4, 3, 64, 64, device="cuda")
    for stream in (torch.cuda.Stream(), torch.cuda.Stream(priority=-1)):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = model(x)
        torch.cuda.current_stream().wait_stream(stream)
        close(y, eager(x), 1e-5)


def test_the_host_does_not_wait():
    model = syncbn.SyncBatchNorm(8).cuda()
    x = torch.randn(4, 8, 16, 16, device="cuda", requires_grad=True)
    model(x).sum().backward()
    torch.cuda.synchronize()
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(x).backward(torch.ones_like(x))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_peak_memory_is_at_most_that_of_torch():
    """One forward and backward pass: y, dx, and numbers per channel."""
    x = torch.randn(32, 64, 56, 56, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)
    peaks = []
    for kind in (nn.BatchNorm2d, syncbn.SyncBatchNorm):
        module = kind(64).cuda()
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            module(x).backward(dy)
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() - before)
            x.grad = None
    assert peaks[3] <= peaks[1] + 64 * 1024, peaks


def test_the_current_device_stays():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device: two are needed")
    with torch.cuda.device(0):
        module = syncbn.SyncBatchNorm(3).to("cuda:1")
        x = torch.randn(4, 3, device="cuda:1", requires_grad=True)
        module(x).sum().backward()
        assert torch.cuda.current_device() == 0
        assert torch.randn(2, device="cuda").device.index == 0
    other = syncbn.SyncBatchNorm(3).to("cuda:0")
    close(other(x.detach().to("cuda:0")), module(x.detach()), 1e-5)


def test_ops_under_torch_compile_reduce_overhead():
    torch._dynamo.reset()
    model, eager = _model(), _model()
    run = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(4, 3, 8, 8, device="cuda", requires_grad=True)
        other = x.detach().clone().requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        # The last step's gradients are in the graph's memory.
        model.zero_grad()
        eager.zero_grad()
        run(x).square().sum().backward()
        eager(other).square().sum().backward()
        close(x.grad, other.grad, 1e-3)
    close(model[1].running_var, eager[1].running_var, 1e-4)
