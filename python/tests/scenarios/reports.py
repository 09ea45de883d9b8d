"""Reports about the peers that need several ranks; see test_reports.py."""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist
from common import close
from common_ranks import Ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import syncbn


def pytorch_36530_some_or_all_ranks_are_empty(ranks: Ranks) -> None:
    """Gradients are there, and no statistics move where the whole batch is empty."""
    ours, oracle = ranks.pair(3)
    x = ranks.randn(6, 3, 4)
    part = (x if ranks.rank == 0 else x[:0]).clone().requires_grad_()
    whole = x.clone().requires_grad_()
    ours(part).pow(2).sum().backward()
    oracle(whole).pow(2).sum().backward()
    close(part.grad, whole.grad if ranks.rank == 0 else whole.grad[:0], 1e-12)
    close(ranks.sum(ours.weight.grad), oracle.weight.grad, 1e-11)
    close(ours.running_var, oracle.running_var, 1e-12)
    before = ours.running_var.clone()
    ours(x[:0].clone().requires_grad_()).sum().backward()
    assert torch.equal(before, ours.running_var)


def pytorch_22192_running_var_with_other_sizes_on_each_rank(ranks: Ranks) -> None:
    ours, oracle = ranks.pair(3)
    parts = [ranks.randn(2, 3, 3 + 2 * rank, 3 + 2 * rank) for rank in range(ranks.world)]
    ours(parts[ranks.rank])
    oracle(torch.cat([part.transpose(0, 1).reshape(3, -1) for part in parts], 1).t())
    close(ours.running_var, oracle.running_var, 1e-12)
    ranks.same(ours.running_var, "running_var")


def pytorch_43946_checkpointing_does_not_hang(ranks: Ranks) -> None:
    layers = [nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()]
    model = syncbn.convert_sync_batchnorm(nn.Sequential(*layers).to(ranks.device), ranks.group)
    for reentrant in (True, False):
        x = ranks.randn(4, 3, dtype=torch.float32).requires_grad_()
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    assert model[1].num_batches_tracked.item() == 2


def pytorch_44957_a_module_that_one_rank_does_not_call(ranks: Ranks) -> None:
    """An error instead of a hang."""
    if ranks.world == 1:
        return
    group = dist.new_group(timeout=timedelta(seconds=3))
    model = nn.ModuleDict({"a": nn.BatchNorm1d(3), "b": nn.BatchNorm1d(3)}).to(ranks.device)
    model = syncbn.convert_sync_batchnorm(model, group)
    x = ranks.randn(4, 3, dtype=torch.float32)
    for layer in model.values():
        layer(x)
    model["a"](x)
    began = time.monotonic()
    if ranks.rank != 0:
        try:
            while time.monotonic() - began < 30:
                model["b"](x)
                time.sleep(0.1)
        except syncbn.GroupError as error:
            assert error.layer == "b", error
        else:
            raise AssertionError("no error within 30 seconds")
    dist.barrier()


def pytorch_48988_evaluation_asks_nobody(ranks: Ranks) -> None:
    for settings in ({}, {"track_running_stats": False}):
        ours, _ = ranks.pair(3, torch.float32, **settings)
        ours.eval()
        for _ in range(ranks.rank):
            ours(ranks.randn(4, 3, dtype=torch.float32))


def pytorch_24397_evaluation_in_ddp_before_backward(ranks: Ranks) -> None:
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(ranks.device))
    model = DistributedDataParallel(model, broadcast_buffers=True)
    model.module[1].eval()
    x = ranks.randn(4, 3, dtype=torch.float32)
    (model(x).sum() + model(x.cos()).sum()).backward()


def pytorch_175024_two_forward_passes_before_backward(ranks: Ranks) -> None:
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).to(ranks.device))
    model = DistributedDataParallel(model, broadcast_buffers=True)
    x = ranks.randn(4, 3, dtype=torch.float32)
    (model(x).pow(3).sum() + model(x.cos()).pow(3).sum()).backward()


def apex_262_one_element_on_each_rank(ranks: Ranks) -> None:
    if ranks.world == 1:
        return
    ours, _ = ranks.pair(4, torch.float32)
    assert torch.isfinite(ours(ranks.randn(1, 4, dtype=torch.float32))).all()
