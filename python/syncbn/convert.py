"""Models to synchronised batch norm, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from .batchnorm import SyncBatchNorm, name_layers
from .errors import ArgumentError

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# A compiled call is one of the old module; the others are apex's, or are set below.
_LEFT_BEHIND = ("_compiled_call_impl", "channel_last", "fuse_relu", "qconfig")
_SYNCHRONISED = (SyncBatchNorm, nn.SyncBatchNorm)
_HOOKS = (
    "_backward_pre_hooks",
    "_backward_hooks",
    "_is_full_backward_hook",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
    "_non_persistent_buffers_set",
)


def convert_sync_batchnorm(module: nn.Module, process_group: Any | None = None) -> nn.Module:
    """The model with a SyncBatchNorm in the place of every BatchNorm1d, 2d and 3d, of torch's and apex's SyncBatchNorm, and of what
    `revert` has made. A SyncBatchNorm of ours gets the process group, if one is given.

    The model is changed in place, and returned; only where the model is a batch norm itself, another module is. Parameters and
    buffers are the same objects, so an optimiser made before stays right. Names, training flags, hooks, and modules that are used
    in several places stay as they are. Other batch norms, whose forward may be another, are left alone, with a warning: subclasses of
    torch's modules, lazy and scripted ones, and those whose forward was replaced.
    """
    if process_group is not None:
        for layer in module.modules():
            if isinstance(layer, SyncBatchNorm):
                layer.process_group = process_group
    done: dict[int, nn.Module] = {}
    converted = _replaced(module, _is_convertible, lambda old: _to_sync(old, process_group), done)
    name_layers(converted)
    left = {name for each in converted.modules() if (name := _name_if_left(each)) is not None}
    if left:
        kinds = ", ".join(sorted(left))
        warnings.warn(f"not converted, since their forward may be another than batch norm's: {kinds}", stacklevel=2)
    return converted


def revert(module: nn.Module) -> nn.Module:
    """The model with a plain batch norm in the place of every SyncBatchNorm, for export to ONNX, TorchScript, or other programs.

    It takes inputs of any number of axes, as SyncBatchNorm does. The model is changed in place, and returned, as by
    `convert_sync_batchnorm`. A parametrized layer is refused: its weight or bias is computed, and has to become a parameter first.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, _SYNCHRONISED) and is_parametrized(layer):
            text = f"revert: layer `{name}` is parametrized: call torch.nn.utils.parametrize.remove_parametrizations first"
            raise ArgumentError(text, operation="revert", layer=name)
        if isinstance(layer, _SYNCHRONISED) and "forward" in layer.__dict__:
            text = f"revert: layer `{name}` has a forward of its own, which was put on the module: remove it first"
            raise ArgumentError(text, operation="revert", layer=name)
    return _replaced(module, lambda old: isinstance(old, _SYNCHRONISED), _to_plain, {})


class BatchNorm(_BatchNorm):
    """Batch norm over this process's batch, for inputs of any number of axes: what `revert` leaves behind."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of at least 2 axes (got {input.dim()})")


def _replaced(
    module: nn.Module,
    wanted: Callable[[nn.Module], bool],
    make: Callable[[Any], nn.Module],
    done: dict[int, nn.Module],
) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    if wanted(module):
        done[id(module)] = make(module)
        return done[id(module)]
    done[id(module)] = module
    for name, child in list(module._modules.items()):
        if child is not None:
            replaced = _replaced(child, wanted, make, done)
            if replaced is not child:
                module._modules[name] = replaced
    return module


def _is_convertible(module: nn.Module) -> bool:
    return (type(module) in (*_PLAIN, BatchNorm) or _is_apex(module)) and "forward" not in module.__dict__


def _name_if_left(module: nn.Module) -> str | None:
    """The kind of a batch norm that was not converted."""
    if isinstance(module, torch.jit.ScriptModule):
        name = module.original_name
        return name if "BatchNorm" in name else None
    is_left = isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm)
    return type(module).__qualname__ if is_left else None


def _is_apex(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "SyncBatchNorm" and kind.__module__.startswith("apex.") and isinstance(module, _BatchNorm)


def _to_sync(old: _BatchNorm, process_group: Any | None) -> SyncBatchNorm:
    if getattr(old, "fuse_relu", False):
        raise ValueError("a SyncBatchNorm of apex's with fuse_relu has no counterpart: put a ReLU behind it instead")
    if process_group is None:
        process_group = getattr(old, "process_group", None)
    new = SyncBatchNorm(
        old.num_features, old.eps, old.momentum, False, False, process_group, device="meta"
    )
    return _filled(new, old)


def _to_plain(old: _BatchNorm) -> BatchNorm:
    return _filled(BatchNorm(old.num_features, old.eps, old.momentum, False, False, device="meta"), old)


def _filled(new: Any, old: _BatchNorm) -> Any:
    """The same parameters, buffers, flags and hooks in another module."""
    new.affine, new.track_running_stats = old.affine, old.track_running_stats
    for name, parameter in old._parameters.items():
        new.register_parameter(name, parameter)
    for name, buffer in old._buffers.items():
        new.register_buffer(name, buffer)
    for name, child in old._modules.items():
        new.register_module(name, child)
    for hooks in _HOOKS:
        if hooks in old.__dict__:
            new.__dict__[hooks] = old.__dict__[hooks]
    # An attribute that somebody has put on the module, as trainers do.
    for name, value in old.__dict__.items():
        if name not in new.__dict__ and name not in _LEFT_BEHIND:
            new.__dict__[name] = value
    if hasattr(old, "qconfig"):
        new.qconfig = old.qconfig
    new.training = old.training
    return new
