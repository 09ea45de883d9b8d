from collections.abc import Callable

from torch import Tensor

class Token:
    @property
    def is_group(self) -> bool: ...
    def with_input(self, x: Tensor) -> Token: ...

class Group:
    @staticmethod
    def local(device: int | None) -> Group: ...
    @staticmethod
    def tcp(
        device: int | None,
        rank: int,
        world_size: int,
        *,
        secret: str,
        seconds: float,
        announce: Callable[[int], None] | None = None,
        address: tuple[str, int] | None = None,
    ) -> Group: ...
    @staticmethod
    def nccl(device: int, id: bytes, rank: int, world_size: int, seconds: float) -> Group: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def beneath(self) -> str | None: ...
    def set_step(self, step: int) -> None: ...
    def all_reduce(self, name: str, tensor: Tensor) -> None: ...

class Layer:
    def __init__(
        self,
        name: str,
        group: Group,
        channels: int,
        *,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        double: bool,
    ) -> None: ...
    @property
    def name(self) -> str: ...
    def prepare(self, x: Tensor) -> None: ...
    def forward(
        self,
        x: Tensor,
        y: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor, Tensor] | None,
        saved: Tensor,
        *,
        group: bool,
    ) -> Token: ...
    def recompute(
        self, x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, saved: Tensor, token: Token
    ) -> None: ...
    def update_running(self, running: tuple[Tensor, Tensor, Tensor], saved: Tensor, token: Token) -> None: ...
    def backward(
        self,
        x: Tensor,
        dy: Tensor,
        dx: Tensor | None,
        weight: Tensor | None,
        d_weight: Tensor | None,
        d_bias: Tensor | None,
        saved: Tensor,
        token: Token,
    ) -> None: ...

def nccl_id() -> list[int]: ...
