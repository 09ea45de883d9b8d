"""The module alone: beside torch's batch norm on one process, for all shapes, types, layouts and settings."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from common import BARS, Oracle, close, fill, params_like, passes_of
from torch import nn

import syncbn

SHAPES = [(7, 3), (5, 4, 9), (3, 5, 4, 6), (2, 3, 3, 4, 5), (4, 1, 3, 3), (6, 130), (1, 3, 8, 8)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_is_that_of_torch(device, shape, dtype):
    ours, oracle = _pair(shape[1], dtype, device)
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    dy = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    y, dx = passes_of(ours, x, dy)
    expected_y, expected_dx = passes_of(oracle, x.double(), dy.double())
    bar = BARS[dtype]
    assert y.dtype == dtype and dx.dtype == dtype
    close(y, expected_y, bar, "y")
    close(dx, expected_dx, bar, "dx")
    exact = BARS[params_like(dtype)]
    close(ours.weight.grad, oracle.weight.grad, 10 * exact, "d_weight")
    close(ours.bias.grad, oracle.bias.grad, 10 * exact, "d_bias")
    _same_statistics(ours, oracle, exact)


@pytest.mark.parametrize("settings", [
    {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"momentum": 0.7, "eps": 0.1},
    {"affine": False, "track_running_stats": False},
], ids=str)  # fmt: skip
def test_settings(device, settings):
    ours, oracle = _pair(3, torch.float64, device, **settings)
    for _ in range(3):
        x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
        for got, expected in zip(passes_of(ours, x, x.cos()), passes_of(oracle, x, x.cos()), strict=True):
            close(got, expected, 1e-12)
    _same_statistics(ours, oracle, 1e-12)
    ours.eval(), oracle.eval()
    close(ours(x), oracle(x), 1e-12, "evaluation")


@pytest.mark.parametrize("layout", ["channels_last", "permuted", "sliced", "expanded_dy"])
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 3, 2, 3, 4), (3, 4, 7)], ids=str)
def test_layouts(device, layout, shape):
    ours, oracle = _pair(shape[1], torch.float64, device)
    x = torch.randn(shape, dtype=torch.float64, device=device)
    dy = torch.randn(shape, dtype=torch.float64, device=device)
    if layout == "channels_last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    elif layout == "permuted":
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
    elif layout == "sliced":
        x = torch.randn(*shape[:-1], 2 * shape[-1], dtype=torch.float64, device=device)[..., ::2]
    else:
        dy = torch.randn(1, dtype=torch.float64, device=device).expand(shape)
    y, dx = passes_of(ours, x, dy)
    for got, expected in zip((y, dx), passes_of(oracle, x.contiguous(), dy.contiguous()), strict=True):
        close(got, expected, 1e-12)
    if layout == "channels_last":
        assert y.stride() == x.stride(), "used as it lies"


def test_gradients_that_are_not_wanted(device):
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    for wanted in [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]:
        ours, oracle = _pair(3, torch.float64, device)
        for module in (ours, oracle):
            module.weight.requires_grad_(wanted[1])
            module.bias.requires_grad_(wanted[2])
        grads = []
        for module in (ours, oracle):
            leaf = x.clone().requires_grad_(wanted[0])
            module(leaf).square().sum().backward()
            grads.append((leaf.grad, module.weight.grad, module.bias.grad))
        for got, expected in zip(*grads, strict=True):
            close(got, expected, 1e-12)


def test_without_gradients_running_statistics_move(device):
    ours, oracle = _pair(3, torch.float64, device)
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    with torch.no_grad():
        close(ours(x), oracle(x), 1e-12)
    with torch.inference_mode():
        close(ours(x).clone(), oracle(x).clone(), 1e-12)
    _same_statistics(ours, oracle, 1e-12)


def test_autocast_takes_the_type_that_comes(device):
    dtype = torch.bfloat16 if device.type == "cpu" else torch.float16
    model = nn.Sequential(nn.Conv2d(3, 4, 3), syncbn.SyncBatchNorm(4), nn.ReLU()).to(device)
    with torch.autocast(device.type, dtype):
        y = model(torch.randn(2, 3, 8, 8, device=device))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert model[1].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_of_half_precision(device, dtype):
    ours, oracle = _pair(3, torch.float32, device)
    ours.to(dtype), oracle.to(dtype).double()
    x = torch.randn(6, 3, 5, device=device).to(dtype)
    y, dx = passes_of(ours, x, x.cos())
    expected_y, expected_dx = passes_of(oracle, x.double(), x.cos().double())
    close(y, expected_y, BARS[dtype])
    close(dx, expected_dx, BARS[dtype])
    assert ours.weight.grad.dtype == dtype and ours.running_mean.dtype == dtype
    close(ours.running_var, oracle.running_var, BARS[dtype])


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}], ids=str)
@pytest.mark.parametrize("narrow", [("weight", "bias"), ("running_mean", "running_var")], ids=str)
def test_some_tensors_of_half_precision(device, narrow, settings):
    """As FSDP makes them, whose types of parameters and buffers are two."""
    ours, oracle = _pair(3, torch.float32, device, **settings)
    for name in narrow:
        if getattr(ours, name) is not None:
            getattr(ours, name).data = getattr(ours, name).data.bfloat16()
            getattr(oracle, name).data = getattr(ours, name).data.double()
    x = torch.randn(6, 3, 5, device=device)
    close(ours(x), oracle(x.double()), BARS[torch.float32])
    if ours.running_mean is not None:
        close(ours.running_var, oracle.running_var, BARS[torch.bfloat16 if "running_var" in narrow else torch.float32])
        assert ours.running_mean.dtype is (torch.bfloat16 if "running_mean" in narrow else torch.float32)


def test_running_statistics_that_are_switched_off_stay(device):
    ours, oracle = _pair(3, torch.float64, device)
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    for tracks in (False, True, False):
        for module in (ours, oracle):
            module.track_running_stats = tracks
        close(ours(x), oracle(x), 1e-12)
        close(ours.eval()(x), oracle.eval()(x), 1e-12)
        ours.train(), oracle.train()
    _same_statistics(ours, oracle, 1e-12)
    assert ours.num_batches_tracked.item() == 1


def test_state_dict_is_torchs_both_ways():
    for other in (nn.BatchNorm2d(4), nn.SyncBatchNorm(4)):
        ours = syncbn.SyncBatchNorm(4)
        fill(ours)
        other.load_state_dict(ours.state_dict(), strict=True)
        again = syncbn.SyncBatchNorm(4)
        again.load_state_dict(other.state_dict(), strict=True)
        assert list(again.state_dict()) == list(other.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))


def test_buffers_are_updated_in_place(device):
    ours = syncbn.SyncBatchNorm(3).to(device)
    mean, count = ours.running_mean, ours.num_batches_tracked
    shadow = copy.deepcopy(ours)
    ours(torch.randn(4, 3, device=device))
    assert ours.running_mean is mean and ours.num_batches_tracked is count and count.item() == 1
    assert shadow.num_batches_tracked.item() == 0
    shadow.running_mean.copy_(ours.running_mean)
    shadow(torch.randn(4, 3, device=device))
    assert shadow.num_batches_tracked.item() == 1


def test_a_module_is_saved_and_loaded_whole():
    ours = syncbn.SyncBatchNorm(3)
    ours(torch.randn(4, 3))
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.key != ours.key
    x = torch.randn(5, 3)
    assert torch.equal(loaded(x), ours(x)) and torch.equal(loaded.running_var, ours.running_var)


def test_a_parametrized_module_is_copied():
    class Exp(nn.Module):
        def forward(self, weight):
            return weight.exp()

    module = syncbn.SyncBatchNorm(3)
    nn.utils.parametrize.register_parametrization(module, "weight", Exp())
    other, x = copy.deepcopy(module), torch.randn(4, 3)
    assert torch.equal(other(x), module(x)) and other.key != module.key


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_works_without_its_parents_threads():
    program = """
import os, torch, syncbn
module, x = syncbn.SyncBatchNorm(3), torch.randn(16, 3, 64, 64)
y = module(x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(module(x), y) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_settings_may_change_between_steps(device):
    ours, oracle = _pair(3, torch.float64, device)
    x = torch.randn(4, 3, dtype=torch.float64, device=device)
    for momentum, eps in [(0.1, 1e-5), (0.5, 1e-5), (0.5, 0.2), (None, 0.2)]:
        for module in (ours, oracle):
            module.momentum, module.eps = momentum, eps
        close(ours(x), oracle(x), 1e-12)
    _same_statistics(ours, oracle, 1e-12)


def test_a_layer_used_twice_before_its_backward_pass(device):
    ours, oracle = _pair(3, torch.float64, device)
    x = torch.randn(4, 3, 5, dtype=torch.float64, device=device)
    for module in (ours, oracle):
        (module(x) * module(x.sin()).cos()).sum().backward()
    close(ours.weight.grad, oracle.weight.grad, 1e-12)
    _same_statistics(ours, oracle, 1e-12)


def test_the_same_bits_every_run(device):
    ours = syncbn.SyncBatchNorm(37).to(device)
    x, dy = torch.randn(8, 37, 33, 9, device=device), torch.randn(8, 37, 33, 9, device=device)
    first = passes_of(ours, x, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, passes_of(ours, x, dy), strict=True))


def test_a_mean_far_from_zero(device):
    ours = syncbn.SyncBatchNorm(3).to(device)
    x = (torch.randn(64, 3, 16, dtype=torch.float64) + 1e4).float().to(device)
    expected = Oracle(3).double().to(device)(x.double())
    assert (ours(x).double() - expected).norm() / expected.norm() < 5e-7


def _pair(channels, dtype, device, **settings):
    ours = syncbn.SyncBatchNorm(channels, device=device, dtype=params_like(dtype), **settings)
    oracle = Oracle(channels, device=device, dtype=torch.float64, **settings)
    fill(ours), fill(oracle)
    return ours, oracle


def _same_statistics(ours, oracle, bar):
    close(ours.running_mean, oracle.running_mean, bar, "running_mean")
    close(ours.running_var, oracle.running_var, bar, "running_var")
    if oracle.num_batches_tracked is not None:
        assert ours.num_batches_tracked.item() == oracle.num_batches_tracked.item()


class _Subclass(torch.Tensor):
    """A tensor that the native half asks for its properties one by one."""


@pytest.mark.parametrize("view", [
    lambda x: x,
    lambda x: x.contiguous(memory_format=torch.channels_last),
    lambda x: x[1:],
    lambda x: x[:, 1:4],
    lambda x: x.transpose(2, 3),
    lambda x: x.permute(1, 0, 2, 3),
    lambda x: x[:, :, :1, :1],
    lambda x: x[:, :1].contiguous(memory_format=torch.channels_last),
    lambda x: x[:, :, :0],
])  # fmt: skip
def test_views_and_subclasses_are_read_where_they_are(device, view):
    x = view(torch.randn(6, 6, 5, 4, device=device))
    results = []
    for given in (x.clone(memory_format=torch.contiguous_format), x, x.as_subclass(_Subclass)):
        module, given = syncbn.SyncBatchNorm(x.shape[1]).to(device), given.detach().requires_grad_()
        y = module(given)
        y.backward(torch.cos(x.detach()))
        results.append([y, given.grad, module.weight.grad, module.bias.grad, module.running_mean, module.running_var])
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            assert torch.allclose(got, expected, atol=1e-5)


NARROW_AND_WIDE = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", NARROW_AND_WIDE, ids=str)
@pytest.mark.parametrize("parameters", NARROW_AND_WIDE, ids=str)
def test_evaluation_takes_the_types_that_training_takes(device, dtype, parameters):
    module = syncbn.SyncBatchNorm(3).to(device, parameters)
    x = torch.randn(40, 3, device=device).to(dtype)
    expected = torch.nn.BatchNorm1d(3).to(device)
    for _ in range(3):
        assert module(x).dtype is dtype
        expected(x.float())
    y, of_float = module.eval()(x), expected.eval()(x.float())
    assert y.dtype is dtype
    bar = 1e-6 if (dtype, parameters) == (torch.float32,) * 2 else 0.05
    assert (y.float() - of_float).abs().max() < bar


def test_a_bias_of_half_precision_alone(device):
    x = torch.randn(9, 3, device=device)
    module, expected = syncbn.SyncBatchNorm(3).to(device), torch.nn.BatchNorm1d(3).to(device)
    module.bias.data = torch.full_like(module.bias, 0.5).bfloat16()
    assert torch.allclose(module(x), expected(x) + 0.5, atol=1e-5)


def test_the_same_settings_again_are_the_same_layer():
    module, x = syncbn.SyncBatchNorm(3), torch.randn(4, 3)
    passes = module.passes(x)
    module.momentum, module.eps, module.name = 0.1, 1e-5, "SyncBatchNorm"
    assert module.passes(x) is passes
    module.momentum = 0.2
    assert module.passes(x) is not passes


@pytest.mark.parametrize("way", ["eager", "checkpointed", "compiled"])
def test_settings_may_change_between_forward_and_backward(way):
    module = syncbn.SyncBatchNorm(3)
    expected = torch.nn.BatchNorm1d(3)
    run = {
        "eager": module,
        "checkpointed": lambda x: torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False),
        "compiled": torch.compile(module, backend="aot_eager"),
    }[way]
    given = torch.randn(9, 3)
    x, of_torch = given.clone().requires_grad_(), given.clone().requires_grad_()
    y, z = run(x), expected(of_torch)
    module.momentum, module.eps, module.name = 0.5, 1.0, "bn1"
    (y**3).sum().backward()
    (z**3).sum().backward()
    assert torch.allclose(x.grad, of_torch.grad, atol=1e-4)
    assert torch.allclose(module.running_mean, expected.running_mean, atol=1e-6)


def test_transforms_that_a_batch_cannot_have_are_refused_by_the_layers_name():
    module = syncbn.SyncBatchNorm(3, name="bn1")
    for refused in (
        lambda: torch.func.vmap(module)(torch.randn(2, 5, 3)),
        lambda: torch.func.vmap(module)(torch.randn(2, 5, 3, 4)),
        lambda: torch.func.jvp(module, (torch.randn(5, 3),), (torch.randn(5, 3),)),
    ):
        with pytest.raises(syncbn.Error, match="layer `bn1`: torch.func"):
            refused()
