"""What can go wrong. Every error says which layer, on which rank, in which pass, what was expected and what came."""

from __future__ import annotations


class Error(RuntimeError):
    """The failure of a layer or of a group."""

    operation: str | None
    """What was asked for: "forward", "backward", "construction", or the name of a group's sum."""
    layer: str | None
    """The layer's name: the module's qualified name in the model, if the model was converted."""
    rank: int | None
    """This process's rank in the layer's group."""
    world_size: int | None
    """The number of ranks in the layer's group."""

    def __init__(
        self,
        text: str,
        *,
        operation: str | None = None,
        layer: str | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(text)
        self.operation = operation
        self.layer = layer
        self.rank = rank
        self.world_size = world_size


class ArgumentError(Error, ValueError):
    """A tensor or a setting cannot be used. Nothing was computed, and no rank was asked."""


class DeviceError(Error):
    """The device, its driver, or one of its libraries failed or is missing."""


class GroupError(Error):
    """The ranks could not meet. The group cannot be used any more: restart the job, or make a new process group."""

    kind: str
    """ "timeout", "left", "out_of_step", "disagree", "unfinished", "poisoned", "unsent", "message_length" or "transport"."""
    ranks: list[int]
    """The ranks that it is about, where they are known."""
    late: bool
    """Whether work that depends on the sum was enqueued before it failed: load a checkpoint from before."""

    def __init__(
        self, text: str, *, kind: str = "transport", ranks: list[int] | None = None, late: bool = False, **place
    ) -> None:
        super().__init__(text, **place)
        self.kind = kind
        self.ranks = ranks or []
        self.late = late
