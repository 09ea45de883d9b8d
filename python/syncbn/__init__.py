"""Synchronised batch normalisation for PyTorch, on CPUs and CUDA devices.

    model = syncbn.convert_sync_batchnorm(model)

"""

import torch.distributed as _dist

from ._syncbn import __version__
from .batchnorm import SyncBatchNorm, name_layers
from .convert import BatchNorm, convert_sync_batchnorm, revert
from .errors import ArgumentError, DeviceError, Error, GroupError
from .groups import step


__all__ = [
    "ArgumentError",
    "BatchNorm",
    "DeviceError",
    "Error",
    "GroupError",
    "SyncBatchNorm",
    "__version__",
    "convert_sync_batchnorm",
    "name_layers",
    "revert",
    "step",
]

if _dist.is_available():
    from .joining import Joinable

    __all__ += ["Joinable"]
