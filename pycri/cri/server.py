# SPDX-License-Identifier: Apache-2.0
"""The server on its unix socket: who talks is `front.py`, what surrounds a call is `account.py`."""

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from pycri.cri.account import Observer
from pycri.cri.api import node_v1_pb2, runtime_v1_pb2
from pycri.cri.calls import Calls
from pycri.cri.front_client import FrontClient
from pycri.cri.image_service import ImageService
from pycri.cri.node_service import NodeService
from pycri.cri.runtime_service import RuntimeService
from pycri.errors import WrongState

SOCKET_MODE = 0o660
_BACKLOG = 128


class Services(NamedTuple):
    """What is served."""

    runtime: RuntimeService
    images: ImageService
    node: NodeService


@asynccontextmanager
async def serving(
    path: str,
    front: FrontClient,
    services: Services,
    *,
    observers: Sequence[Observer] = (),
    grace_s: float = 10.0,
) -> AsyncIterator[None]:
    """Serve on `path`, through the front, until the block ends.

    Then new calls are refused, and running ones may finish.

    observers: take note of each call. After `grace_s` what still runs is cancelled.
    Raises: WrongState if something else listens there.
    """
    _refuse_to_displace(path)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        calls = Calls(tasks, observers)
        calls.add(runtime_v1_pb2.DESCRIPTOR.services_by_name["RuntimeService"], services.runtime)
        calls.add(runtime_v1_pb2.DESCRIPTOR.services_by_name["ImageService"], services.images)
        calls.add(node_v1_pb2.DESCRIPTOR.services_by_name["Node"], services.node)
        _bind(path, front.listener)
        inode = os.lstat(path).st_ino
        front.start(calls)
        try:
            yield
        finally:
            _unlink_own(path, inode)
            deadline = loop.time() + grace_s
            front.go_away()
            await calls.finish(deadline)
            await asyncio.to_thread(front.finish, max(0.0, deadline - loop.time()))
            await calls.finish(deadline)  # that came before the front heard of it


def _refuse_to_displace(path: str) -> None:
    """Let a path pass that is free or holds the socket of a process that is gone."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise WrongState(f"{path} is in the way: it is not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise WrongState(f"another process listens on {path}")


def _bind(path: str, listener: socket.socket) -> None:
    """Listen in a private folder, then rename: nobody can connect before all is right."""
    parent = os.path.dirname(path)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    private = tempfile.mkdtemp(prefix=".", dir=parent)
    temporary = f"{private}/s"
    try:
        listener.bind(temporary)
        os.chown(temporary, os.geteuid(), os.getegid())
        os.chmod(temporary, SOCKET_MODE)
        listener.listen(_BACKLOG)
        os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.rmdir(private)


def _unlink_own(path: str, inode: int) -> None:
    """Remove the socket unless another server has already put its own in the place."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
