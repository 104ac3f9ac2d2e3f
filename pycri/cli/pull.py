# SPDX-License-Identifier: Apache-2.0
"""`pycri pull`: bring an image in from its registry, and watch it come.

On a terminal there is a bar for each layer; elsewhere a line when a layer is there, so that a log
stays readable. Both go to stderr: stdout has the image's id alone.
"""

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from pycri.cli.client import connected, socket_option

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pycri.cri.api.node_v1_pb2 import LayerProgress, PullProgress

CREDENTIALS_VARIABLE = "PYCRI_CREDENTIALS"


@click.command()
@click.argument("image")
@click.option(
    "--creds",
    "with_credentials",
    is_flag=True,
    help=f"Log in: as ${CREDENTIALS_VARIABLE} says (user:password), or as you answer.",
)
@socket_option
def pull(image: str, socket_path: str, *, with_credentials: bool) -> None:
    """Pull IMAGE, or join its pull under way, and print its id.

    Without --creds it is pulled with the node's own credentials. Credentials are never taken from
    the command line, which everybody on the host can read.
    """
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    username, password = _ask_credentials() if with_credentials else ("", "")
    request = node_v1_pb2.WatchPullRequest(name=image, username=username, password=password)
    with connected(socket_path) as channel:
        stream = node_v1_pb2_grpc.NodeStub(channel).WatchPull(request)
        show = _show_bars if sys.stderr.isatty() else _show_lines
        click.echo(show(stream))


def _ask_credentials() -> tuple[str, str]:
    given = os.environ.get(CREDENTIALS_VARIABLE)
    if given is None:
        username = click.prompt("Username", err=True)
        return username, click.prompt("Password", hide_input=True, err=True)
    username, colon, password = given.partition(":")
    if not (username and colon):
        raise click.UsageError(f"{CREDENTIALS_VARIABLE} is not of the form user:password")
    return username, password


def _show_lines(stream: "Iterable[PullProgress]") -> str:
    """Write a line for each layer that has come; return the image's id."""
    told: set[str] = set()
    layers: list[LayerProgress] = []
    image_ref = ""
    for message in stream:
        layers = list(message.layers) or layers
        image_ref = message.image_ref
        for layer in layers:
            if layer.digest not in told and (image_ref or layer.state == layer.WHOLE):
                told.add(layer.digest)
                click.echo(f"{_short(layer)}  {layer.size_bytes / 1e6:9.1f} MB  done", err=True)
    return image_ref


def _show_bars(stream: "Iterable[PullProgress]") -> str:
    """Draw a bar for each layer; return the image's id."""
    image_ref = ""
    with _bars() as progress:
        tasks: dict[str, TaskID] = {}
        for message in stream:
            for layer in message.layers:
                if layer.digest not in tasks:
                    tasks[layer.digest] = progress.add_task(
                        _short(layer), total=layer.size_bytes, state=""
                    )
                _draw(progress, tasks[layer.digest], layer)
            image_ref = message.image_ref
        for task in progress.tasks:
            progress.update(task.id, completed=task.total, state="done")
    return image_ref


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
        console=Console(stderr=True),
    )


def _draw(progress: "Progress", task: "TaskID", layer: "LayerProgress") -> None:
    words = {layer.WAITING: "waiting", layer.FETCHING: "", layer.UNPACKING: "unpacking"}
    progress.update(task, completed=layer.received_bytes, state=words.get(layer.state, "done"))


def _short(layer: "LayerProgress") -> str:
    return layer.digest.removeprefix("sha256:")[:12]
