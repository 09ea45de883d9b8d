"""What was asked for in reports about the peers holds here: one test for each report, named by it. Those of several ranks are in
scenarios/reports.py. `pytorch` is github.com/pytorch/pytorch, `apex` is github.com/NVIDIA/apex."""

from __future__ import annotations

import pytest
import torch
from common import close, fill
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import syncbn


def test_pytorch_20634_half_inputs_with_float_parameters(device):
    module = syncbn.SyncBatchNorm(3).to(device)
    x = torch.randn(4, 3, 5, device=device, dtype=torch.float16, requires_grad=True)
    y = module(x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.float16 and module.weight.dtype == torch.float32


def test_pytorch_96203_a_model_in_half_precision(device):
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))).to(device).half()
    model(torch.randn(4, 3, device=device, dtype=torch.float16)).float().square().sum().backward()
    assert model[1].weight.grad.dtype == torch.float16 and model[1].running_mean.dtype == torch.float16
    assert torch.isfinite(model[1].running_var).all()


def test_pytorch_24397_evaluation_survives_writes_to_its_buffers(device):
    """DDP broadcasts buffers before each forward pass, between another forward pass and its backward pass."""
    module = syncbn.SyncBatchNorm(3).to(device).eval()
    fill(module)
    x = torch.randn(4, 3, device=device, requires_grad=True)
    y = module(x)
    module.running_mean.copy_(module.running_mean.clone())
    module.running_var.mul_(2)
    y.sum().backward()
    close(x.grad[0], module.weight / (module.running_var / 2 + module.eps).sqrt(), 1e-5)


def test_pytorch_63662_without_a_process_group(device):
    assert not torch.distributed.is_initialized()
    module, plain = syncbn.SyncBatchNorm(3).to(device), nn.BatchNorm1d(3).to(device)
    x = torch.randn(4, 3, device=device)
    close(module(x), plain(x), 1e-5)


def test_pytorch_61222_gradients_in_the_loss(device):
    module, x = syncbn.SyncBatchNorm(3).to(device), torch.randn(4, 3, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
    dx.square().sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.any()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_pytorch_156680_161302_107372_compiled_in_one_graph(device, momentum):
    torch._dynamo.reset()
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU()))
    model.to(device)
    torch.compile(model, fullgraph=True)(torch.randn(2, 3, 6, 6, device=device)).sum().backward()
    assert model[0].weight.grad is not None and model[1].num_batches_tracked.item() == 1


def test_pytorch_50549_channels_last_goes_through(device):
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model.to(device, memory_format=torch.channels_last)
    x = torch.randn(2, 3, 6, 6, device=device).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = model[1](model[0](x))
    (dy,) = torch.autograd.grad(y.square().sum(), y)
    (dx,) = torch.autograd.grad(y, model[0].bias, dy, retain_graph=True)
    assert y.is_contiguous(memory_format=torch.channels_last) and dx.shape == (4,)


def test_pytorch_88021_channels_last_3d_is_used_as_it_lies(device):
    """Torch's copied it to contiguous memory and back: no tensor of such a layout is made here."""
    module = syncbn.SyncBatchNorm(4).to(device)
    x = torch.randn(2, 4, 3, 5, 6, device=device).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    dy = torch.randn_like(x)

    class Layouts(TorchDispatchMode):
        seen: list[bool] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.shape == x.shape:
                self.seen.append(result.is_contiguous(memory_format=torch.channels_last_3d))
            return result

    with Layouts() as layouts:
        y = module(x)
        y.backward(dy)
    assert layouts.seen and all(layouts.seen)
    assert y.stride() == x.stride() == x.grad.stride()


def test_apex_262_inputs_of_two_axes(device):
    module, plain = syncbn.SyncBatchNorm(4).to(device), nn.BatchNorm1d(4).to(device)
    x = torch.randn(8, 4, device=device)
    close(module(x), plain(x), 1e-5)


@pytest.mark.cuda
def test_pytorch_78549_captured_in_a_graph():
    module = syncbn.SyncBatchNorm(3).cuda()
    x = torch.randn(4, 3, 5, device="cuda", requires_grad=True)
    module(x).sum().backward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(x).square().sum().backward()
    before = module.num_batches_tracked.item()
    graph.replay()
    assert module.num_batches_tracked.item() == before + 1
