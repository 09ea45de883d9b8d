"""Models to synchronised batch norm, and back."""

from __future__ import annotations

import pytest
import torch
from common import close, fill
from torch import nn
from torch.nn.utils import parametrize

import syncbn


def _model() -> nn.Module:
    shared = nn.BatchNorm2d(4, momentum=None, eps=1e-3)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), shared, nn.ReLU(), nn.Conv2d(4, 4, 1), shared)
    model = nn.ModuleDict({"body": body, "head": nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))})
    model["body"][1].eval()
    return model


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_each_kind_of_batch_norm(kind):
    old = kind(3, eps=0.5, momentum=0.25)
    fill(old)
    old.weight.requires_grad_(False)
    new = syncbn.convert_sync_batchnorm(old)
    assert type(new) is syncbn.SyncBatchNorm and new.eps == 0.5 and new.momentum == 0.25
    assert all(new.state_dict()[name].data_ptr() == value.data_ptr() for name, value in old.state_dict().items())
    assert new.weight is old.weight and not new.weight.requires_grad


def test_names_flags_and_shared_modules_stay():
    model = _model()
    names, keys = [name for name, _ in model.named_modules()], list(model.state_dict())
    converted = syncbn.convert_sync_batchnorm(model)
    assert converted is model and [name for name, _ in model.named_modules()] == names and list(model.state_dict()) == keys
    norm = model["body"][1]
    assert norm is model["body"][4] and not norm.training and norm.momentum is None and norm.name == "body.1"
    assert model["head"][0].weight is None and model["head"][0].training


def test_back_again():
    model = _model()
    x = torch.randn(5, 3, 6, 6)
    expected = model["body"].train()(x)
    back = syncbn.revert(syncbn.convert_sync_batchnorm(model))
    assert not any(isinstance(module, (syncbn.SyncBatchNorm, nn.SyncBatchNorm)) for module in back.modules())
    close(back["body"](x), expected, 1e-5)
    torch.jit.trace(back["body"].eval(), x)
    assert type(syncbn.revert(syncbn.SyncBatchNorm(3))) is syncbn.BatchNorm
    with pytest.raises(ValueError, match="2 axes"):
        syncbn.BatchNorm(3)(torch.randn(3))


def test_back_and_converted_again():
    layer = nn.BatchNorm2d(3)
    model = syncbn.convert_sync_batchnorm(syncbn.revert(syncbn.convert_sync_batchnorm(nn.Sequential(layer))))
    assert type(model[0]) is syncbn.SyncBatchNorm
    assert model[0].weight is layer.weight
    assert model[0].running_var is layer.running_var


def test_a_converted_model_gets_another_process_group():
    group = object()
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)))
    layer = model[0]
    assert syncbn.convert_sync_batchnorm(model, group)[0] is layer
    assert layer.process_group is group
    assert syncbn.convert_sync_batchnorm(model)[0].process_group is group


class _Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_layer_is_not_reverted_in_silence():
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    parametrize.register_parametrization(model[0], "weight", _Twice())
    x = torch.randn(5, 3)
    expected = model(x)
    with pytest.raises(syncbn.ArgumentError, match="layer `0` is parametrized"):
        syncbn.revert(model)
    parametrize.remove_parametrizations(model[0], "weight")
    assert torch.allclose(syncbn.revert(model)(x), expected, atol=1e-6)


def test_hooks_go_along():
    old, calls = nn.BatchNorm2d(3), []
    old.register_forward_hook(lambda *_: calls.append("forward"))
    old.register_forward_pre_hook(lambda *_: calls.append("before"))
    old.register_full_backward_hook(lambda *_: calls.append("backward"))
    new = syncbn.convert_sync_batchnorm(old)
    new(torch.randn(2, 3, 2, 2, requires_grad=True)).sum().backward()
    assert calls == ["before", "forward", "backward"]


def test_an_optimiser_made_before_goes_on():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    syncbn.convert_sync_batchnorm(model)(torch.randn(4, 3)).sum().backward()
    before = model[0].bias.clone()
    optimiser.step()
    assert not torch.equal(before, model[0].bias)


def test_subclasses_with_a_forward_of_their_own_are_left_alone():
    class Frozen(nn.BatchNorm2d):
        def forward(self, input):
            return input

    with pytest.warns(UserWarning, match="not converted.*Frozen"):
        model = syncbn.convert_sync_batchnorm(nn.Sequential(Frozen(3), nn.BatchNorm2d(3)))
    assert type(model[0]) is Frozen and type(model[1]) is syncbn.SyncBatchNorm


def test_apexs_layer_is_known_by_its_name():
    kind = type("SyncBatchNorm", (nn.modules.batchnorm._BatchNorm,), {"__module__": "apex.parallel.sync_batchnorm"})
    assert type(syncbn.convert_sync_batchnorm(kind(3))) is syncbn.SyncBatchNorm
    fused = kind(3)
    fused.fuse_relu = True
    with pytest.raises(ValueError, match="fuse_relu"):
        syncbn.convert_sync_batchnorm(fused)


def test_a_training_step_is_not_traced():
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(syncbn.Error, match="forward of layer `0`: torch.jit.trace cannot keep a training step"):
        torch.jit.trace(model, torch.randn(4, 3))
    torch.jit.script(syncbn.revert(model))


def test_evaluation_is_traced_and_exported():
    model = syncbn.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    x = torch.randn(2, 3, 6, 6)
    close(torch.jit.trace(model, x)(x.cos()), model(x.cos()), 1e-6)
    exported = torch.export.export(model, (x,))
    assert not any(word in str(node.target) for node in exported.graph.nodes for word in ("syncbn", "clone"))
    close(exported.module()(x), model(x), 1e-6)


class _Own(nn.modules.batchnorm._BatchNorm):
    def _check_input_dim(self, input):
        pass


@pytest.mark.parametrize("make", [
    lambda: nn.LazyBatchNorm2d(),
    lambda: _Own(3),
    lambda: torch.jit.script(nn.BatchNorm2d(3)),
    lambda: _with_forward(nn.BatchNorm2d(3)),
])  # fmt: skip
def test_other_batch_norms_are_left_alone_with_a_warning(make):
    layer = make()
    with pytest.warns(UserWarning, match="not converted.*BatchNorm|not converted.*_Own"):
        model = syncbn.convert_sync_batchnorm(nn.Sequential(layer))
    assert model[0] is layer


def _with_forward(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: x
    return layer


def test_a_layer_with_a_forward_of_its_own_is_not_reverted_in_silence():
    with pytest.raises(syncbn.ArgumentError, match="a forward of its own"):
        syncbn.revert(nn.Sequential(_with_forward(syncbn.SyncBatchNorm(3))))


def test_a_compiled_batch_norm_is_converted_too():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=1.0))
    model[0].compile(backend="eager")
    syncbn.convert_sync_batchnorm(model)(torch.randn(50, 3) + 5)
    assert (model[0].running_mean - 5).abs().max() < 1


def test_modules_inside_a_batch_norm_go_along():
    layer = nn.BatchNorm1d(3)
    layer.beside = nn.Linear(1, 1)
    assert syncbn.convert_sync_batchnorm(nn.Sequential(layer))[0].beside is layer.beside


def test_a_training_step_is_not_exported():
    model = nn.Sequential(syncbn.SyncBatchNorm(3, name="bn1"))
    with pytest.raises(Exception, match="layer `bn1`: torch.export cannot keep a training step"):
        torch.export.export(model, (torch.randn(5, 3),), strict=False)


@pytest.mark.parametrize("training", [True, False])
def test_torch_fx_traces_it_as_one_call(training):
    model = nn.Sequential(nn.Linear(3, 3), syncbn.SyncBatchNorm(3)).train(training)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    x = torch.randn(5, 3)
    assert torch.equal(traced(x), model(x))
