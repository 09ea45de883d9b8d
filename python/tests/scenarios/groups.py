"""Process groups: parts of the ranks, and what happens where ranks do not do the same."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from common import close
from common_ranks import Ranks
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

import syncbn
from syncbn import groups


def parts_of_the_ranks(ranks: Ranks) -> None:
    """Two groups are two worlds; a rank may be alone in one, or in none."""
    group = dist.new_group([0]), dist.new_group(list(range(1, ranks.world))) if ranks.world > 1 else None
    own = group[0] if ranks.rank == 0 else group[1]
    members = [0] if ranks.rank == 0 else list(range(1, ranks.world))
    ours, oracle = ranks.pair(3, group=own)
    parts = [ranks.randn(2 + rank, 3, 4) for rank in range(ranks.world)]
    expected = oracle(torch.cat([parts[rank] for rank in members]))
    offset = sum(parts[rank].shape[0] for rank in members if rank < ranks.rank)
    close(ours(parts[ranks.rank]), expected[offset : offset + parts[ranks.rank].shape[0]], 1e-12)
    if ranks.rank == 0 and group[1] is not None:
        outside = syncbn.SyncBatchNorm(3, process_group=group[1], device=ranks.device)
        error = _raises(syncbn.ArgumentError, "not one of the process group's ranks", lambda: outside(parts[0].float()))
        assert error.layer == "SyncBatchNorm" and "forward of layer `SyncBatchNorm`" in str(error)


def a_process_group_with_nothing_for_the_cpu(ranks: Ranks) -> None:
    """As NCCL's are: tensors on the CPU go over TCP all the same."""
    layer = syncbn.SyncBatchNorm(3, process_group=dist.new_group(backend="cuda:gloo"))
    layer(ranks.randn(4, 3, dtype=torch.float32).cpu())
    ranks.same(layer.running_var, "running_var")


def a_rank_that_never_joins(ranks: Ranks) -> None:
    """The first step of a layer names it, too."""
    group = dist.new_group(timeout=timedelta(seconds=3))
    if ranks.world == 1 or ranks.native:
        return
    if ranks.rank == 0:
        layer = syncbn.SyncBatchNorm(3, process_group=group, device=ranks.device)
        error = _raises(syncbn.GroupError, "did not come", lambda: layer(ranks.randn(4, 3, dtype=torch.float32)))
        assert error.layer == "SyncBatchNorm" and error.kind == "timeout" and error.ranks == list(range(1, ranks.world))
    dist.barrier()


def several_layers_share_a_group(ranks: Ranks) -> None:
    group = dist.new_group()
    layers = [syncbn.SyncBatchNorm(3, process_group=group, device=ranks.device) for _ in range(4)]
    for layer in layers:
        layer(ranks.randn(4, 3, dtype=torch.float32))
    assert len({id(layer.passes(ranks.randn(1, dtype=torch.float32)).group) for layer in layers}) == 1


def a_rank_that_does_not_come(ranks: Ranks) -> None:
    """An error that names layer, pass and rank, within the process group's time-out; nothing is changed."""
    group = dist.new_group(timeout=timedelta(seconds=3))
    model = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)).to(ranks.device)
    model = syncbn.convert_sync_batchnorm(model, group)
    x = ranks.randn(4, 3, 5, dtype=torch.float32)
    model(x)
    last = ranks.world - 1
    if ranks.world > 1 and ranks.rank != last:
        before = model[1].running_mean.clone()
        began = time.monotonic()
        error = _raises(syncbn.GroupError, "forward of layer `1` on rank", lambda: _until_it_fails(model, x))
        assert time.monotonic() - began < 30 and error.layer == "1" and error.rank == ranks.rank
        # On a GPU the failure is found by the call after it.
        assert error.kind in ("timeout", "unfinished") or (ranks.native and error.kind == "poisoned" and error.late), error.kind
        if not ranks.native:
            assert error.ranks == [last] and torch.equal(before, model[1].running_mean)
        again = _raises(syncbn.GroupError, "poisoned", lambda: model(x))
        assert again.kind == "poisoned"
    dist.barrier()


def ranks_out_of_step(ranks: Ranks) -> None:
    """One rank runs another layer: every rank is told which, where calls are compared (all but NCCL)."""
    if ranks.world == 1 or ranks.native:
        return
    group = dist.new_group(timeout=timedelta(seconds=20))
    model = nn.ModuleDict({"one": nn.BatchNorm1d(3), "other": nn.BatchNorm1d(3)}).to(ranks.device)
    model = syncbn.convert_sync_batchnorm(model, group)
    x = ranks.randn(4, 3, dtype=torch.float32)
    for layer in model.values():
        layer(x)
    name = "other" if ranks.rank == 0 else "one"
    error = _raises(syncbn.GroupError, "out of step", lambda: model[name](x))
    assert error.kind == "out_of_step" and "`one`" in str(error) and "`other`" in str(error), error
    dist.barrier()


def ranks_with_other_settings(ranks: Ranks) -> None:
    if ranks.world == 1 or ranks.native:
        return
    group = dist.new_group(timeout=timedelta(seconds=20))
    layer = syncbn.SyncBatchNorm(3, process_group=group, eps=1e-5 * (1 + ranks.rank), device=ranks.device)
    _raises(syncbn.GroupError, "settings", lambda: layer(ranks.randn(4, 3, dtype=torch.float32)))
    dist.barrier()


def a_rank_that_left_out_a_step(ranks: Ranks) -> None:
    if ranks.world == 1 or ranks.native:
        return
    group = dist.new_group(timeout=timedelta(seconds=20))
    layer = syncbn.SyncBatchNorm(3, process_group=group, device=ranks.device)
    x = ranks.randn(4, 3, dtype=torch.float32)
    for step in range(3):
        syncbn.step(step)
        if step < 2:
            layer(x)
    syncbn.step(2 if ranks.rank == 0 else 3)
    _raises(syncbn.GroupError, "step", lambda: layer(x))
    syncbn.step(0)
    dist.barrier()


def a_place_in_the_store_that_was_used_before(ranks: Ranks) -> None:
    """A process group that is destroyed and made again has the names of its predecessor: nobody reads what that one has left."""
    if ranks.world == 1 or ranks.native:
        return
    store = PrefixStore("again", _get_default_store())
    for time_of in range(3):
        if ranks.rank == 0:
            time.sleep(0.5)
        group = groups._join_tcp(store, "syncbn/0", None, ranks.rank, ranks.world, timedelta(seconds=10))
        numbers = torch.ones(3, dtype=torch.float64)
        group.all_reduce("sum", numbers)
        assert numbers.tolist() == [ranks.world] * 3, time_of
        dist.barrier()


def a_process_forked_from_a_rank(ranks: Ranks) -> None:
    """It is refused, and its end is not the rank's."""
    if ranks.world == 1 or ranks.device.type != "cpu":
        return
    group = dist.new_group(timeout=timedelta(seconds=20))
    layer = syncbn.SyncBatchNorm(3, process_group=group)
    x = ranks.randn(4, 3, dtype=torch.float32)
    layer(x)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _raises(syncbn.GroupError, "was forked", lambda: layer(x))
            groups._joined.pop(group)
            del layer
            gc.collect()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    layer(x)
    dist.barrier()


def half_of_a_batch_fails_on_one_rank(ranks: Ranks) -> None:
    """A bad input is that rank's error before anything is sent; the others are told at their time-out."""
    if ranks.world == 1 or ranks.native:
        return
    group = dist.new_group(timeout=timedelta(seconds=3))
    layer = syncbn.SyncBatchNorm(3, process_group=group, device=ranks.device)
    x = ranks.randn(4, 3, dtype=torch.float32)
    layer(x)
    if ranks.rank == 0:
        _raises(syncbn.ArgumentError, "5 channels", lambda: layer(ranks.randn(4, 5, dtype=torch.float32)))
    else:
        _raises(syncbn.GroupError, "did not come", lambda: layer(x))
    dist.barrier()


def _until_it_fails(model: nn.Module, x: torch.Tensor) -> None:
    """A device's sums fail when it gets to them, and the next call is told."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        model(x)
        time.sleep(0.1)


def _raises(kind: type[syncbn.Error], text: str, call) -> syncbn.Error:
    try:
        call()
    except kind as error:
        assert text in str(error), str(error)
        return error
    raise AssertionError(f"no error, expected one of {text!r}")
