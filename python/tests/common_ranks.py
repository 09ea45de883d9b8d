"""What the scenarios have of their rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from common import Oracle, close, fill, params_like
from torch import Tensor, nn

import syncbn


@dataclass
class Ranks:
    rank: int
    world: int
    device: torch.device
    native: bool
    """Whether every rank has a device of its own."""
    alone: object
    """A process group of this rank alone."""
    group: object = None
    """All ranks, in a group of the scenario's own: what one leaves behind is no other's business."""

    def sizes(self, whole: int, empty: bool = True) -> list[int]:
        """An uneven split of a batch, with an empty rank where there are three."""
        if self.world == 1:
            return [whole]
        if self.world == 2:
            return [1, whole - 1]
        first = 0 if empty else 1
        rest = [1 + at for at in range(1, self.world - 1)]
        return [first, *rest, whole - first - sum(rest)]

    def part(self, whole: Tensor, empty: bool = True) -> Tensor:
        """This rank's samples of a batch that every rank has made alike."""
        return whole.split(self.sizes(whole.shape[0], empty))[self.rank]

    def randn(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """The same on every rank."""
        return torch.randn(shape, dtype=torch.float64).to(self.device, dtype)

    def sum(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        total = tensor.detach().double().cpu()
        dist.all_reduce(total)
        return total.to(tensor.device)

    def same(self, tensor: Tensor, what: str) -> None:
        """Every rank has the same bits."""
        own = tensor.detach().cpu().contiguous()
        first = own.clone()
        dist.broadcast(first, 0)
        assert torch.equal(own.view(torch.uint8) if own.dim() else own, first.view(torch.uint8) if own.dim() else first), what

    def pair(
        self, channels: int, dtype: torch.dtype = torch.float64, group: object = None, **settings
    ) -> tuple[nn.Module, nn.Module]:
        """A synchronised layer, and torch's for the whole batch in f64."""
        place = {"device": self.device, "dtype": params_like(dtype), "process_group": group or self.group}
        ours = syncbn.SyncBatchNorm(channels, **place, **settings)
        oracle = Oracle(channels, device=self.device, dtype=torch.float64, **settings)
        fill(ours), fill(oracle)
        return ours, oracle

    def compare(self, ours: nn.Module, oracle: nn.Module, x: Tensor, dy: Tensor, bar: float, empty: bool = True) -> None:
        """One forward and backward pass, against the whole batch on one rank."""
        whole = x.detach().double().requires_grad_()
        expected = oracle(whole)
        expected.backward(dy.double())
        part = _like(self.part(x, empty)).requires_grad_()
        y = ours(part)
        y.backward(_like(self.part(dy, empty)))
        close(y, self.part(expected, empty), bar, "y")
        close(part.grad, self.part(whole.grad, empty), bar, "dx")
        for name, parameter in ours.named_parameters():
            wanted = oracle.get_parameter(name).grad
            close(self.sum(parameter.grad), wanted, bar * (1 + wanted.abs().max().item()), name)
            parameter.grad = oracle.get_parameter(name).grad = None
        for name, buffer in ours.named_buffers():
            close(buffer, oracle.get_buffer(name), bar, name)
            self.same(buffer, name)


def _like(part: Tensor) -> Tensor:
    return part.detach().clone(memory_format=torch.preserve_format)
