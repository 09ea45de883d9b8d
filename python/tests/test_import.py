"""The package where things are missing: it is imported all the same, and says what it lacks when that is needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import syncbn


def _run(code: str, **environment: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_torch_without_distributed():
    print(_run(
        "import torch.distributed; torch.distributed.is_available = lambda: False; import torch, syncbn\n"
        "m = syncbn.SyncBatchNorm(3); m(torch.randn(4, 3)).sum().backward(); assert not hasattr(syncbn, 'Joinable')"
    ))  # fmt: skip


def test_without_a_cuda_device():
    _run("import torch, syncbn; syncbn.SyncBatchNorm(3)(torch.randn(4, 3)).sum().backward()", CUDA_VISIBLE_DEVICES="")


def test_without_nccl():
    code = (
        "import syncbn\nfrom syncbn import _syncbn\n"
        "try: _syncbn.nccl_id()\nexcept syncbn.DeviceError as error: print(error)"
    )
    assert "libnccl cannot be loaded" in _run(code, SYNCBN_NCCL="/nowhere/libnccl.so.2")


def test_without_a_driver():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a driver")
    with pytest.raises(syncbn.DeviceError, match="libcuda cannot be loaded|no CUDA device"):
        syncbn._syncbn.Group.local(0)


def test_layers_and_groups_are_freed_in_silence():
    script = """
import syncbn
group = syncbn._syncbn.Group.local(None)
layer = syncbn._syncbn.Layer("bn", group, 3, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, double=False)
del layer, group
print("done")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_the_version_is_the_crates():
    assert syncbn.__version__.count(".") == 2
