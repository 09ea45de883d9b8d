"""NVRTC and NCCL: torch brings them along, in packages of NVIDIA's that the system's loader does not look into."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path


def find() -> None:
    """Tells the native half where torch's own are. SYNCBN_NVRTC and SYNCBN_NCCL, where they are set, stay as they are."""
    _set("SYNCBN_NVRTC", "libnvrtc.so.*", "cuda_nvrtc/lib", "cu*/lib")
    _set("SYNCBN_NCCL", "libnccl.so.2", "nccl/lib")


def _set(variable: str, library: str, *folders: str) -> None:
    if variable in os.environ:
        return
    found = next((path for folder in folders for path in _packages(folder, library)), None)
    if found is not None:
        os.environ[variable] = str(found)


def _packages(folder: str, library: str) -> list[Path]:
    nvidia = importlib.util.find_spec("nvidia")
    places = [] if nvidia is None else list(nvidia.submodule_search_locations or [])
    found = [path for place in places for path in Path(place).glob(f"{folder}/{library}")]
    # A version is one number here; libnvrtc.alt.so is another library, and what has more dots is a link's target.
    return sorted(path for path in found if path.suffix[1:].isdigit())
