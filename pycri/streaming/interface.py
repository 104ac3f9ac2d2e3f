# SPDX-License-Identifier: Apache-2.0
"""What a streaming session talks to: the two protocols between the server and `pods/`.

The life of an exec:

    CRI Exec      Sessions.admit(request)        now, or the caller gets the error, and no URL
    client comes  Sessions.exec(request)         starts the process: -> Process
                  all its streams are there      with a terminal, and of an attach: before the start
                  bytes flow, Process.resize
                  Process.wait()                 -> exit code, sent to the client as its status
                  what the descriptors hold is sent; they are closed
                  Process.end()                  exactly once, however the session ended

Everything here is called in the daemon's event loop; the server may live in another thread.
Errors are those of `pycri.errors`; the client is shown their text.
"""

from typing import Protocol, TypeVar

from pycri.model.streams import AttachRequest, ExecRequest, PortForwardRequest

Request = TypeVar("Request", ExecRequest, AttachRequest, PortForwardRequest)


class Process(Protocol):
    """The process behind an exec or attach session, and our ends of its stdio.

    The session owns the descriptors: it makes them non-blocking, reads and writes them from
    another thread, and closes each of those that are not None once. They are distinct numbers.

    stdin_fd: closed when the client has closed its stdin, or as soon as that is not wanted any
        more. None if the request did not ask for stdin, or the container has none.
    stdout_fd: pipe, socket, or with a terminal the pty's master (an exec's) or what stands for it.
        With a terminal it is there asked for or not: the session reads it and drops what it reads.
    stderr_fd: None with a terminal.

    With a terminal stdin_fd and stdout_fd are two duplicates of one descriptor, so that either
    can be closed first; the end of file of a master (EIO) is understood.
    """

    stdin_fd: int | None
    stdout_fd: int | None
    stderr_fd: int | None

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, in characters, 0 < each < 65536. Nothing without a terminal;
        nothing if the process has ended."""

    async def wait(self) -> int:
        """Wait for the end and return the exit code, 0 to 255.

        It returns once the last byte that the process itself has written is in the descriptors.
        The session then reads until they are empty for the moment, not until end-of-file: a
        child that was left behind and keeps the pipe open does not hang the session.

        Of an attach it returns when the container has ended, always with 0: to `kubectl run`
        another code would mean that the attach failed; it asks for the container's code itself.

        May be cancelled; called once at most. Raises PycriError if the end cannot be known.
        """

    async def end(self) -> None:
        """The session is over and its descriptors are closed.

        An exec that still runs (the client is gone, or the daemon stops) is hung up, and killed
        with its group if it does not heed that; an attach is detached, the container goes on.
        Returns when that is done, in seconds. Raises nothing.
        """


class Sessions(Protocol):
    """Who starts what a session talks to."""

    def admit(self, request: Request) -> Request:
        """Return the request with its whole id. From memory only.

        Raises: NotFound; WrongState if the container does not run or the pod is not ready;
            InvalidRequest for an attach with another `tty` than the container's (CRI: "must
            match"). Stdin for a container that has none is fine: what the client sends is dropped.
        """

    async def exec(self, request: ExecRequest) -> Process:
        """Start the process. Raises what ExecSync does."""

    async def attach(self, request: AttachRequest) -> Process:
        """Take part in the container's stdio: nothing from before, everything from now on."""

    async def connect(self, request: PortForwardRequest, port: int) -> int:
        """Connect to a port of the pod's localhost, IPv4 first, then IPv6.

        Returns a connected stream socket, which the caller closes.
        Raises: Unavailable with the reason, if nobody listens; NotFound, WrongState.
        """
