"""Which forward pass saved a tensor, for operations in a graph, which keep tensors alone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ._syncbn import Token

if TYPE_CHECKING:
    from .eager import Passes

_MOST = 256


@dataclass(slots=True)
class _Kept:
    storage: StorageWeakRef
    run: tuple[Passes, Token]
    ran: bool = False
    """Whether its backward pass has run."""


class Tokens:
    """The tokens of one layer's forward passes, and what ran them, found again by the memory of what they saved."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self.latest: tuple[Passes, Token] | None = None

    def note(self, saved: Tensor, passes: Passes, token: Token) -> None:
        """Notes the forward pass that has saved this."""
        run = (passes, token)
        address = saved.data_ptr()
        self._kept.pop(address, None)
        self._kept[address] = _Kept(StorageWeakRef(saved.untyped_storage()), run)
        self.latest = run
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)

    def find(self, saved: Tensor, backward: bool) -> tuple[Passes, Token] | None:
        """What was noted. A tensor that was moved since, as by hooks for saved tensors, is the latest one whose memory is gone
        and whose backward pass has not run: backward passes come in the opposite order."""
        kept = self._kept.get(saved.data_ptr())
        if kept is None or kept.storage.expired():
            kept = next((kept for kept in reversed(self._kept.values()) if kept.storage.expired() and not kept.ran), None)
        if kept is None:
            return self.latest
        kept.ran |= backward
        return kept.run
