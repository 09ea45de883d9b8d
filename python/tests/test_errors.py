"""What does not fit is an error that names layer and pass, before anything is computed."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed import HashStore

import syncbn
from syncbn import _syncbn, groups


@pytest.mark.parametrize(("x", "text"), [
    (lambda: torch.randn(4), "number of axes of shape"),
    (lambda: torch.randn(4, 5, 2), "has 5 channels, expected 3"),
    (lambda: torch.randn(1, 3), "one element per channel"),
    (lambda: torch.randn(4, 3).long(), "I64|i64"),
    (lambda: torch.randn(4, 3, dtype=torch.float64), "holds f32, expected f64"),
    (lambda: torch.randn(4, 3, dtype=torch.complex64), "complex64"),
    (lambda: torch.randn(4, 3, device="meta"), "on meta"),
    (lambda: torch._neg_view(torch.randn(4, 3)), "resolve_neg"),
    (lambda: torch.randn(1, 3, *[2] * 7), "axes"),
])  # fmt: skip
def test_inputs_that_do_not_fit(x, text):
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(syncbn.ArgumentError, match=text) as caught:
        model(x())
    assert "layer `0`" in str(caught.value) and caught.value.layer == "0"
    assert isinstance(caught.value, ValueError)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("group", ["gloo", [0, 1]])
def test_what_is_no_process_group(group):
    module = syncbn.SyncBatchNorm(3, process_group=group)
    with pytest.raises(syncbn.ArgumentError, match="forward of layer `SyncBatchNorm`: process_group is a .*expected a torch.dist") as caught:
        module(torch.randn(4, 3))
    assert caught.value.layer == "SyncBatchNorm"


def test_a_batch_of_gradients_is_refused():
    module, x = syncbn.SyncBatchNorm(3), torch.randn(4, 3, requires_grad=True)
    y = module(x)
    with pytest.raises(syncbn.ArgumentError, match="backward of layer `SyncBatchNorm`.*dy has no memory"):
        torch.autograd.grad(y, x, torch.randn(5, 4, 3), is_grads_batched=True)


@pytest.mark.parametrize(("settings", "text"), [
    ({"eps": 0.0}, "eps"), ({"eps": float("nan")}, "eps"), ({"momentum": 2.0}, "momentum"), ({"num_features": 0}, "channels"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, text):
    module = syncbn.SyncBatchNorm(**{"num_features": 3, **settings})
    with pytest.raises(syncbn.ArgumentError, match=text):
        module(torch.randn(4, 3))


@pytest.mark.cuda
def test_a_model_on_another_device_than_its_input():
    with pytest.raises(syncbn.ArgumentError, match="is on the CPU, expected CUDA device 0"):
        syncbn.SyncBatchNorm(3)(torch.randn(4, 3, device="cuda"))
    with pytest.raises(syncbn.ArgumentError, match="is on CUDA device 0, expected the CPU"):
        syncbn.SyncBatchNorm(3).cuda()(torch.randn(4, 3))


def test_the_native_half_trusts_nobody():
    layer = _layer()
    x, saved = torch.randn(4, 3), torch.empty(10, dtype=torch.float64)
    y, w = torch.empty_like(x), torch.ones(3)
    token = layer.forward(x, y, w, w.clone(), None, saved, group=True)
    for refused in [
        lambda: layer.forward(x, x, None, None, None, saved, group=True),
        lambda: layer.forward(x, y.half(), None, None, None, saved, group=True),
        lambda: layer.forward(x, torch.empty(4, 4), None, None, None, saved, group=True),
        lambda: layer.forward(x, y, torch.ones(2), None, None, saved, group=True),
        lambda: layer.forward(x, y, torch.ones(6)[::2], None, None, saved, group=True),
        lambda: layer.forward(x, y, w, None, (w, w, torch.zeros((), dtype=torch.long)), saved, group=True),
        lambda: layer.forward(x, y, None, None, None, torch.empty(9, dtype=torch.float64), group=True),
        lambda: layer.forward([1.0], y, None, None, None, saved, group=True),
        lambda: layer.backward(x, y, torch.empty(3, 3), None, None, None, saved, token),
        lambda: layer.backward(torch.randn(5, 3), y, None, None, None, None, saved, token),
        lambda: layer.recompute(x, y.t().contiguous().t(), None, None, saved, token),
    ]:
        with pytest.raises(syncbn.ArgumentError):
            refused()
    with pytest.raises(syncbn.Error, match="another layer"):
        _layer().backward(x, y, None, None, None, None, saved, token)


class _Gone(HashStore):
    """A store whose server ends before the group is there."""

    def delete_key(self, key):
        raise RuntimeError("the store is gone")


def test_the_groups_error_comes_before_the_stores(monkeypatch):
    second = timedelta(seconds=1)
    with pytest.raises(syncbn.GroupError, match="did not come"):
        groups._join_tcp(_Gone(), "place", None, 0, 2, second)
    monkeypatch.setattr(groups, "_syncbn", SimpleNamespace(nccl_id=lambda: [1, 2], Group=SimpleNamespace(nccl=_fail)))
    with pytest.raises(syncbn.GroupError, match="nobody came"):
        groups._join_nccl(_Gone(), "place", 0, 0, 2, second)


def test_the_groups_time_out_holds_for_tensors_that_it_cannot_send():
    seconds = timedelta(seconds=7)
    backend = SimpleNamespace(options=SimpleNamespace(_timeout=seconds))
    cuda = torch.device("cuda")
    group = SimpleNamespace(_device_types=[cuda], _get_backend=lambda kind: backend)
    assert groups._timeout(group, -1) == groups._timeout(group, 0) == seconds


def _fail(*_):
    raise syncbn.GroupError("nobody came", operation="joining the group", kind="timeout", ranks=[1])


def test_the_store_forgets_a_group_that_is_made(monkeypatch):
    made = SimpleNamespace(nccl=lambda *_: "made")
    monkeypatch.setattr(groups, "_syncbn", SimpleNamespace(nccl_id=lambda: [1, 2], Group=made))
    store = HashStore()
    assert groups._join_nccl(store, "place", 0, 0, 2, timedelta(seconds=5)) == "made" and not store.check(["place"])
    with pytest.raises(RuntimeError, match="the store is gone"):
        groups._join_nccl(_Gone(), "place", 0, 0, 2, timedelta(seconds=5))


@pytest.mark.parametrize("number", [-1, 2.0, "1", 2**64, None])
def test_steps_are_counted_from_zero(number):
    syncbn.step(torch.tensor(7))
    with pytest.raises(syncbn.ArgumentError, match="no number of a step"):
        syncbn.step(number)
    syncbn.step(0)


def _layer() -> _syncbn.Layer:
    settings = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True, "double": False}
    return _syncbn.Layer("bn", _syncbn.Group.local(None), 3, **settings)
