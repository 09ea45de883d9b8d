"""From torch's process groups to groups of syncbn's: on CUDA devices over NCCL of our own, otherwise over TCP.

The sums of CUDA tensors travel as those of the process group do: over NCCL where it has NCCL, otherwise through the host.
Ranks find each other through the process group's store. Nothing is sent through the process group itself.
"""

from __future__ import annotations

import os
import secrets
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from operator import index
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from . import _syncbn, libraries
from .errors import ArgumentError, GroupError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_FOREVER = timedelta(days=365)


@dataclass
class _Joined:
    """What was made of one process group, by device."""

    groups: dict[int, _syncbn.Group] = field(default_factory=dict)
    made: int = 0


_alone: dict[int, _syncbn.Group] = {}
_joined: weakref.WeakKeyDictionary[ProcessGroup, _Joined] = weakref.WeakKeyDictionary()
_step = 0

if dist.is_available():
    from torch.distributed.distributed_c10d import _get_process_group_store, _world

    def default_group() -> ProcessGroup | None:
        """The default process group, if there is one now."""
        return _world.default_pg

else:

    def default_group() -> ProcessGroup | None:
        """The default process group: this build of torch has none."""
        return None


def step(number: int) -> None:
    """Tells every group which of the trainer's steps begins; call it once a step, on every rank.

    A rank that has skipped a step is then reported at the next sum.
    """
    global _step
    if not hasattr(number, "__index__") or not 0 <= index(number) < 2**64:
        raise ArgumentError(f"step: {number!r} is no number of a step, expected an int from 0 to below 2^64", operation="step")
    _step = index(number)
    for group in _all():
        group.set_step(_step)


def group_of(process_group: ProcessGroup | None, device: int) -> _syncbn.Group:
    """The group for layers on this device (-1 is the CPU). The first call for a process group waits for all of its ranks."""
    process_group = process_group or default_group()
    if isinstance(process_group, int):
        # What torch's new_group gives a process that is not in the group.
        raise _no_member()
    if process_group is not None and not isinstance(process_group, dist.ProcessGroup):
        text = f"process_group is a {type(process_group).__name__}, expected a torch.distributed.ProcessGroup"
        raise ArgumentError(text, operation="joining the group")
    if process_group is None or process_group.size() == 1:
        return _alone_on(device)
    joined = _joined.setdefault(process_group, _Joined())
    if device not in joined.groups:
        joined.groups[device] = _join(process_group, device, joined)
        joined.groups[device].set_step(_step)
    return joined.groups[device]


def _all() -> list[_syncbn.Group]:
    return [*_alone.values(), *(group for joined in _joined.values() for group in joined.groups.values())]


def _alone_on(device: int) -> _syncbn.Group:
    if device not in _alone:
        if device < 0:
            _alone[device] = _syncbn.Group.local(None)
        else:
            libraries.find()
            with torch.cuda.device(device):
                _alone[device] = _syncbn.Group.local(device)
        _alone[device].set_step(_step)
    return _alone[device]


def _join(process_group: ProcessGroup, device: int, joined: _Joined) -> _syncbn.Group:
    rank, size = process_group.rank(), process_group.size()
    if not 0 <= rank < size:
        raise _no_member()
    # Every rank makes its groups of one process group in the same order, as all else that is collective.
    place = f"syncbn/{joined.made}"
    joined.made += 1
    store = _get_process_group_store(process_group)
    timeout = _timeout(process_group, device)
    if device < 0:
        return _join_tcp(store, place, None, rank, size, timeout)
    libraries.find()
    with torch.cuda.device(device):
        if "nccl" in _backend_name(process_group, device):
            return _join_nccl(store, place, device, rank, size, timeout)
        return _join_tcp(store, place, device, rank, size, timeout)


def _no_member() -> ArgumentError:
    text = "this process is not one of the process group's ranks, and cannot synchronise with them"
    return ArgumentError(text, operation="joining the group")


def _join_tcp(store: Any, place: str, device: int | None, rank: int, size: int, timeout: timedelta) -> _syncbn.Group:
    seconds = timeout.total_seconds()
    if rank == 0:
        secret = secrets.token_hex(16)

        def announce(port: int) -> None:
            store.set(place, f"{secret} {_own_address()} {port}")

        with _forgotten(store, place):
            return _syncbn.Group.tcp(device, rank, size, secret=secret, seconds=seconds, announce=announce)
    secret, host, port = _read(store, place, rank, size, timeout).decode().split()
    return _syncbn.Group.tcp(device, rank, size, secret=secret, seconds=seconds, address=(host, int(port)))


def _join_nccl(store: Any, place: str, device: int, rank: int, size: int, timeout: timedelta) -> _syncbn.Group:
    with _forgotten(store, place) if rank == 0 else nullcontext():
        if rank == 0:
            store.set(place, bytes(_syncbn.nccl_id()).hex())
        unique = bytes.fromhex(_read(store, place, rank, size, timeout).decode())
        return _syncbn.Group.nccl(device, unique, rank, size, timeout.total_seconds())


@contextmanager
def _forgotten(store: Any, place: str) -> Iterator[None]:
    """What rank 0 announces is gone afterwards: a later process group may have the same store and name."""
    try:
        yield
    except BaseException:
        # The store may have failed with the group. The group's error says more.
        with suppress(Exception):
            store.delete_key(place)
        raise
    store.delete_key(place)


def _read(store: Any, place: str, rank: int, size: int, timeout: timedelta) -> bytes:
    try:
        store.wait([place], timeout)
    except Exception as error:
        text = f"joining the group: rank {rank} of {size}: rank 0 did not come within {timeout}: {error}"
        raise GroupError(text, operation="joining the group", rank=rank, world_size=size, kind="timeout", ranks=[0]) from error
    return store.get(place)


def _own_address() -> str:
    """This machine's address as the other ranks' machines reach it: that from which it reaches the job's first machine."""
    own = os.environ.get("SYNCBN_HOST")
    if own is not None:
        return own
    master = os.environ.get("MASTER_ADDR")
    if master is None:
        return socket.gethostname()
    for family, kind, _, _, address in socket.getaddrinfo(master, 9, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as probe:
                # A datagram socket sends nothing until it is told to.
                probe.connect(address)
                return probe.getsockname()[0]
        except OSError:
            continue
    return socket.gethostname()


def _timeout(process_group: ProcessGroup, device: int) -> timedelta:
    # A group may have nothing for tensors on this device; its time-out holds all the same.
    others = (process_group._get_backend(kind) for kind in process_group._device_types)
    for backend in (_backend(process_group, device), *others):
        timeout = getattr(getattr(backend, "options", None), "_timeout", None)
        if timeout is not None:
            return min(timeout, _FOREVER)
    return min(dist.default_pg_timeout, _FOREVER)


def _backend_name(process_group: ProcessGroup, device: int) -> str:
    backend = _backend(process_group, device)
    return "" if backend is None else backend.name().lower()


def _backend(process_group: ProcessGroup, device: int) -> Any | None:
    """What the process group sends such tensors by; a group of NCCL alone has nothing for tensors on the CPU."""
    kind = torch.device("cpu" if device < 0 else "cuda")
    return process_group._get_backend(kind) if kind in process_group._device_types else None
