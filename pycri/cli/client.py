# SPDX-License-Identifier: Apache-2.0
"""The way of the verbs to a daemon: its socket, and its errors in a person's words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import grpc  # noqa: TID251  a client of the CRI

READ_DEADLINE_S = 10
"""For calls that only read; they take milliseconds."""


def _default_socket() -> str:
    from pycri.config import load

    return load().socket_path


def socket_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--socket PATH` to a verb that talks to a daemon."""
    return click.option(
        "--socket",
        "socket_path",
        default=_default_socket,
        show_default="as configured, /run/pycri/pycri.sock",
        help="The daemon's CRI socket.",
    )(command)


@contextmanager
def connected(socket_path: str) -> Iterator["grpc.Channel"]:
    """Open a channel; a failed call ends the verb with exit 1 and the daemon's message.

    Raises click.ClickException.
    """
    import grpc  # noqa: TID251  a client of the CRI

    options = [("grpc.max_receive_message_length", 16 << 20)]
    with grpc.insecure_channel(f"unix:{socket_path}", options=options) as channel:
        try:
            yield channel
        except grpc.RpcError as error:
            raise click.ClickException(_explain(error, socket_path)) from error


def _explain(error: "grpc.RpcError", socket_path: str) -> str:
    import grpc  # noqa: TID251  a client of the CRI

    assert isinstance(error, grpc.Call)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"no daemon answers on {socket_path}: {error.details()}"
    return f"{error.details()} ({error.code().name})"
