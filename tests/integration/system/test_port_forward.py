# SPDX-License-Identifier: Apache-2.0
"""Port-forward, from outside: over SPDY, over SPDY in a WebSocket, and over WebSocket channels."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world import debian
from tests.world.commands import Forwarded, WebSocketPorts
from tests.world.daemon import Node, refused, wait_until
from tests.world.forwarder import Forwarder
from tests.world.images import INDEX_HTML, Images, iperf3_packages
from tests.world.sessions import digest, forward, forward_url
from tests.world.wires import wait_for

both_ways = pytest.mark.parametrize("tunnelled", [False, True])

ECHO, COUNT, TALK, SIX, UNUSED = 7, 8, 9, 6, 5
SERVERS = (
    f"nc -ll -p {ECHO} -e cat & nc -ll -p {COUNT} -e wc -c & httpd -p [::1]:{SIX} -h /srv; "
    f"nc -ll -p {TALK} -e sh -c 'echo hello' & wait"
)


ECHOING_NGINX = (
    "daemon off; pid /run/nginx.pid; error_log /dev/stderr; events {} http { access_log off; "
    "server { listen 80; location / { return 200 $request_uri; } } }"
)


@pytest.fixture
def pod(node: Node, images: Images) -> Iterator[str]:
    """A pod with servers on the ports above."""
    pod = node.run_pod("forward")
    container = node.run_container(pod, images["busybox"], command=SERVERS)
    wait_listening(node, container, ECHO, COUNT, TALK, SIX)
    yield pod


def wait_listening(node: Node, container: str, *ports: int) -> None:
    def listening() -> bool:
        table = node.shell(container, "netstat -lnt")
        return all(f":{port} " in table for port in ports)

    wait_until(listening, what="servers that listen")


def failure_of(connection: Forwarded) -> str:
    """Return what the error stream says."""
    return connection.error.read_all().decode()


@both_ways
def test_data_passes_unchanged_both_ways(node: Node, pod: str, tunnelled: bool) -> None:
    ports = forward(node, pod, tunnelled=tunnelled)
    connection = ports.connect(ECHO)
    data = os.urandom(32 << 20)
    connection.data.write(data)
    connection.data.close()
    assert digest(connection.data.read_all()) == digest(data)
    assert failure_of(connection) == ""
    ports.close()


@both_ways
def test_each_side_can_end_first(node: Node, pod: str, tunnelled: bool) -> None:
    ports = forward(node, pod, tunnelled=tunnelled)
    counted = ports.connect(COUNT)
    counted.data.write(b"x" * 100_000)
    counted.data.close()
    assert int(counted.data.read_all()) == 100_000
    talked = ports.connect(TALK)
    assert talked.data.read_all() == b"hello\n"
    talked.data.close()
    assert failure_of(talked) == ""
    ports.close()


@both_ways
def test_a_refused_port_is_an_error_of_its_own_stream(
    node: Node, pod: str, tunnelled: bool
) -> None:
    ports = forward(node, pod, tunnelled=tunnelled)
    good = ports.connect(ECHO)
    good.data.write(b"before")
    good.data.read_until(b"before")
    for _ in range(3):
        bad = ports.connect(UNUSED)
        said = failure_of(bad)
        assert str(UNUSED) in said
        assert "refused" in said
        bad.data.read_all()
    good.data.write(b"after")
    assert good.data.read_until(b"after") == b"after"
    ports.close()


@both_ways
def test_who_listens_on_ipv6_alone_is_reached(node: Node, pod: str, tunnelled: bool) -> None:
    ports = forward(node, pod, tunnelled=tunnelled)
    connection = ports.connect(SIX)
    connection.data.write(b"GET / HTTP/1.0\r\n\r\n")
    assert connection.data.read_all().startswith(b"HTTP/1.")
    ports.close()


@both_ways
def test_many_connections_do_not_mix_their_data(
    node: Node, images: Images, tunnelled: bool
) -> None:
    """By nginx, for busybox' nc resets connections that come faster than it accepts them."""
    pod = node.run_pod("many")
    script = f"echo '{ECHOING_NGINX}' >/tmp/conf; exec nginx -c /tmp/conf"
    container = node.run_container(pod, images["nginx"], command=script)
    wait_listening(node, container, 80)
    ports = forward(node, pod, tunnelled=tunnelled)
    paths = [b"/%d" % number + b"/%d" % number * 500 for number in range(100)]
    connections = [ports.connect(80) for _ in paths]
    for path, connection in zip(paths, connections, strict=True):
        connection.data.write(b"GET %s HTTP/1.0\r\n\r\n" % path)
    for path, connection in zip(paths, connections, strict=True):
        assert connection.data.read_all().endswith(b"\r\n\r\n" + path)
        assert failure_of(connection) == ""
    ports.close()


@pytest.mark.parametrize("encoding", ["", "base64."])
def test_websocket_channels_carry_the_ports_of_the_request(
    node: Node, pod: str, encoding: str
) -> None:
    url = forward_url(node, pod, [ECHO, SIX, UNUSED])
    ports = WebSocketPorts(url, [ECHO, SIX, UNUSED], encoding=encoding)
    data = os.urandom(1 << 20)
    ports.write(0, data)
    wait_for(ports.pump, lambda: len(ports.data[0]) == len(data), "the echo")
    assert digest(ports.data[0]) == digest(data)
    ports.write(1, b"GET / HTTP/1.0\r\n\r\n")
    wait_for(ports.pump, lambda: ports.data[2].startswith(b"HTTP/1."), "the answer")
    wait_for(ports.pump, lambda: b"refused" in ports.data[5], "the error")
    assert not any(ports.data[index] for index in (1, 3, 4))
    ports.close()


def test_a_pod_on_the_host_s_network_is_reached(node: Node) -> None:
    pod = node.run_pod("host", namespaces={"network": cri.NODE})
    ports = forward(node, pod)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((address, 0), family=family) as server:
            connection = ports.connect(server.getsockname()[1])
            connection.data.write(b"hello")
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
                accepted.sendall(b"bye")
            assert connection.data.read_all() == b"bye"
    ports.close()


def test_it_ends_in_the_pod_and_nowhere_else(node: Node, pod: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = forward(node, pod)
        assert "refused" in failure_of(ports.connect(server.getsockname()[1]))
        ports.close()


def test_nginx_is_served_through_it(node: Node, images: Images) -> None:
    pod = node.run_pod("web")
    container = node.run_container(pod, images["nginx"])
    wait_listening(node, container, 80)
    ports = forward(node, pod)
    for _ in range(20):
        connection = ports.connect(80)
        connection.data.write(b"GET / HTTP/1.0\r\n\r\n")
        answer = connection.data.read_all().decode()
        assert answer.startswith("HTTP/1.1 200 OK")
        assert answer.endswith(f"\r\n\r\n{INDEX_HTML}")
    ports.close()


@both_ways
@pytest.mark.parametrize("reverse", [False, True])
def test_iperf3_measures_through_it(
    node: Node, images: Images, tunnelled: bool, reverse: bool
) -> None:
    pod = node.run_pod("iperf")
    container = node.run_container(pod, images["iperf3"])
    wait_listening(node, container, 5201)
    with (
        Forwarder(forward(node, pod, tunnelled=tunnelled), 5201) as forwarder,
        debian.staged(iperf3_packages()) as tree,
    ):
        measured = json.loads(run_iperf3(tree, forwarder.port, reverse=reverse))
    assert measured["end"]["sum_received"]["bytes"] >= 32 << 20


def run_iperf3(tree: Path, port: int, *, reverse: bool) -> bytes:
    """Run the client in parallel streams, from the same packages as the server."""
    (loader,) = (tree / "lib64").glob("ld-linux*")
    triplet = f"{os.uname().machine}-linux-gnu"
    own_loader = tree / "lib" / triplet / loader.name
    places = f"{tree}/lib/{triplet}:{tree}/usr/lib/{triplet}"
    command = [str(own_loader), "--library-path", places, str(tree / "usr/bin/iperf3")]
    options = ["--client", "127.0.0.1", "--port", str(port), "--json", "--bytes", "64M",
               "--parallel", "3", *(["--reverse"] if reverse else [])]  # fmt: skip
    return subprocess.run([*command, *options], capture_output=True, check=True).stdout


def test_a_client_that_vanishes_closes_its_connections(node: Node, images: Images) -> None:
    pod = node.run_pod("vanish")
    script = f"nc -ll -p {ECHO} -e sh -c 'cat >/dev/null; echo gone >>/gone' & wait"
    container = node.run_container(pod, images["busybox"], command=script)
    wait_listening(node, container, ECHO)
    ports = forward(node, pod)
    for _ in range(5):
        ports.connect(ECHO).data.write(b"x")
    ports.close()
    wait_until(
        lambda: node.exec(container, "cat", "/gone").stdout == b"gone\n" * 5, what="all to end"
    )


def test_a_pod_that_is_not_ready_is_refused(node: Node, pod: str) -> None:
    node.stop_pod(pod)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, pod):
        forward_url(node, pod)
    with refused(grpc.StatusCode.NOT_FOUND):
        forward_url(node, "f" * 64)
