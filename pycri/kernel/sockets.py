# SPDX-License-Identifier: Apache-2.0
"""TCP sockets of a network namespace. A socket stays in the one that its maker was in
(network_namespaces(7)), wherever it is connected from."""

import os
import socket

from pycri.kernel import namespaces
from pycri.kernel.syscalls import Clone, setns


def open_tcp_sockets() -> list[socket.socket]:
    """Open a non-blocking socket of IPv4 and, where the kernel has it, one of IPv6."""
    return [*_open(socket.AF_INET), *_open(socket.AF_INET6)]


def open_tcp_sockets_in(path: str) -> list[socket.socket]:
    """Do the same in the network namespace pinned at `path`.

    The caller, which must have one thread, is in there for these calls only.
    """
    own_fd = namespaces.open_own("net")
    try:
        namespaces.join("net", path)
        try:
            return open_tcp_sockets()
        finally:
            _return_to(own_fd)
    finally:
        os.close(own_fd)


def _open(family: socket.AddressFamily) -> list[socket.socket]:
    try:
        return [socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)]
    except OSError:
        # EAFNOSUPPORT: a kernel without this family.
        return []


def _return_to(own_fd: int) -> None:
    try:
        setns(own_fd, Clone.NEWNET)
    except OSError as error:
        # Never seen; but all that we made from here on would be in the network of a pod.
        os.write(2, f"cannot return to our own network namespace: {error}\n".encode())
        os._exit(1)
