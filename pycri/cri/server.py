# SPDX-License-Identifier: Apache-2.0
"""The gRPC server on its unix socket. What surrounds each call is in `calls.py`."""

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import grpc  # noqa: TID251  the edge is its home

from pycri.cri.api import node_v1_pb2_grpc, runtime_v1_pb2_grpc
from pycri.cri.calls import Calls, Watch
from pycri.cri.image_service import ImageService
from pycri.cri.node_service import NodeService
from pycri.cri.runtime_service import RuntimeService
from pycri.errors import WrongState

MAX_MESSAGE_BYTES = 16 << 20
"""What the kubelet takes, too (cri-client, maxMsgSize)."""
SOCKET_MODE = 0o660


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
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
            ],
        )
        registry = cast(Any, calls)  # stands in for a server here
        runtime_v1_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, registry)
        runtime_v1_pb2_grpc.add_ImageServiceServicer_to_server(images, registry)
        node_v1_pb2_grpc.add_NodeServicer_to_server(node, registry)
        server.add_generic_rpc_handlers((calls,))
        inode = _bind(server, path)
        try:
            await server.start()
            yield
        finally:
            _unlink_own(path, inode)
            deadline = asyncio.get_running_loop().time() + grace_s
            await server.stop(grace_s)
            await calls.finish(deadline)


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


def _bind(server: grpc.aio.Server, path: str) -> int:
    """Bind in a private folder, then rename: nobody can connect before the mode is right.

    Returns the socket's inode.
    """
    parent = os.path.dirname(path)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    private = tempfile.mkdtemp(prefix=".", dir=parent)
    temporary = f"{private}/s"
    try:
        server.add_insecure_port(f"unix:{temporary}")
        os.chown(temporary, os.geteuid(), os.getegid())
        os.chmod(temporary, SOCKET_MODE)
        os.rename(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        os.rmdir(private)
    return os.lstat(path).st_ino


def _unlink_own(path: str, inode: int) -> None:
    """Remove the socket unless another server has already put its own in the place."""
    with suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
