"""What several tests compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BARS = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Oracle(nn.modules.batchnorm._BatchNorm):
    """Torch's own batch norm for any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def close(got: Tensor | None, expected: Tensor | None, bar: float, what: str = "") -> None:
    assert (got is None) == (expected is None), what
    if got is None:
        return
    got, expected = got.detach().double(), expected.detach().double().to(got.device)
    message = (lambda text: f"{what}: {text}") if what else None
    torch.testing.assert_close(got, expected, rtol=bar, atol=bar, msg=message)


def params_like(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def fill(module: nn.modules.batchnorm._BatchNorm) -> None:
    """Parameters and running statistics of no special values, the same in every process."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor, low in [(module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -1), (module.running_var, 0.5)]:
            if tensor is not None:
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + low)


def passes_of(module: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """y and dx."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    y.backward(dy)
    return y.detach(), x.grad
