# SPDX-License-Identifier: Apache-2.0
"""The front in a thread of this process, which has others and so cannot fork it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pycri.cri.front_client import FrontClient
from pycri.cri.front_process import FrontProcess


@contextmanager
def threaded_front() -> Iterator[FrontClient]:
    """Yield the daemon's side of a front that ends with the block."""
    listener = socket.socket(socket.AF_UNIX)
    ours, theirs = socket.socketpair()
    front = FrontProcess(theirs, listener.dup(), watched=True)
    thread = threading.Thread(target=front.run, name="front", daemon=True)
    thread.start()
    client = FrontClient(ours, listener)
    try:
        yield client
    finally:
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()
        client.close()
