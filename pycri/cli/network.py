# SPDX-License-Identifier: Apache-2.0
"""`pycri network`: what pods have of the network, whether it is there, free what is nobody's."""

import json
from typing import TYPE_CHECKING

import click

from pycri.cli.client import READ_DEADLINE_S, connected, socket_option

if TYPE_CHECKING:
    from pycri.cri.api.node_v1_pb2 import PodNetwork

_CHECK_DEADLINE_S = 120
"""CNI plugins are asked one after the other."""


@click.group()
def network() -> None:
    """Networks of the pods on this node."""


@network.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a pod.")
@socket_option
def list_(socket_path: str, *, as_json: bool) -> None:
    """List pods with their addresses, host ports and links."""
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    with connected(socket_path) as channel:
        stub = node_v1_pb2_grpc.NodeStub(channel)
        pods = stub.ListNetwork(node_v1_pb2.ListNetworkRequest(), timeout=READ_DEADLINE_S).pods
    for pod in pods:
        if as_json:
            from google.protobuf.json_format import MessageToDict

            shown = MessageToDict(pod, preserving_proto_field_name=True)
            click.echo(json.dumps({"ready": False} | shown))
        else:
            click.echo(_line(pod))


@network.command("check")
@socket_option
def check(socket_path: str) -> None:
    """Tell what is not as it is to be, one line each; nothing, if all is."""
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    with connected(socket_path) as channel:
        stub = node_v1_pb2_grpc.NodeStub(channel)
        request = node_v1_pb2.CheckNetworkRequest()
        problems = stub.CheckNetwork(request, timeout=_CHECK_DEADLINE_S).problems
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.exceptions.Exit(1)


@network.command("gc")
@socket_option
def collect(socket_path: str) -> None:
    """Free what no pod has and put right what others changed, as the daemon does every minute."""
    from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc

    with connected(socket_path) as channel:
        stub = node_v1_pb2_grpc.NodeStub(channel)
        stub.CollectNetwork(node_v1_pb2.CollectNetworkRequest(), timeout=_CHECK_DEADLINE_S)


def _line(pod: "PodNetwork") -> str:
    state = "ready" if pod.ready else "stopped"
    addresses = [address for i in pod.interfaces for address in i.addresses]
    links = [i.host_interface for i in pod.interfaces if i.host_interface]
    words = [",".join(addresses) or "-", ",".join(links) or "-", *pod.host_ports]
    return f"{pod.pod_sandbox_id[:13]}  {state:7}  {pod.namespace}/{pod.name}  {'  '.join(words)}"
