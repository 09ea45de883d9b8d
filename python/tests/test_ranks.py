"""The scenarios of several ranks, as processes that torchrun starts: on CPUs over TCP; on CUDA devices over NCCL where there are as
many, and over TCP where ranks share one."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from run_ranks import names

HERE = Path(__file__).parent


@functools.cache
def _results(world: int, device: str) -> tuple[list[dict[str, str]], str]:
    """What each rank says of each scenario, and all that was printed."""
    with tempfile.TemporaryDirectory() as out:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        command = [*launch, str(HERE / "run_ranks.py"), "--device", device, "--out", out]
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1800)
        written = [Path(out, f"{rank}.json") for rank in range(world)]
        results = [json.loads(path.read_text()) if path.exists() else {} for path in written]
        return results, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks(device: torch.device, world: int, name: str) -> None:
    results, printed = _results(world, device.type)
    for rank, result in enumerate(results):
        assert name in result, f"rank {rank} of {world} did not get so far:\n{printed[-4000:]}"
        assert result[name] == "passed", f"rank {rank} of {world} {result[name]}"
