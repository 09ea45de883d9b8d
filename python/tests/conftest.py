"""Where tests run: on the CPU always, on a CUDA device where there is one. With SYNCBN_REQUIRE=cuda, a missing one is a failure."""

from __future__ import annotations

import os

import pytest
import torch

_REQUIRED = "cuda" in os.environ.get("SYNCBN_REQUIRE", "").split(",")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "cuda" in getattr(item, "callspec", _NONE).params.values() or item.get_closest_marker("cuda"):
            item.add_marker("cuda")
            if not torch.cuda.is_available() and not _REQUIRED:
                item.add_marker(pytest.mark.skip(reason="no CUDA device: install NVIDIA's driver, and a CUDA build of torch"))


class _NONE:
    params: dict[str, object] = {}


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20)
