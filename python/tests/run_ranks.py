"""One rank of the scenarios: `torchrun --nproc-per-node N run_ranks.py --device cpu --out DIR`.

Every function of the files in scenarios/ is one. What it raises is written to DIR/RANK.json, beside its name.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]


def names() -> list[str]:
    """Every scenario, as file.function."""
    return [f"{path.stem}.{name}" for path in sorted((HERE / "scenarios").glob("*.py")) for name in _functions(path)]


def _functions(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return [line[4:].split("(")[0] for line in lines if line.startswith("def ") and not line.startswith("def _")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ranks = _join(args.device)
    results = {}
    for name in names():
        if args.only in name:
            results[name] = _run(name, ranks)
            print(f"rank {ranks.rank}: {name}: {results[name]}", file=sys.stderr, flush=True)
            if args.out:
                (args.out / f"{ranks.rank}.json").write_text(json.dumps(results))
    if any(result != "passed" for result in results.values()):
        # A rank that has failed keeps no other waiting.
        os._exit(1)
    dist.destroy_process_group()


def _join(device: str):
    from common_ranks import Ranks

    local, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    native = device == "cuda" and torch.cuda.device_count() >= count
    if device == "cuda":
        torch.cuda.set_device(local if native else 0)
    # Ranks that share a device meet in host memory: NCCL refuses them.
    backend = "cpu:gloo,cuda:nccl" if native else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=60))
    place = torch.device("cpu") if device == "cpu" else torch.device("cuda", torch.cuda.current_device())
    alone, _ = dist.new_subgroups(1)
    return Ranks(dist.get_rank(), dist.get_world_size(), place, native, alone)


def _run(name: str, ranks) -> str:
    file, function = name.split(".")
    ranks.group = dist.new_group()
    torch.manual_seed(11)
    # Whatever hangs says where.
    faulthandler.dump_traceback_later(float(os.environ.get("SYNCBN_HANG", "180")), exit=True)
    began = time.monotonic()
    try:
        getattr(importlib.import_module(f"scenarios.{file}"), function)(ranks)
    except Exception:
        return f"after {time.monotonic() - began:.1f} s:\n{traceback.format_exc()}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return "passed"


if __name__ == "__main__":
    main()
