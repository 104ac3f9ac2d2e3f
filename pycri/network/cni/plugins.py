# SPDX-License-Identifier: Apache-2.0
"""Run a CNI plugin: a program that is told in its environment and on its standard input what to do.

Plugins run in the daemon's own namespaces and environment. Each is the leader of a session, so that
it goes with all that it started when it does not end in time, or prints without end. One that
outlives a killed daemon is found by the mark in its environment.
"""

import asyncio
import contextlib
import errno
import os
import signal
import stat
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pycri import errors
from pycri.logs import Log
from pycri.network.cni.results import PluginError, parse_error

MARK: Final = "PYCRI_CNI"
"""Names, in a plugin's environment, the daemon it belongs to."""
OUTPUT_LIMIT_BYTES: Final = 1 << 20
COMPLAINT_LIMIT_BYTES: Final = 500
"""What is kept of standard error: its end."""
BUSY_WAIT_S: Final = 0.1
KILL_DEADLINE_S: Final = 5.0

_log = Log("cni")


class PluginFailed(errors.SetupFailed):
    """A plugin failed. code: of its error (CNI SPEC.md, "Error"), 0 if it named none."""

    def __init__(self, step: str, error: PluginError) -> None:
        super().__init__(step, 0, str(error))
        self.code = error.code


def find_plugin(kind: str, folders: Sequence[str]) -> str | None:
    """Return the path of the program of a plugin's `type`, or None."""
    for folder in folders:
        path = f"{folder}/{kind}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


async def run_plugin(
    path: str, environment: Mapping[str, str], request: bytes, *, step: str, timeout_s: float
) -> bytes:
    """Run a plugin and return what it printed.

    environment: what is added to our own. step: what it does, for messages.
    Raises: PluginFailed if it cannot be run, fails, prints too much or does not end in time; then
        it and all that it started has been killed.
    """
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            transport, plugin = await _start(path, {**os.environ, **environment})
            try:
                await plugin.talk(transport, request)
            finally:
                await _end(transport, plugin)
    except TimeoutError as error:
        message = PluginError(msg=f"it did not end within {timeout_s:g} s, and was killed")
        raise PluginFailed(step, message) from error
    except OSError as error:
        raise PluginFailed(step, PluginError(msg=f"it cannot be run: {error}")) from error
    output = bytes(plugin.output)
    if len(output) > OUTPUT_LIMIT_BYTES:
        text = f"it printed more than {OUTPUT_LIMIT_BYTES} bytes, and was killed"
        raise PluginFailed(step, PluginError(msg=text))
    status = transport.get_returncode() or 0
    if status != 0:
        raise PluginFailed(step, parse_error(output, plugin.complaint, status))
    ms = (time.monotonic() - started) * 1e3
    _log.debug(step, ms=ms, stderr=plugin.complaint.decode(errors="replace"))
    return output


async def end_orphans(mark: str) -> None:
    """Kill the plugins that a former daemon of this mark has left running, and wait for their end.

    A plugin's standard output is a pipe; what a plugin started to stay has none, and is left alone.
    """
    pidfds = await asyncio.to_thread(_kill_orphans, f"{MARK}={mark}".encode())
    for pidfd in pidfds:
        try:
            async with asyncio.timeout(KILL_DEADLINE_S):
                await _wait_readable(pidfd)
        except TimeoutError:
            _log.warning("a plugin of a former daemon does not end")
        finally:
            os.close(pidfd)


class _Plugin(asyncio.SubprocessProtocol):
    """A plugin at work: collects what it prints, within limits."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.complaint = b""
        self.exited = asyncio.Event()
        self._done = asyncio.Event()

    async def talk(self, transport: asyncio.SubprocessTransport, request: bytes) -> None:
        """Say `request`; return when it has ended and closed its output, or printed too much."""
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(request)
        stdin.close()  # after what was written; one that does not read says why in its own words
        await self._done.wait()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self.complaint = (self.complaint + data)[-COMPLAINT_LIMIT_BYTES:]
        elif len(self.output) <= OUTPUT_LIMIT_BYTES:
            self.output += data
        if len(self.output) > OUTPUT_LIMIT_BYTES:
            self._done.set()

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


async def _start(
    path: str, environment: Mapping[str, str]
) -> tuple[asyncio.SubprocessTransport, _Plugin]:
    while True:
        try:
            return await asyncio.get_running_loop().subprocess_exec(
                _Plugin, path, env=environment, start_new_session=True
            )
        except OSError as error:
            # Somebody is writing the program: an upgrade of the plugins.
            if error.errno != errno.ETXTBSY:
                raise
            await asyncio.sleep(BUSY_WAIT_S)


async def _end(transport: asyncio.SubprocessTransport, plugin: _Plugin) -> None:
    """Let go of a plugin that has ended; kill one that has not, with all that it started."""
    if transport.get_returncode() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
    transport.close()
    try:
        # Not the time-out of the run, which may be over.
        await asyncio.wait_for(plugin.exited.wait(), KILL_DEADLINE_S)
    except TimeoutError:
        _log.warning("a plugin does not end", pid=transport.get_pid())


def _kill_orphans(mark: bytes) -> list[int]:
    """Return pidfds of those that were killed; the caller closes them."""
    killed = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or not _is_orphan(name, mark):
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(int(name))
            killed.append(pidfd)
            if _is_orphan(name, mark):  # still, so the descriptor is not of another process
                _log.warning("a plugin of a former daemon was still running", pid=int(name))
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return killed


def _is_orphan(pid: str, mark: bytes) -> bool:
    try:
        if mark not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return False
        return stat.S_ISFIFO(os.stat(f"/proc/{pid}/fd/1").st_mode)
    except OSError:
        return False


async def _wait_readable(fd: int) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
