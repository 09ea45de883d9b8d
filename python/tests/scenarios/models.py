"""Around the layer: DistributedDataParallel, FSDP2, and torch's own scenarios with them."""

from __future__ import annotations

from datetime import timedelta

import torch
from common import BARS, close
from common_ranks import Ranks
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import syncbn
from syncbn import eager


def ddp_is_one_process(ranks: Ranks) -> None:
    """Five steps of a model in DDP, on parts of the same size, are those of one process on the whole batch."""
    for layout in (torch.contiguous_format, torch.channels_last):
        ours, whole = _model(ranks, True), _model(ranks, False)
        ours = ours.to(memory_format=layout)
        ddp = DistributedDataParallel(ours)
        optimisers = [torch.optim.SGD(model.parameters(), 0.05) for model in (ours, whole)]
        for step in range(5):
            syncbn.step(step)
            x = ranks.randn(2 * ranks.world, 3, 6, 6)
            for optimiser in optimisers:
                optimiser.zero_grad()
            part = x[2 * ranks.rank : 2 * ranks.rank + 2].contiguous(memory_format=layout)
            ddp(part).square().mean().backward()
            whole(x).square().mean().backward()
            for optimiser in optimisers:
                optimiser.step()
        for got, expected in zip(ours.state_dict().values(), whole.state_dict().values(), strict=True):
            close(got, expected, 1e-10)
    syncbn.step(0)


def ddp_broadcasts_no_running_statistics_late(ranks: Ranks) -> None:
    """DDP's broadcast of buffers finds on every rank what it would send."""
    model = DistributedDataParallel(_model(ranks, True), broadcast_buffers=True)
    for _ in range(3):
        model(ranks.part(ranks.randn(8, 3, 6, 6), empty=False)).sum().backward()
    for name, buffer in model.named_buffers():
        ranks.same(buffer, name)


def fsdp(ranks: Ranks) -> None:
    from torch.distributed.fsdp import fully_shard

    ours, whole = _model(ranks, True), _model(ranks, False)
    mesh = torch.distributed.init_device_mesh(ranks.device.type, (ranks.world,))
    for layer in (ours[0], ours[1]):
        fully_shard(layer, mesh=mesh)
    fully_shard(ours, mesh=mesh)
    x = ranks.randn(2 * ranks.world, 3, 6, 6)
    y = ours(x[2 * ranks.rank : 2 * ranks.rank + 2])
    y.square().mean().backward()
    expected = whole(x)
    expected.square().mean().backward()
    close(y, expected[2 * ranks.rank : 2 * ranks.rank + 2], 1e-12)
    # full_tensor() ends the process where ranks share a GPU: torch's own, of CUDA tensors over gloo.
    parts = whole[1].weight.grad.chunk(ranks.world)
    part = parts[ranks.rank] if ranks.rank < len(parts) else parts[0][:0]
    close(ours[1].weight.grad.to_local(), part, 1e-12)


def join_with_uneven_inputs(ranks: Ranks) -> None:
    """Ranks that run out of batches answer with zeros: running statistics are those of the samples that there were."""
    for broadcast, checkpointed, narrow in [(False,) * 3, (True, False, False), (False, True, False), (False, False, True)]:
        dtype = torch.float32 if narrow else torch.float64
        model = _model(ranks, True).to(dtype)
        whole = _model(ranks, False)
        ddp = DistributedDataParallel(_Checkpointed(model) if checkpointed else model, broadcast_buffers=broadcast)
        if narrow:
            _narrow_running_statistics(model)
        joinable = syncbn.Joinable(ddp)
        batches = [[ranks.randn(3, 3, 6, 6) for _ in range(2 + rank)] for rank in range(ranks.world)]
        with Join([joinable, ddp]):
            for x in batches[ranks.rank]:
                ddp(x.to(dtype)).square().mean().backward()
                held = [pass_.x.untyped_storage().nbytes() for pass_ in joinable._steps._step if hasattr(pass_, "x")]
                assert held == [0, 0], "what was noted keeps no activations"
                assert eager.record is None, "other models' layers are not noted"
        for step in range(2 + ranks.world - 1):
            there = [steps[step] for steps in batches if step < len(steps)]
            whole(torch.cat(there))
        for name, buffer in model.named_buffers():
            close(buffer, whole.get_buffer(name), BARS[torch.bfloat16] if narrow else 1e-11, name)
            ranks.same(buffer.double(), name)
        assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def joining_before_the_first_step_is_an_error(ranks: Ranks) -> None:
    """Such a rank cannot know which layers the others use."""
    if ranks.world == 1 or ranks.native:
        return
    ddp = _of_little_patience(ranks)
    try:
        with Join([syncbn.Joinable(ddp), ddp]):
            for _ in range(ranks.rank):
                ddp(ranks.randn(3, 3, 6, 6)).square().mean().backward()
    except (syncbn.Error, RuntimeError) as error:
        if ranks.rank == 0:
            assert isinstance(error, syncbn.Error) and "before its first step" in str(error), error
    else:
        raise AssertionError(f"rank {ranks.rank}: no error")


def join_without_ours_is_an_error(ranks: Ranks) -> None:
    if ranks.world == 1 or ranks.native:
        return
    ddp = _of_little_patience(ranks)
    try:
        with Join([ddp]):
            for _ in range(2 + ranks.rank):
                ddp(ranks.randn(3, 3, 6, 6)).square().mean().backward()
    except (syncbn.GroupError, RuntimeError) as error:
        if ranks.rank == ranks.world - 1:
            assert isinstance(error, syncbn.GroupError) and error.layer == "1", error
    else:
        assert ranks.rank != ranks.world - 1, "no error"


def _of_little_patience(ranks: Ranks) -> DistributedDataParallel:
    """A model in a group with a short time-out: its gradients fail with its sums."""
    group = torch.distributed.new_group(timeout=timedelta(seconds=3))
    model = syncbn.convert_sync_batchnorm(_model(ranks, False), group)
    return DistributedDataParallel(model, broadcast_buffers=False, process_group=group)


class _Checkpointed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.model, x, use_reentrant=False)


def _narrow_running_statistics(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.data = buffer.data.bfloat16()


def _model(ranks: Ranks, synchronised: bool) -> nn.Module:
    torch.manual_seed(9)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)]
    model = nn.Sequential(*layers).double().to(ranks.device)
    return syncbn.convert_sync_batchnorm(model) if synchronised else model
