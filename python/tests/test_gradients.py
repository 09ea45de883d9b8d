"""First and second derivatives, and what torch asks of an operation."""

from __future__ import annotations

import pytest
import torch
from common import Oracle, close, fill
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import syncbn


def _inputs(device, shape=(4, 3, 2), dtype=torch.float64):
    module = syncbn.SyncBatchNorm(shape[1], dtype=dtype, device=device)
    fill(module)
    x = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    return module, x


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 4), (2, 3, 2, 2), (2, 2, 2, 1, 2)], ids=str)
def test_gradcheck_and_gradgradcheck(device, shape):
    module, x = _inputs(device, shape)

    def run(x, weight, bias):
        return functional_call(module, {"weight": weight, "bias": bias}, (x,))

    assert gradcheck(run, (x, module.weight, module.bias))
    assert gradgradcheck(run, (x, module.weight, module.bias))
    operation = lambda x, weight, bias: torch.ops.syncbn.forward(x, weight, bias, module.key)[0]  # noqa: E731
    assert gradcheck(operation, (x, module.weight, module.bias))
    assert gradgradcheck(operation, (x, module.weight, module.bias))


def test_without_parameters(device):
    module = syncbn.SyncBatchNorm(3, affine=False, dtype=torch.float64, device=device)
    x = torch.randn(4, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(module, (x,)) and gradgradcheck(module, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_gradient_penalty_is_that_of_torch(device, dtype):
    module, x = _inputs(device, (6, 3, 4, 4), dtype)
    oracle = Oracle(3, dtype=torch.float64, device=device)
    fill(oracle)
    for norm, leaf in ((module, x), (oracle, x.detach().double().requires_grad_())):
        y = norm(leaf)
        (dx,) = torch.autograd.grad((y.sin() * y).sum(), leaf, create_graph=True)
        (dx.square().sum() + y.cos().sum()).backward()
        grads = (leaf.grad, norm.weight.grad, norm.bias.grad)
        if norm is module:
            got = grads
    for mine, expected in zip(got, grads, strict=True):
        close(mine, expected, 1e-10 if dtype is torch.float64 else 1e-3)


def test_a_third_derivative_is_refused():
    module, x = _inputs("cpu")
    (dx,) = torch.autograd.grad(module(x).pow(3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), x, create_graph=True)
    with pytest.raises(syncbn.Error, match="third derivative of layer"):
        torch.autograd.grad(ddx.sum(), x)


def test_opcheck(device):
    module, x = _inputs(device)
    weight, bias = module.weight, module.bias
    operations = torch.ops.syncbn
    y, saved = operations.forward(x, weight, bias, module.key)
    dy = torch.randn_like(y, requires_grad=True)
    buffers = (module.running_mean, module.running_var, module.num_batches_tracked)
    check = torch.library.opcheck
    check(operations.forward.default, (x, weight, bias, module.key))
    check(operations.forward.default, (x, None, None, module.key))
    check(operations.update_running.default, (*buffers, saved, x.detach(), module.key))
    for wanted in ([True, True, True], [False, True, False], [True, False, False]):
        check(operations.backward.default, (dy, x, weight, saved, module.key, wanted))
    dx, d_weight, d_bias = (g.detach() for g in operations.backward(dy, x, weight, saved, module.key, [True] * 3))
    arguments = (dx, d_weight, d_bias, dy.detach(), x.detach(), weight.detach(), saved, module.key)
    check(operations.double_backward.default, arguments)


def test_functorchs_grad(device):
    module, x = _inputs(device)
    state = {name: value.detach() for name, value in module.named_parameters()}

    def loss(state, x):
        return functional_call(module, state, (x,)).pow(3).sum()

    got, got_x = torch.func.grad(loss, argnums=(0, 1))(state, x.detach())
    module(x).pow(3).sum().backward()
    close(got["weight"], module.weight.grad, 1e-12)
    close(got_x, x.grad, 1e-12)
