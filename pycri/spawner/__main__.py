# SPDX-License-Identifier: Apache-2.0
"""Entry point: `python -m pycri.spawner RUN_DIR OVERLAY_APPEND CGROUP2_ROOT LISTENER_FD`.

The program first executes itself again from a sealed copy of the interpreter in memory. Children
run in containers before their execve, and /proc/PID/exe of a container's process must never lead
to a file of the host that could be overwritten (the class of CVE-2019-5736).
"""

import contextlib
import gc
import os
import platform
import resource
import socket
import sys

from pycri.kernel import capabilities, mounts, process
from pycri.kernel.fds import close_inherited
from pycri.kernel.memfiles import make_program
from pycri.spawner.podinit import render_program
from pycri.spawner.server import Spawner
from pycri.spawner.surroundings import Surroundings


def main() -> None:
    """Serve until told to quit."""
    if not os.readlink("/proc/self/exe").startswith("/memfd:"):
        _execute_sealed()
    run_dir, append, cgroup2_root, listener_fd = sys.argv[1:5]
    close_inherited((int(listener_fd),))
    listener = socket.socket(fileno=int(listener_fd))
    listener.set_inheritable(False)
    process.heed_signals()
    process.become_subreaper()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    # We keep three or four descriptors a container; they get the limit that we were given.
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    around = Surroundings(
        empty_mounts_fd=_make_empty_mounts(run_dir),
        overlay_append=append == "1",
        last_capability=capabilities.read_last_capability(),
        cgroup2_root=cgroup2_root,
        files_limit=files,
        pod_init_fd=make_program("pycri-pod-init", render_program(platform.machine())),
    )
    spawner = Spawner(run_dir, listener, around)
    # A later collection would write to pages that children share. So what comes and goes must not
    # refer to itself: it would stay.
    gc.collect()
    gc.freeze()
    gc.disable()
    spawner.run()
    _remove_sockets(run_dir)


def _remove_sockets(run_dir: str) -> None:
    for name in ("spawner.sock", "monitor.sock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{run_dir}/{name}")


def _execute_sealed() -> None:
    with open("/proc/self/exe", "rb") as file:
        copy = make_program("pycri-spawner", file.read())
    os.set_inheritable(int(sys.argv[4]), True)
    arguments = [sys.executable, "-I", "-m", "pycri.spawner", *sys.argv[1:]]
    os.execve(copy, arguments, dict(os.environ))  # noqa: S606 - ourselves, sealed


def _make_empty_mounts(run_dir: str) -> int:
    """Make the empty mount namespace in a child. Returns a descriptor that holds it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def child() -> None:
        # /proc is out of reach after the root switch, so its folder is opened before.
        self_fd = os.open("/proc/self/ns", os.O_PATH | os.O_DIRECTORY)
        mounts.enter_empty_root(run_dir)
        fd = os.open("mnt", os.O_RDONLY, dir_fd=self_fd)
        socket.send_fds(theirs, [b"mounts"], [fd])

    pid = process.fork(child)
    theirs.close()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 16, 1)
    os.waitpid(pid, 0)
    if not fds:
        raise RuntimeError("cannot make a mount namespace; is this process root?")
    os.set_inheritable(fds[0], False)
    return fds[0]


if __name__ == "__main__":
    main()
