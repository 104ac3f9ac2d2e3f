# SPDX-License-Identifier: Apache-2.0
"""The server on its unix socket: who talks is `front.py`, what surrounds a call is `calls.py`."""

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from pycri.cri.api import node_v1_pb2, runtime_v1_pb2
from pycri.cri.calls import Calls, Watch
from pycri.cri.front import Front
from pycri.cri.image_service import ImageService
from pycri.cri.node_service import NodeService
from pycri.cri.runtime_service import RuntimeService
from pycri.errors import WrongState

MAX_MESSAGE_BYTES = 16 << 20
"""What the kubelet takes, too (cri-client, maxMsgSize)."""
SOCKET_MODE = 0o660
_LOOK_S = 0.005


@asynccontextmanager
async def serving(
    path: str,
    runtime: RuntimeService,
    images: ImageService,
    node: NodeService,
    *,
    watches: Sequence[Watch] = (),
    grace_s: float = 10.0,
) -> AsyncIterator[None]:
    """Serve on `path` until the block ends; then refuse new calls and let running ones finish.

    watches: take note of each call. After `grace_s` what still runs is cancelled.
    Raises: WrongState if something else listens there.
    """
    _refuse_to_displace(path)
    async with asyncio.TaskGroup() as tasks:
        calls = Calls(tasks, watches)
        calls.add(runtime_v1_pb2.DESCRIPTOR.services_by_name["RuntimeService"], runtime)
        calls.add(runtime_v1_pb2.DESCRIPTOR.services_by_name["ImageService"], images)
        calls.add(node_v1_pb2.DESCRIPTOR.services_by_name["Node"], node)
        listener = _bind(path)
        inode = os.lstat(path).st_ino
        front = Front(listener, calls.take, max_message_bytes=MAX_MESSAGE_BYTES)
        front.start()
        try:
            yield
        finally:
            _unlink_own(path, inode)
            deadline = asyncio.get_running_loop().time() + grace_s
            front.go_away()
            await calls.finish(deadline)
            await _sent(front, deadline)
            front.close()


async def _sent(front: Front, deadline: float) -> None:
    """Wait until the last answers are sent."""
    while front.busy() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  rare
        await asyncio.sleep(_LOOK_S)


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


def _bind(path: str) -> socket.socket:
    """Bind in a private folder, then rename: nobody can connect before the mode is right."""
    parent = os.path.dirname(path)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    private = tempfile.mkdtemp(prefix=".", dir=parent)
    temporary = f"{private}/s"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(temporary)
        os.chown(temporary, os.geteuid(), os.getegid())
        os.chmod(temporary, SOCKET_MODE)
        os.rename(temporary, path)
    except BaseException:
        listener.close()
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.rmdir(private)
    return listener


def _unlink_own(path: str, inode: int) -> None:
    """Remove the socket unless another server has already put its own in the place."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
