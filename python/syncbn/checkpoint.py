"""How the second forward pass of torch.utils.checkpoint is recognised, so that it asks no rank and updates nothing.

A checkpointed region runs twice: once forward, and once more in the backward pass, for the tensors that it did not keep.
Torch makes one object for each region when it runs the first time (the frame of `use_reentrant=False`, the autograd context of
`use_reentrant=True`), and hands the same object to the second run. So the n-th use of a layer in a region is noted beside the
region's object, and the n-th use of the layer in the region's second run finds it there. Regions may be nested: a first run is
noted for every region that it is in.

A forward pass that torch.compile runs twice is recognised by the compiler: see operations.py.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils import checkpoint as _torchs

_autograd = torch._C._autograd
_FORWARD = _torchs.CheckpointFunction.forward.__code__
_BACKWARD = _torchs.CheckpointFunction.backward.__code__
# The innermost hooks for saved tensors, from PyTorch 2.8 on. Before, regions are known by their calls alone.
_top_hooks = getattr(_autograd, "_top_saved_tensors_default_hooks", None)
_CHECKPOINT = inspect.unwrap(_torchs.checkpoint).__code__
_UNPACK = next(
    const for const in _torchs._checkpoint_hook.__init__.__code__.co_consts if getattr(const, "co_name", "") == "unpack_hook"
)


def may_be_in_region() -> bool:
    """Whether it is worth looking: torch runs regions under hooks for saved tensors, or without gradients, and again in a
    backward pass."""
    return not (_no_hooks() and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1)


def _no_hooks() -> bool:
    return _top_hooks is not None and _top_hooks(True) is None


def is_second_run() -> bool:
    """Whether this thread is in a checkpointed region's second run."""
    return may_be_in_region() and _innermost_again(running_regions()) is not None


@dataclass(frozen=True)
class Region:
    """A checkpointed region that is running."""

    owner: Any
    """What the first and the second run have in common."""
    run: Any
    """What no other run of the region has."""
    again: bool
    """Whether it is the second run, or a later one."""


class Uses:
    """The uses of one layer in checkpointed regions."""

    def __init__(self) -> None:
        self._first: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self._latest: weakref.WeakKeyDictionary[Any, tuple[Any, int]] = weakref.WeakKeyDictionary()

    def find(self, regions: list[Region]) -> Any | None:
        """What the first run noted, if this is a second one; LookupError if it noted nothing."""
        innermost = _innermost_again(regions)
        if innermost is None:
            return None
        region = regions[innermost]
        run, count = self._latest.get(region.owner, (None, 0))
        count = count if run == region.run else 0
        self._latest[region.owner] = (region.run, count + 1)
        first = self._first.get(region.owner, [])
        if count >= len(first):
            raise LookupError("the layer is used more often in the second run of a checkpointed region than in its first")
        return first[count]

    def note(self, regions: list[Region], use: Any) -> None:
        """Notes a use for each region that has just run for the first time."""
        innermost = _innermost_again(regions)
        for region in regions[0 if innermost is None else innermost + 1 :]:
            self._first.setdefault(region.owner, []).append(use)


def _innermost_again(regions: list[Region]) -> int | None:
    return next((at for at in reversed(range(len(regions))) if regions[at].again), None)


def running_regions() -> list[Region]:
    """The checkpointed regions that this thread is in, from the outermost on."""
    return [*([] if _top_hooks is None else _regions_of_hooks()), *_regions_of_calls()]


def _regions_of_hooks() -> list[Region]:
    """Those of `use_reentrant=False`, which are known by their hooks for saved tensors."""
    hooks = []
    while (top := _top_hooks(True)) is not None:
        hooks.append(top)
        _autograd._pop_saved_tensors_default_hooks()
    for pack, unpack in reversed(hooks):
        _autograd._push_saved_tensors_default_hooks(pack, unpack)
    regions = (_region_of_hook(pack) for pack, _ in reversed(hooks))
    return [region for region in regions if region is not None]


def _region_of_hook(pack: Callable[..., Any]) -> Region | None:
    function = inspect.unwrap(pack)
    code = getattr(function, "__code__", None)
    if code is None or code.co_filename != _FORWARD.co_filename:
        return None
    held = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    if "target_frame_ref" in held:
        owner = held["target_frame_ref"].cell_contents()
        return None if owner is None else Region(owner, function, again=True)
    if "frame" in held:
        return Region(held["frame"].cell_contents, function, again=False)
    return None


def _regions_of_calls() -> list[Region]:
    """Those of `use_reentrant=True`, which are known by torch's functions that run them; and all, where hooks cannot be seen."""
    regions = []
    call = sys._getframe()
    while call is not None:
        region = _region_of_call(call)
        if region is not None:
            regions.append(region)
        call = call.f_back
    return regions[::-1]


def _region_of_call(call: FrameType) -> Region | None:
    code = call.f_code
    if code is _FORWARD or code is _BACKWARD:
        return Region(call.f_locals["ctx"], torch._C._current_graph_task_id(), code is _BACKWARD)
    if _top_hooks is None and code is _UNPACK:
        return Region(call.f_locals["frame"], call.f_locals["gid"], again=True)
    if _top_hooks is None and code is _CHECKPOINT and (generator := call.f_locals.get("gen")) is not None:
        frame = generator.gi_frame and generator.gi_frame.f_locals.get("new_frame")
        return None if frame is None else Region(frame, None, again=False)
    return None
