# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests, without mounts and without processes.

A namespace is a descriptor here. It belongs to threads, not to the process: a test's body runs in a
thread that has moved to one ("the host"), and what it starts is in there too, threads and programs.
A socket stays in the namespace it was made in, so a thread of a moment makes it there.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from pycri.kernel.namespaces import make_namespaces
from pycri.kernel.syscalls import Clone, setns
from pycri.network.netlink import Netlink

T = TypeVar("T")
DEADLINE_S = 10.0


def run_as_host(body: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `body` to its end in a new network namespace that has lo up."""

    def call() -> T:
        make_namespaces(("net",))
        with Netlink.open_route() as netlink:
            netlink.set_loopback_up()
        return asyncio.run(body())

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(call).result()


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so; fail if it never is."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.01)


def run_in(path: str, call: Callable[[], T]) -> T:
    """Call a function in the network namespace that is at `path`."""

    def enter() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, Clone.NEWNET)
        finally:
            os.close(fd)
        return call()

    return _in_thread(enter)


class Namespace:
    """A network namespace; with `path` as its pin and `netlink_fd` as the spawner would pass it."""

    def __init__(self) -> None:
        def make() -> tuple[int, socket.socket]:
            make_namespaces(("net",))
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            return fd, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)

        self.fd, self._netlink = _in_thread(make)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.netlink_fd = self._netlink.fileno()

    def run(self, call: Callable[[], T]) -> T:
        """Call a function inside."""

        def enter() -> T:
            setns(self.fd, Clone.NEWNET)
            return call()

        return _in_thread(enter)

    def listen(self, address: str, port: int = 80) -> socket.socket:
        """Return a TCP socket that listens on a port of `address`, inside."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self.run(lambda: socket.create_server((address, port), family=family))

    def connect(self, address: str, port: int = 80) -> socket.socket:
        """Return a TCP socket connected from inside to a port of `address`."""
        return self.run(lambda: socket.create_connection((address, port), timeout=5))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace; its links go with it, soon. Closing twice is harmless."""
        if self.fd >= 0:
            self._netlink.close()
            os.close(self.fd)
            self.fd = -1


def _in_thread(call: Callable[[], T]) -> T:
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # noqa: BLE001 (raised again by the caller)
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
