"""The gradient of the backward pass, over all ranks.

With xhat = (x - mean) invstd, means over the group's M elements of a channel, and a = the gradient of dx:

    dx  = w invstd (dy - mean(dy) - xhat mean(dy xhat)),   d_weight = sum dy xhat,   d_bias = sum dy

    d_dy = w invstd (a - mean(a) - xhat mean(a xhat)) + xhat d_d_weight + d_d_bias
    d_w  = invstd sum a (dy - mean(dy) - xhat mean(dy xhat))
    d_x  = invstd (h - mean(h) - xhat mean(h xhat)) - w invstd^2 q xhat
    h    = dy d_d_weight - w invstd (a mean(dy xhat) + dy mean(a xhat))
    q    = mean(a dy) - mean(a) mean(dy) - mean(a xhat) mean(dy xhat)

It is written in torch's operations, with one sum of seven numbers a channel over the ranks. A third derivative is refused.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from ._syncbn import Group
from .errors import Error


def gradients(
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    group: Group | None,
    name: str,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of dy, x and weight; `given` are those of dx, d_weight and d_bias. Every rank of the group calls it."""
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    channels = x.shape[1]
    shape = (1, channels, *[1] * (x.dim() - 2))
    axes = [0, *range(2, x.dim())]

    def across(values: Tensor) -> Tensor:
        return values.to(wide).view(shape)

    def local_sum(values: Tensor) -> Tensor:
        return values.sum(axes, dtype=torch.float64)

    mean, _, invstd = saved[:-1].view(3, channels)
    zero = torch.zeros(channels, dtype=torch.float64, device=x.device)
    d_dx, d_d_weight, d_d_bias = given
    u = zero if d_d_weight is None else d_d_weight.to(torch.float64)
    v = zero if d_d_bias is None else d_d_bias.to(torch.float64)
    w = torch.ones_like(zero) if weight is None else weight.to(torch.float64)
    g = dy.to(wide)
    a = torch.zeros_like(g) if d_dx is None else d_dx.to(wide)
    # The difference first, in the mean's own type: its mean may be far from 0.
    xhat = ((x.to(torch.float64) - mean.view(shape)) * invstd.view(shape)).to(wide)

    g_sum, g_xhat = local_sum(g), local_sum(g * xhat)
    a_sum, a_xhat, a_g = local_sum(a), local_sum(a * xhat), local_sum(a * g)
    sums = torch.stack([g_sum, g_xhat, a_sum, a_xhat, a_g, u * g_sum, u * g_xhat])
    local_a = (a_sum, a_xhat, a_g)
    if group is not None and group.world_size > 1:
        group.all_reduce(f"double backward of {name}", sums)
    count = saved[-1].clamp(min=1)
    g1, g2, a1, a2, ag, h1, h2 = sums / count

    q = ag - a1 * g1 - a2 * g2
    scale = w * invstd
    d_dy = across(scale) * (a - across(a1) - xhat * across(a2)) + xhat * across(u) + across(v)
    h = g * across(u) - across(scale) * (a * across(g2) + g * across(a2))
    h_mean = h1 - scale * (a1 * g2 + g1 * a2)
    h_xhat = h2 - 2 * scale * (a2 * g2)
    d_x = across(invstd) * (h - across(h_mean) - xhat * across(h_xhat)) - xhat * across(scale * invstd * q)
    d_weight = None
    if weight is not None:
        a_sum, a_xhat, a_g = local_a
        d_weight = (invstd * (a_g - a_sum * g1 - a_xhat * g2)).to(weight.dtype)
    return d_dy.to(dy.dtype), d_x.to(x.dtype), d_weight


def refuse_third(name: str) -> NoReturn:
    """The ranks would have to meet once more, in sums that nobody has needed yet."""
    raise Error(f"third derivative of layer `{name}`: there are two", operation="third derivative", layer=name)
