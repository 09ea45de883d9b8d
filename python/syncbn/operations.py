"""The passes as operations of torch.library, for torch.compile, torch.func, and whoever traces.

They write nothing but results; running statistics are moved by an operation of their own. A layer is named by its key, a string,
which a graph keeps as a constant; a layer's group is joined when its first operation runs, not when it is traced.

Forward and backward passes are declared to have an effect, since ranks meet in them: so the compiler keeps their order, and never
runs a forward pass a second time in the backward pass of a checkpointed region. The region keeps their results instead.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
import torch.utils.checkpoint
from torch import Tensor

from . import double_backward
from .checkpoint import is_second_run
from .eager import Passes, dense, gradients
from .errors import Error
from .half_precision import wide

if TYPE_CHECKING:
    from ._syncbn import Token
    from .batchnorm import SyncBatchNorm

_library = torch.library.Library("syncbn", "DEF")
_layers: weakref.WeakValueDictionary[str, SyncBatchNorm] = weakref.WeakValueDictionary()
_made = 0

_KEYS = torch._C._TorchDispatchModeKey
_TRACERS = (_KEYS.FAKE, _KEYS.PROXY, _KEYS.FUNCTIONAL)

_library.define("forward(Tensor x, Tensor? weight, Tensor? bias, str layer) -> (Tensor, Tensor)")
_library.define(
    "update_running(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) num_batches_tracked, Tensor saved, Tensor x, "
    "str layer) -> ()"
)
_library.define(
    "backward(Tensor dy, Tensor x, Tensor? weight, Tensor saved, str layer, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "double_backward(Tensor d_dx, Tensor d_d_weight, Tensor d_d_bias, Tensor dy, Tensor x, Tensor? weight, Tensor saved, "
    "str layer) -> (Tensor, Tensor, Tensor)"
)


def register(module: SyncBatchNorm) -> str:
    """A key by which operations find the module, as long as it lives. It is the same on every rank that makes the same modules."""
    global _made
    _made += 1
    _layers[str(_made)] = module
    return str(_made)


def training_step(module: SyncBatchNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """y of a training step; running statistics are moved."""
    x = x if x.is_contiguous() else dense(x)
    y, saved = torch.ops.syncbn.forward(x, weight, bias, module.key)
    mean, var, count = module.running_mean, module.running_var, module.num_batches_tracked
    if mean is not None and module.track_running_stats:
        wide_mean, wide_var = wide(mean), wide(var)
        torch.ops.syncbn.update_running(wide_mean, wide_var, count, saved.detach(), x.detach(), module.key)
        if wide_mean is not mean:
            mean.copy_(wide_mean)
            var.copy_(wide_var)
    return y


def is_traced() -> bool:
    """Whether tensors are stand-ins, or what is done to them is written down: by make_fx, AOTAutograd, or a FakeTensorMode."""
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACERS)


def _module(layer: str) -> SyncBatchNorm:
    module = _layers.get(layer)
    if module is None:
        raise Error(f"a graph runs SyncBatchNorm number {layer} of this process, which is gone: keep the model as long as the graph")
    return module


def _noted(layer: str, saved: Tensor, x: Tensor, backward: bool = False) -> tuple[Passes, Token]:
    """The forward pass that has saved this, with its token for `x` in the memory order that it has now."""
    module = _module(layer)
    noted = module.tokens.find(saved, backward)
    if noted is None:
        raise Error(f"backward of layer `{module.name}`: there was no forward pass", layer=module.name)
    passes, token = noted
    return passes, token.with_input(x)


def _forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: str) -> tuple[Tensor, Tensor]:
    passes = _module(layer).passes(x)
    y = torch.empty_like(x)
    saved = _new_saved(x)
    passes.tokens.note(saved, passes, passes.layer.forward(x, y, weight, bias, None, saved, group=True))
    return y, saved


def _is_in_compiled_backward() -> bool:
    """Whether the backward pass of a compiled graph is what runs. Without effects torch puts a region's second run there, whole."""
    node = torch._C._current_autograd_node()
    return node is not None and node.name() == "CompiledFunctionBackward"


def _update_running(mean: Tensor, var: Tensor, count: Tensor, saved: Tensor, x: Tensor, layer: str) -> None:
    if is_second_run() or not HAS_EFFECTS and _is_in_compiled_backward():
        # The first run has moved them.
        return
    passes, token = _noted(layer, saved, x)
    passes.layer.update_running((mean, var, count), saved, token)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, saved: Tensor, layer: str, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    passes, token = _noted(layer, saved, x, backward=True)
    made = gradients(dy, x, weight, saved, passes.layer, token, tuple(wanted))
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in made)


def _double_backward(
    d_dx: Tensor,
    d_d_weight: Tensor,
    d_d_bias: Tensor,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    saved: Tensor,
    layer: str,
) -> tuple[Tensor, Tensor, Tensor]:
    passes, _ = _noted(layer, saved, x)
    given = tuple(gradient if gradient.numel() > 0 else None for gradient in (d_dx, d_d_weight, d_d_bias))
    d_dy, d_x, d_weight = double_backward.gradients(given, dy, x, weight, saved, passes.group, passes.layer.name)
    return d_dy, d_x, x.new_empty(0) if d_weight is None else d_weight


def _new_saved(x: Tensor) -> Tensor:
    return x.new_empty(3 * x.shape[1] + 1, dtype=torch.float64)


def _new_vector(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float64 if x.dtype is torch.float64 else torch.float32)


for _name, _function in [
    ("forward", _forward),
    ("update_running", _update_running),
    ("backward", _backward),
    ("double_backward", _double_backward),
]:
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _function, _device)


@torch.library.register_fake("syncbn::forward", lib=_library)
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, layer: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _new_saved(x)


@torch.library.register_fake("syncbn::update_running", lib=_library)
def _(mean: Tensor, var: Tensor, count: Tensor, saved: Tensor, x: Tensor, layer: str) -> None:
    return None


@torch.library.register_fake("syncbn::backward", lib=_library)
def _(dy: Tensor, x: Tensor, weight: Tensor | None, saved: Tensor, layer: str, wanted: list[bool]):
    return (
        torch.empty_like(x) if wanted[0] else x.new_empty(0),
        _new_vector(x) if wanted[1] else x.new_empty(0),
        _new_vector(x) if wanted[2] else x.new_empty(0),
    )


@torch.library.register_fake("syncbn::double_backward", lib=_library)
def _(d_dx, d_d_weight, d_d_bias, dy, x, weight, saved, layer: str):
    return torch.empty_like(dy), torch.empty_like(x), x.new_empty(0) if weight is None else torch.empty_like(weight)


def _save_forward(ctx, inputs, output) -> None:
    x, weight, bias, layer = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.layer, ctx.with_bias = layer, bias is not None
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(True)


def _differentiate_forward(ctx, dy: Tensor, _saved: Tensor):
    x, weight, saved = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    grads = torch.ops.syncbn.backward(dy, x, weight, saved, ctx.layer, wanted)
    return (*(grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True)), None)


def _save_backward(ctx, inputs, output) -> None:
    dy, x, weight, saved, layer, wanted = inputs
    ctx.save_for_backward(dy, x, weight, saved)
    ctx.layer = layer


def _differentiate_backward(ctx, d_dx: Tensor, d_d_weight: Tensor, d_d_bias: Tensor):
    dy, x, weight, saved = ctx.saved_tensors
    d_dy, d_x, d_weight = torch.ops.syncbn.double_backward(d_dx, d_d_weight, d_d_bias, dy, x, weight, saved, ctx.layer)
    return d_dy, d_x, None if weight is None else d_weight, None, None, None


def _save_layer(ctx, inputs, output) -> None:
    ctx.layer = inputs[7]


def _differentiate_double_backward(ctx, *given: Tensor):
    module = _layers.get(ctx.layer)
    double_backward.refuse_third("" if module is None else module.name)


torch.library.register_autograd("syncbn::forward", _differentiate_forward, setup_context=_save_forward, lib=_library)
torch.library.register_autograd("syncbn::backward", _differentiate_backward, setup_context=_save_backward, lib=_library)
torch.library.register_autograd(
    "syncbn::double_backward", _differentiate_double_backward, setup_context=_save_layer, lib=_library
)


def _register_effects() -> bool:
    """Whether this version of torch keeps what an operation with an effect has returned, in a checkpointed region too."""
    if not hasattr(torch.utils.checkpoint, "_is_cacheable_effect"):
        return False
    from torch._library.effects import EffectType

    for name in ("forward", "backward"):
        torch.library._register_effectful_op(f"syncbn::{name}", EffectType.ORDERED, lib=_library)
    return True


HAS_EFFECTS = _register_effects()
