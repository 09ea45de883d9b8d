"""Tensors of half precision (`model.half()`, FSDP's mixed precision): the passes get them as float32."""

from __future__ import annotations

import torch
from torch import Tensor

from ._syncbn import Layer, Token

NARROW = (torch.float16, torch.bfloat16)

Running = tuple[Tensor, Tensor, Tensor]


def wide(tensor: Tensor | None) -> Tensor | None:
    """The tensor, as float32 if it is of half precision."""
    return tensor.float() if tensor is not None and tensor.dtype in NARROW else tensor


def forward(
    layer: Layer, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None, saved: Tensor
) -> Token:
    """The layer's forward pass in its group. Running statistics may be of half precision; they are moved."""
    if running is None or running[0].dtype not in NARROW:
        return layer.forward(x, y, weight, bias, running, saved, group=True)
    mean, var, count = running
    wide_mean, wide_var = wide(mean), wide(var)
    token = layer.forward(x, y, weight, bias, (wide_mean, wide_var, count), saved, group=True)
    mean.copy_(wide_mean)
    if wide_var is not var:
        var.copy_(wide_var)
    return token
