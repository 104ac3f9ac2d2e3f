# SPDX-License-Identifier: Apache-2.0
"""`pycri timeline POD`: where the milliseconds of a pod and its containers went.

Stages come from the verbose status of pod and containers, as the daemon recorded them.
"""

import json
from typing import TYPE_CHECKING

import click
import msgspec

from pycri.cli.client import READ_DEADLINE_S, connected, socket_option
from pycri.model.pod import Stage

if TYPE_CHECKING:
    import grpc  # noqa: TID251  a client of the CRI

_BAR_CELLS = 28


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A pod or a container with its stages. name: "pod web" or "container app"."""

    name: str
    timeline: tuple[Stage, ...]


@click.command()
@click.argument("pod")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@socket_option
def timeline(pod: str, socket_path: str, *, as_json: bool) -> None:
    """Show what each stage of POD took. POD is an id, the beginning of one, or a name."""
    with connected(socket_path) as channel:
        parts = _read_parts(channel, pod)
    if as_json:
        click.echo(msgspec.json.encode(parts).decode())
    else:
        _print_table(parts)


def _read_parts(channel: "grpc.Channel", pod: str) -> list[Part]:
    """Return the pod first, then its containers in the order they were created."""
    from pycri.cri.api import runtime_v1_pb2 as pb
    from pycri.cri.api.runtime_v1_pb2_grpc import RuntimeServiceStub

    stub = RuntimeServiceStub(channel)
    pods = stub.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=READ_DEADLINE_S).items
    matching = [item for item in pods if item.id.startswith(pod) or item.metadata.name == pod]
    if not matching:
        raise click.ClickException(f"pod {pod!r} not found")
    newest = max(matching, key=lambda item: item.created_at)
    status = stub.PodSandboxStatus(
        pb.PodSandboxStatusRequest(pod_sandbox_id=newest.id, verbose=True), timeout=READ_DEADLINE_S
    )
    parts = [_part(f"pod {newest.metadata.name}", status.info["info"])]
    wanted = pb.ContainerFilter(pod_sandbox_id=newest.id)
    listed = stub.ListContainers(
        pb.ListContainersRequest(filter=wanted), timeout=READ_DEADLINE_S
    ).containers
    for container in sorted(listed, key=lambda item: item.created_at):
        request = pb.ContainerStatusRequest(container_id=container.id, verbose=True)
        info = stub.ContainerStatus(request, timeout=READ_DEADLINE_S).info["info"]
        parts.append(_part(f"container {container.metadata.name}", info))
    return parts


def _part(name: str, info: str) -> Part:
    stages = msgspec.convert(json.loads(info)["timeline"], tuple[Stage, ...])
    return Part(name=name, timeline=stages)


def _print_table(parts: list[Part]) -> None:
    """Print one row a stage. A bar shows its place within its call, the first part of its name."""
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "stage", "ms", "", box=None)
    table.columns[2].justify = "right"
    for part in parts:
        calls = {stage.name: stage for stage in part.timeline if "/" not in stage.name}
        for row, stage in enumerate(part.timeline):
            call, _, step = stage.name.partition("/")
            table.add_row(
                part.name if row == 0 else "",
                f"  {step}" if step else call,
                f"{stage.duration_ns / 1e6:.2f}",
                render_bar(stage, calls.get(call, stage)),
            )
    Console().print(table)


def render_bar(stage: Stage, call: Stage) -> str:
    """Return the stage's share of the call's time, at its place, `_BAR_CELLS` wide."""
    whole = max(1, call.duration_ns)
    begin = min(max(0, stage.start_ns - call.start_ns), whole) * _BAR_CELLS // whole
    cells = max(1, min(stage.duration_ns, whole) * _BAR_CELLS // whole)
    begin = min(begin, _BAR_CELLS - 1)
    return " " * begin + "█" * min(cells, _BAR_CELLS - begin)
