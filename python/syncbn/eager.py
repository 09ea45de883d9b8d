"""The passes outside torch.compile, in as little Python as they need.

A small layer's step is bound by this path, so nothing is computed twice here, and the checks are the native half's.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from . import double_backward, half_precision
from ._syncbn import Layer, Token
from .checkpoint import Uses, may_be_in_region, running_regions
from .errors import Error
from .half_precision import Running
from .tokens import Tokens

_is_grad_enabled = torch.is_grad_enabled
_empty, _empty_like = torch.empty, torch.empty_like
_CHANNELS_LAST = torch.channels_last
_functorch = torch._C._functorch


class Noted(NamedTuple):
    """A forward pass that a record has."""

    step: list[Noted | Backward]
    passes: Passes
    x: Tensor
    parameters: tuple[Any, ...]

    def backward(self) -> None:
        """Notes the backward pass."""
        self.step.append(Backward(self))


class Backward(NamedTuple):
    """The backward pass of a forward pass that a record has."""

    of: Noted


class Use(NamedTuple):
    """What one forward pass leaves for its backward pass, and for its second run."""

    passes: Passes
    saved: Tensor
    token: Token
    noted: Noted | None


class Record:
    """The passes of a step, in their order, to be run again on no samples (see joining.py)."""

    def __init__(self) -> None:
        self._step: list[Noted | Backward] = []

    def clear(self) -> None:
        """Begins another step."""
        self._step = []

    def forward(self, passes: Passes, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None) -> Noted:
        """Notes a forward pass. Of x, its memory is not kept."""
        noted = Noted(self._step, passes, x.new_empty((0, *x.shape[1:])), (weight, bias, running))
        self._step.append(noted)
        return noted

    def is_empty(self) -> bool:
        """Whether there was no step."""
        return not self._step

    def prepare(self) -> None:
        """Loads what the replay needs: meanwhile nothing may run on the device that waits for the replay."""
        for noted in self._step:
            if isinstance(noted, Noted):
                noted.passes.layer.prepare(noted.x)

    @torch.no_grad()
    def replay(self) -> None:
        """Takes part in the sums of all passes with zeros; running statistics are moved."""
        uses: dict[int, tuple[Any, ...]] = {}
        for noted in self._step:
            if isinstance(noted, Backward):
                noted = noted.of
                passes, x, (weight, _, _) = noted.passes, noted.x, noted.parameters
                passes.layer.backward(x, x, None, weight, None, None, *uses[id(noted)])
                continue
            passes, x, (weight, bias, running) = noted.passes, noted.x, noted.parameters
            saved = _empty(3 * passes.channels + 1, dtype=torch.float64, device=x.device)
            token = half_precision.forward(passes.layer, x, _empty_like(x), weight, bias, running, saved)
            uses[id(noted)] = (saved, token)


record: Record | None = None
"""Where passes are noted, while a model runs forward in a Join context."""


class Passes:
    """A layer's passes on one device, in one group, with one set of settings.

    `uses` and `tokens` are the module's: settings may change between a forward pass and what comes after it.
    """

    __slots__ = ("channels", "group", "layer", "tokens", "uses")

    def __init__(self, layer: Layer, channels: int, group: Any, uses: Uses, tokens: Tokens) -> None:
        self.layer = layer
        self.channels = channels
        self.group = group
        self.uses = uses
        self.tokens = tokens

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None) -> Tensor:
        """`y` of a training step, with gradients; running statistics are moved."""
        if not x.is_contiguous():
            x = dense(x)
        if not may_be_in_region():
            return _Norm.apply(x, weight, bias, self, running, None)
        return self._forward_in_regions(x, weight, bias, running)

    def forward_transformed(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None
    ) -> Tensor:
        """The same inside a transform of torch.func."""
        if _is_batched(x):
            raise self.not_for("vmap")
        return _TransformedNorm.apply(dense(x), weight, bias, self, running)[0]

    def not_for(self, transform: str) -> Error:
        """What to raise where a transform cannot be."""
        text = f"forward of layer `{self.layer.name}`: torch.func.{transform} of a training step is not supported: every batch has one sum"
        return Error(text, operation="forward", layer=self.layer.name)

    def _forward_in_regions(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, running: Running | None
    ) -> Tensor:
        regions = running_regions()
        try:
            use = self.uses.find(regions)
        except LookupError as error:
            text = f"recomputation of layer `{self.layer.name}` on rank {self.group.rank} of {self.group.world_size}: {error}"
            place = {"rank": self.group.rank, "world_size": self.group.world_size}
            raise Error(text, operation="recomputation", layer=self.layer.name, **place) from None
        made: list[Use] = []
        y = _Norm.apply(x, weight, bias, self, running, (use, made))
        self.uses.note(regions, use or made[0])
        return y


def _is_batched(x: Tensor) -> bool:
    """Whether a vmap is among the transforms that x is in."""
    while _functorch.is_functorch_wrapped_tensor(x):
        if _functorch.is_batchedtensor(x):
            return True
        x = _functorch.get_unwrapped(x)
    return False


def dense(x: Tensor) -> Tensor:
    """The tensor itself if it is channels-last without gaps, otherwise a contiguous copy."""
    axes = x.dim()
    if axes == 4:
        # As below, in one call.
        return x if x.is_contiguous(memory_format=_CHANNELS_LAST) else x.contiguous()
    if axes > 2 and x.permute(0, *range(2, axes), 1).is_contiguous():
        return x
    return x.contiguous()


def as_laid_out(dy: Tensor, x: Tensor) -> Tensor:
    """`dy` in the memory order of `x`."""
    if dy.stride() == x.stride() or (dy.is_contiguous() and x.is_contiguous()):
        return dy
    return torch.empty_like(x).copy_(dy)


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        passes: Passes,
        running: Running | None,
        again: tuple[Use | None, list[Use]] | None,
    ) -> Tensor:
        y = _empty_like(x)
        if again is not None and again[0] is not None:
            passes, saved, token, noted = again[0]
            passes.layer.recompute(x, y, weight, bias, saved, token)
        else:
            saved = _empty(3 * passes.channels + 1, dtype=torch.float64, device=x.device)
            token = half_precision.forward(passes.layer, x, y, weight, bias, running, saved)
            noted = None if record is None else record.forward(passes, x, weight, bias, running)
            if again is not None:
                again[1].append(Use(passes, saved, token, noted))
        ctx.save_for_backward(x, weight, saved)
        ctx.use = (passes, token, noted)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        passes, token, noted = ctx.use
        if noted is not None:
            noted.backward()
        if _is_grad_enabled():
            grads = _Gradients.apply(dy, x, weight, saved, passes, token, wanted[:3])
        else:
            grads = gradients(dy, x, weight, saved, passes.layer, token, wanted)
        return (*grads, None, None, None)


class _TransformedNorm(Function):
    """As _Norm, in the form that torch.func takes."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, passes: Passes, running: Running | None
    ) -> tuple[Tensor, Tensor]:
        y = _empty_like(x)
        saved = _empty(3 * passes.channels + 1, dtype=torch.float64, device=x.device)
        passes.tokens.latest = (passes, half_precision.forward(passes.layer, x, y, weight, bias, running, saved))
        return y, saved

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, weight: Any, bias: Any, passes: Passes, running: Any) -> NoReturn:
        raise passes.not_for("vmap")

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise ctx.passes.not_for("jvp")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, passes, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])
        ctx.passes, ctx.token = passes.tokens.latest

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _saved: Tensor | None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:3]
        return (*_Gradients.apply(dy, *ctx.saved_tensors, ctx.passes, ctx.token, wanted), None, None)


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    layer: Layer,
    token: Token,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias that are wanted."""
    if not (dy.is_contiguous() and x.is_contiguous()):
        dy = as_laid_out(dy, x)
    dx = _empty_like(x) if wanted[0] else None
    d_weight = d_bias = None
    if wanted[1] or wanted[2]:
        channels = x.shape[1]
        dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
        if wanted[1]:
            d_weight = _empty(channels, dtype=dtype, device=x.device)
        if wanted[2]:
            d_bias = _empty(channels, dtype=dtype, device=x.device)
    layer.backward(x, dy, dx, weight, d_weight, d_bias, saved, token)
    return dx, d_weight, d_bias


class _Gradients(Function):
    """The backward pass where it is differentiated itself."""

    @staticmethod
    def forward(
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        saved: Tensor,
        passes: Passes,
        token: Token,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return gradients(dy, x, weight, saved, passes.layer, token, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.passes, ctx.token = inputs[4:6]

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        second = _SecondGradients.apply(*given, *ctx.saved_tensors, ctx.passes, ctx.token)
        return (*second, None, None, None, None)


class _SecondGradients(Function):
    """The backward pass of the backward pass, which is the last."""

    @staticmethod
    def forward(
        d_dx: Tensor | None,
        d_d_weight: Tensor | None,
        d_d_bias: Tensor | None,
        dy: Tensor,
        x: Tensor,
        weight: Tensor | None,
        saved: Tensor,
        passes: Passes,
        token: Token,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        group = passes.group if token.is_group else None
        return double_backward.gradients((d_dx, d_d_weight, d_d_bias), dy, x, weight, saved, group, passes.layer.name)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.layer = inputs[7].layer

    @staticmethod
    def backward(ctx: Any, *given: Tensor | None) -> tuple[Tensor | None, ...]:
        double_backward.refuse_third(ctx.layer.name)
