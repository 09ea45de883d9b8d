"""The module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from . import groups, operations
from ._syncbn import Layer
from .checkpoint import Uses
from .eager import Passes
from .errors import ArgumentError, Error
from .half_precision import NARROW, wide
from .tokens import Tokens

_is_compiling = torch.compiler.is_compiling
_is_jit_tracing = torch._C._is_tracing
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_transformed = torch._C._are_functorch_transforms_active
_default_group = groups.default_group
# Settings that the native half compares between ranks: a change makes another layer of it.
_SETTINGS = frozenset({"num_features", "eps", "momentum", "affine", "track_running_stats", "process_group", "name"})
# What is made anew in a copy, and in another process.
_OWN = frozenset({"_ready", "key", "uses", "tokens"})


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of the batch over all ranks of a process group.

    The arguments, the parameters' and buffers' names and the state dict are torch.nn.SyncBatchNorm's. In training, every rank of
    the group runs the same layers in the same order; a rank whose batch is empty takes part with zeros. In evaluation no rank is
    asked. Without torch.distributed, or in a group of one, the batch is this process's.

    Errors name the layer: `name` is the module's qualified name, which `convert_sync_batchnorm` and `name_layers` set.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        name: str = "SyncBatchNorm",
        **options: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **options)
        self.process_group = process_group
        self.name = name
        self._begin()

    def _begin(self) -> None:
        # Not by __setattr__, which nn.Module makes slow.
        self.__dict__.update(_ready=(None, None, None, None), uses=Uses(), tokens=Tokens(), key=operations.register(self))

    def forward(self, input: Tensor) -> Tensor:
        """y, of the shape, type and memory order of `input` (N, C, *spatial)."""
        if type(input) is Proxy:
            # torch.fx traces it as one call, as it does with torch's own modules.
            return input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), (input,), {})
        if not self.training:
            return self._evaluate(input)
        if _is_compiling() or (_dispatch_modes() and operations.is_traced()):
            return self._forward_traced(input)
        if _is_jit_tracing():
            text = f"forward of layer `{self.name}`: torch.jit.trace cannot keep a training step: call eval() or syncbn.revert first"
            raise Error(text, operation="forward", layer=self.name)
        # nn.Module looks parameters up in a slow way, and this path is what a small layer's step consists of.
        parameters, buffers = self._parameters, self._buffers
        weight = parameters["weight"] if "weight" in parameters else self.weight
        bias = parameters["bias"] if "bias" in parameters else self.bias
        running = None
        if buffers["running_mean"] is not None and self.track_running_stats:
            running = (buffers["running_mean"], buffers["running_var"], buffers["num_batches_tracked"])
        passes = self.passes(input)
        run = passes.forward if not _is_transformed() else passes.forward_transformed
        if (weight is not None and weight.dtype in NARROW) or (bias is not None and bias.dtype in NARROW):
            weight, bias = wide(weight), wide(bias)
        return run(input, weight, bias, running)

    def passes(self, x: Tensor) -> Passes:
        """What runs the passes for tensors as x is. The first call in a process group waits for all of its ranks."""
        passes, world, device, double = self.__dict__["_ready"]
        if (
            passes is None
            or world is not (self.__dict__["process_group"] or _default_group())
            or device != x.get_device()
            or double is not (x.dtype is torch.float64)
        ):
            return self._prepare(x)
        return passes

    def _prepare(self, x: Tensor) -> Passes:
        device, double = x.get_device(), x.dtype is torch.float64
        if x.device.type not in ("cpu", "cuda"):
            text = f"forward of layer `{self.name}`: x is on {x.device}, expected the CPU or a CUDA device"
            raise ArgumentError(text, operation="forward", layer=self.name)
        try:
            group = groups.group_of(self.process_group, device)
        except Error as error:
            error.layer = self.name
            error.args = (f"forward of layer `{self.name}`: {error}",)
            raise
        layer = Layer(
            self.name,
            group,
            self.num_features,
            eps=self.eps,
            momentum=self.momentum,
            affine=self.affine,
            track_running_stats=self.track_running_stats,
            double=double,
        )
        passes = Passes(layer, self.num_features, group, self.uses, self.tokens)
        self.__dict__["_ready"] = (passes, self.process_group or _default_group(), device, double)
        return passes

    def _forward_traced(self, x: Tensor) -> Tensor:
        # To the compiler of older versions every graph is an export.
        may_ask = operations.HAS_EFFECTS or not torch.compiler.is_dynamo_compiling()
        if may_ask and torch.compiler.is_exporting():
            text = f"forward of layer `{self.name}`: torch.export cannot keep a training step: call eval() or syncbn.revert first"
            raise Error(text, operation="forward", layer=self.name)
        return operations.training_step(self, x, wide(self.weight), wide(self.bias))

    def _evaluate(self, x: Tensor) -> Tensor:
        """Torch's own batch norm: with running statistics nothing is left to synchronise. Without them, the batch is this rank's."""
        parameters = self.running_mean, self.running_var, self.weight, self.bias
        if any(each is not None and each.dtype is not x.dtype for each in parameters):
            # Torch takes tensors of half precision beside others of float32, and no other mixture.
            parameters = tuple(wide(each) for each in parameters)
        mean, var, weight, bias = parameters
        wanted = torch.is_grad_enabled() and (x.requires_grad or getattr(weight, "requires_grad", False))
        if wanted and mean is not None and not (torch.compiler.is_exporting() or torch.jit.is_tracing()):
            # The backward pass needs them as they are now: until then DDP may write its broadcast over them.
            mean, var = mean.clone(), var.clone()
        return F.batch_norm(x, mean, var, weight, bias, mean is None, 0.0, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            text = f"forward of layer `{self.name}`: x has {input.dim()} axes, expected at least 2: batch and channels"
            raise ArgumentError(text, operation="forward", layer=self.name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTINGS and not _is_same(self.__dict__.get(name), value):
            self.__dict__["_ready"] = (None, None, None, None)
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _OWN}

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        # A copy is in the same group.
        memo[id(self.process_group)] = self.process_group
        copy = self.__class__.__new__(self.__class__)
        memo[id(self)] = copy
        from copy import deepcopy

        # Not by __getstate__, which torch's parametrizations forbid.
        copy.__setstate__(deepcopy(SyncBatchNorm.__getstate__(self), memo))
        return copy


def _is_same(old: Any, new: Any) -> bool:
    return old is new or (type(old) is type(new) and isinstance(new, (bool, int, float, str)) and old == new)


def name_layers(model: nn.Module) -> None:
    """Gives every SyncBatchNorm of the model its qualified name, for errors. The first name of a shared module counts."""
    for name, module in model.named_modules():
        if isinstance(module, SyncBatchNorm):
            module.name = name or type(module).__name__
