# SPDX-License-Identifier: Apache-2.0
"""Start the spawner, or find the one that outlived a former daemon."""

import os
import socket
import subprocess
import sys

from pycri.config import Settings
from pycri.model.host import HostFacts


def connect(settings: Settings) -> socket.socket | None:
    """Connect to a living spawner. Returns None when there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(settings.spawner_socket)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock


def start(settings: Settings, host: HostFacts) -> socket.socket:
    """Start a spawner and connect to it. It lives in a session of its own and outlives us.

    The listening socket is made here and inherited, so the first connect cannot come too early.
    """
    os.makedirs(settings.run_dir, mode=0o711, exist_ok=True)
    listener = _listen(settings.spawner_socket)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = os.open(
        f"{settings.run_dir}/spawner.log",
        os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
        0o600,
    )
    try:
        subprocess.Popen(
            _command(settings, host, listener.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            pass_fds=(listener.fileno(),),
        )
        sock.connect(settings.spawner_socket)
    except BaseException:
        sock.close()
        raise
    finally:
        os.close(log)
        listener.close()
    return sock


def _command(settings: Settings, host: HostFacts, listener_fd: int) -> list[str]:
    append = "1" if host.overlay_lowerdir_append else "0"
    arguments = [settings.run_dir, append, host.cgroup_root, str(listener_fd)]
    return [sys.executable, "-I", "-m", "pycri.spawner", *arguments]


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.path.lexists(path):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(4)
    return listener
