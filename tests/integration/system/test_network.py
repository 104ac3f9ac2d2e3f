# SPDX-License-Identifier: Apache-2.0
"""Pods on the built-in network, and those who talk to them: other hosts, the host, each other.

The node's host is a network namespace of its own; another host and a router are namespaces too.

    far 198.51.100.2 ── 198.51.100.1 router 192.0.2.2 ── 192.0.2.1 the node's host ── bridge ── pods
"""

import contextlib
import json
import socket
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.kernel.netns import Namespace
from tests.world import leaks
from tests.world.daemon import Node, refused, wait_until
from tests.world.images import INDEX_HTML, Images
from tests.world.reboot import reboot
from tests.world.registry import Registry

HOST, FAR = "192.0.2.1", "198.51.100.2"
HTTP_PORT = [{"container_port": 80, "host_port": 8080}]


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Namespace() as host:
        ip(host, "link set lo up")
        yield host


@pytest.fixture(scope="module")
def images(
    host: Namespace, scope: leaks.Scope, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Images]:
    """The images, from a registry on this host."""
    starting = Registry.start(tmp_path_factory.mktemp("registry"))
    registry = host.run(starting.__enter__)
    scope.adopted.add(registry.pid)
    images = Images(registry)
    for name in ("busybox", "nginx"):
        host.run(lambda: images[name])  # noqa: B023 - built and pushed at once
    yield images
    starting.__exit__(None, None, None)


@pytest.fixture(scope="module")
def far(host: Namespace) -> Iterator[Namespace]:
    """Another host, behind a router."""
    with Namespace() as router, Namespace() as far:
        connect(host, router, f"{HOST}/24", "192.0.2.2/24")
        connect(router, far, "198.51.100.1/24", f"{FAR}/24")
        ip(host, "route add default via 192.0.2.2")
        ip(far, "route add default via 198.51.100.1")
        router.run(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        yield far


@pytest.fixture(scope="module")
def shared_node(host: Namespace, scope: leaks.Scope, images: Images) -> Iterator[Node]:
    node = Node(scope, netns=host.path, ipv6=True)
    try:
        node.start()
        node.warm(images["busybox"])
        yield node
    finally:
        node.close()


@pytest.fixture
def node(shared_node: Node) -> Iterator[Node]:
    yield shared_node
    shared_node.clear()


@pytest.fixture
def own_host() -> Iterator[Namespace]:
    with Namespace() as host:
        yield host


@pytest.fixture
def own_node(own_host: Namespace, scope: leaks.Scope) -> Iterator[Node]:
    """A node for a test that ends its processes."""
    node = Node(scope, netns=own_host.path, ipv6=True)
    try:
        yield node.start()
    finally:
        node.close()


def ip(namespace: Namespace, arguments: str) -> None:
    namespace.run(lambda: subprocess.run(["ip", *arguments.split()], check=True))


def connect(one: Namespace, other: Namespace, here: str, there: str) -> None:
    """Lay a cable between two hosts and give its ends addresses."""
    name, peer = f"to-{there.split('.')[0]}", f"to-{here.split('.')[0]}x"
    ip(one, f"link add {name} type veth peer name {peer} netns {other.path}")
    for namespace, link, address in ((one, name, here), (other, peer, there)):
        ip(namespace, f"address add {address} dev {link}")
        ip(namespace, f"link set {link} up")


def fetch(client: Namespace, address: str, port: int) -> str:
    """Get the page at an address, as soon as somebody serves it."""

    def ask() -> str:
        # No proxy of the environment stands between a pod and its node.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{address}:{port}/", timeout=5) as answer:
                return str(answer.read(), "utf-8")
        except OSError:
            return ""

    return client.run(lambda: wait_until(ask, what=f"{address}:{port} answers"))


def addresses(node: Node, pod: str) -> list[str]:
    network = node.pod_status(pod).network
    return [network.ip, *(entry.ip for entry in network.additional_ips)]


def sources(node: Node, container: str) -> set[str]:
    """Return who asked nginx for a page."""
    lines = node.wait_log(container, '"GET / HTTP/1.1" 200')
    return {line.content.split()[0] for line in lines if "GET" in line.content}


def test_nginx_is_reached_by_its_addresses_and_by_a_port_of_the_host(
    node: Node, images: Images, host: Namespace, far: Namespace
) -> None:
    pod = node.run_pod("web", port_mappings=HTTP_PORT)
    server = node.run_container(pod, images["nginx"])
    own = addresses(node, pod)
    assert len(own) == 2
    assert fetch(host, own[0], 80) == INDEX_HTML
    assert fetch(far, HOST, 8080) == INDEX_HTML
    assert fetch(host, HOST, 8080) == INDEX_HTML
    assert fetch(host, "127.0.0.1", 8080) == INDEX_HTML
    client_pod = node.run_pod("client")
    client = node.run_container(client_pod, images["busybox"], command=["sleep", "60"])
    assert node.shell(client, f"wget -qO- http://{HOST}:8080/") == INDEX_HTML
    assert node.shell(server, f"wget -qO- http://{HOST}:8080/") == INDEX_HTML
    assert node.shell(client, f"wget -qO- http://{own[0]}/") == INDEX_HTML
    gateway = f"{own[0].rpartition('.')[0]}.1"
    assert {FAR, HOST, gateway, addresses(node, client_pod)[0]} <= sources(node, server)


def test_the_far_host_sees_the_nodes_address_and_pods_reach_it(
    node: Node, images: Images, far: Namespace
) -> None:
    pod = node.run_pod("client")
    with far.listen(FAR, 8000) as listener:
        listener.settimeout(10)
        node.run_container(pod, images["busybox"], command=f"echo hello | nc {FAR} 8000")
        server, (peer, _) = listener.accept()
        with server:
            assert (server.recv(100), peer) == (b"hello\n", HOST)


def test_a_port_is_the_next_pods_as_soon_as_the_pod_is_stopped(
    node: Node, images: Images, far: Namespace
) -> None:
    first = node.run_pod("first", port_mappings=HTTP_PORT)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "*:8080/TCP", f"pod {first} has"):
        node.run_pod("second", port_mappings=HTTP_PORT)
    node.stop_pod(first)
    second = node.run_pod("second", port_mappings=HTTP_PORT)
    node.run_container(second, images["nginx"])
    assert fetch(far, HOST, 8080) == INDEX_HTML


def test_status_hosts_file_and_ls_tell_the_same_addresses(node: Node, images: Images) -> None:
    pod = node.run_pod("web", port_mappings=HTTP_PORT)
    container = node.run_container(pod, images["busybox"], command=["sleep", "60"])
    own = addresses(node, pod)
    assert [socket.AF_INET6 if ":" in a else socket.AF_INET for a in own] == [2, 10]
    hosts = node.shell(container, "cat /etc/hosts")
    assert [line.split()[0] for line in hosts.splitlines() if "web" in line] == own
    inside = node.shell(container, "ip -o address show dev eth0")
    assert all(f" {address}/" in inside for address in own)
    listed = node.ask("network", "ls", "--json")
    (shown,) = (json.loads(line) for line in listed.splitlines())
    assert shown["pod_sandbox_id"] == pod
    assert [a.partition("/")[0] for a in shown["interfaces"][0]["addresses"]] == own
    assert shown["host_ports"] == ["*:8080/TCP->80"]
    assert node.ask("network", "check") == ""


def test_a_pod_on_the_hosts_network_shows_no_address(node: Node) -> None:
    namespaces = {"network": cri.NODE}
    pod = node.run_pod("host", namespaces=namespaces, hostname="", port_mappings=HTTP_PORT)
    status = node.pod_status(pod).network
    assert (status.ip, list(status.additional_ips)) == ("", [])
    assert pod not in node.ask("network", "ls")


def test_annotations_that_cannot_be_met_are_refused_by_name(node: Node) -> None:
    for name, value in (
        ("kubernetes.io/ingress-bandwidth", "much"),
        ("network.pycri/addresses", "192.0.2.77"),
        ("network.pycri/mac", "ff:ff:ff:ff:ff:ff"),
    ):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, f"config.annotations[{name}]"):
            node.run_pod("bad", annotations={name: value})
    assert not node.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items


def test_iperf3_between_two_pods_reaches_what_a_limit_lets_through(node: Node) -> None:
    """The bare figure is that of scripts/bench-network; here it is only that both work."""
    limited = {"kubernetes.io/egress-bandwidth": "50M"}
    server, client = node.run_pod("server"), node.run_pod("client", annotations=limited)
    address = addresses(node, server)[0]
    pins = {pod: f"--net={node.run_dir}/ns/{pod}/net" for pod in (server, client)}
    serve = ["nsenter", pins[server], "iperf3", "-s", "-B", address]
    with subprocess.Popen(serve, stdout=subprocess.DEVNULL) as process:
        try:

            def send(*more: str) -> float:
                command = ["nsenter", pins[client], "iperf3", "-c", address, "-t", "2", "-J", *more]
                return wait_until(lambda: received_bits(command), what="iperf3 has sent")

            out, back = send(), send("--reverse")
        finally:
            process.terminate()
    assert out < 60e6
    assert back > 2 * out


def received_bits(command: list[str]) -> float | None:
    """Run a client; None if the server was not ready for it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with contextlib.suppress(ValueError, KeyError):
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])
    return None


def test_after_a_reboot_everything_of_the_former_boot_is_free(
    own_node: Node, own_host: Namespace
) -> None:
    node = own_node
    wishes = {"network.pycri/addresses": f"{node.subnet.removesuffix('0/24')}77"}
    old = node.run_pod("old", port_mappings=HTTP_PORT, annotations=wishes)

    def lose_network() -> None:
        subprocess.run(["ip", "link", "delete", node.name], check=True)
        subprocess.run(["nft", "flush", "ruleset"], check=True)

    own_host.run(lose_network)
    reboot(node)
    wait_until(lambda: not endpoints(node), what="the former boot's endpoints are free")
    assert node.pod_status(old).state == cri.SANDBOX_NOTREADY
    new = node.run_pod("new", port_mappings=HTTP_PORT, annotations=wishes)
    rules = own_host.run(lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True))
    assert rules.count(". 8080 :") == 2  # one a family
    assert addresses(node, new)[0] == addresses(node, old)[0]


def endpoints(node: Node) -> list[tuple[str]]:
    query = "SELECT pod_id FROM endpoints UNION SELECT pod_id FROM host_ports"
    with contextlib.closing(sqlite3.connect(node.state_dir / "pycri.db")) as database:
        return database.execute(query).fetchall()
