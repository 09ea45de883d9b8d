"""Ranks that run out of batches: torch's Join context, with zeros for the batch norms' sums.

    with Join([syncbn.Joinable(ddp), ddp]):
        for x in batches:
            ddp(x).sum().backward()

A rank that has joined goes on to take part in the sums of its last step, with empty batches, until the others are done. So the
statistics are those of the ranks that still have samples, and its running statistics are theirs. Every rank needs one step at least.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.join import Join, JoinHook
from torch.distributed.algorithms.join import Joinable as _Joinable

from . import eager
from .batchnorm import SyncBatchNorm
from .errors import ArgumentError, Error
from .groups import default_group


class Joinable(_Joinable):
    """The batch norms of a model, for torch.distributed.algorithms.join.Join. It comes first in Join's list.

    `model` is what is called once a step: the DistributedDataParallel, for instance. Its layers run eagerly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        first = next((layer for layer in model.modules() if isinstance(layer, SyncBatchNorm)), None)
        if first is None:
            raise ArgumentError("joining: the model has no SyncBatchNorm", operation="joining")
        self._device = next(iter(first.state_dict().values()), torch.empty(0)).device
        self._group = first.process_group or default_group()
        self._steps = eager.Record()
        model.register_forward_pre_hook(self._begin_step)
        model.register_forward_hook(self._end_forward, always_call=True)

    def _begin_step(self, model: nn.Module, inputs: Any) -> None:
        config = self._join_config
        if not config.enable or not model.training:
            return
        if not config.is_first_joinable:
            text = "joining: Join's list is to begin with syncbn's Joinable: [syncbn.Joinable(model), model]"
            raise ArgumentError(text, operation="joining")
        Join.notify_join_context(self)
        self._steps.clear()
        eager.record = self._steps

    def _end_forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        # Layers of other models are not this record's; backward passes find it by their forward pass.
        eager.record = None

    def join_hook(self, **options: Any) -> JoinHook:
        """What a rank does that has joined."""
        return _Hook(self._steps, self._device)

    @property
    def join_device(self) -> torch.device:
        """Where Join counts the ranks that have not joined."""
        return self._device

    @property
    def join_process_group(self) -> Any:
        """The ranks that join."""
        return self._group


class _Hook(JoinHook):
    """Replays the last step's passes in a thread of its own, and on CUDA on a stream of its own: the sums of another hook, of buffers and
    of gradients, run meanwhile."""

    def __init__(self, steps: eager.Record, device: torch.device) -> None:
        self._steps = steps
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._prepared = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def main_hook(self) -> None:
        if self._steps.is_empty():
            text = "joining: this rank has joined before its first step, and cannot know which sums to take part in: give it a batch"
            raise Error(text, operation="joining")
        self._wait()
        if not self._prepared:
            # CUDA may load a kernel only when the device is idle. Later it runs sums of other hooks, which wait for ranks that wait for
            # the replay.
            self._steps.prepare()
            self._prepared = True
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._thread = threading.Thread(target=self._replay, name="syncbn-join", daemon=True)
        self._thread.start()

    def post_hook(self, is_last_joiner: bool) -> None:
        self._wait()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if self._stream is not None:
                torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        if self._error is not None:
            raise self._error

    def _replay(self) -> None:
        try:
            with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                self._steps.replay()
        except BaseException as error:
            self._error = error
