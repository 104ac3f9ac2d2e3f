# SPDX-License-Identifier: Apache-2.0
"""Pods that get a network made ahead of them: it is as any other, and nobody misses the addresses.

Each node is on a host of its own, which is a network namespace.
"""

import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.integration.kernel.netns import Namespace, run_in
from tests.world import leaks, witness
from tests.world.daemon import CALL_TIMEOUT_S, Node, refused, wait_until
from tests.world.images import Images

READY = 2
ADDRESSES = "network.pycri/addresses"
HTTP_PORT = [{"container_port": 80, "host_port": 8080}]


@pytest.fixture
def host() -> Iterator[Namespace]:
    with Namespace() as host:
        yield host


@pytest.fixture
def make_node(host: Namespace, scope: leaks.Scope) -> Iterator[Callable[..., Node]]:
    nodes: list[Node] = []

    def make(*, count: int = READY, **words: Any) -> Node:
        words.setdefault("netns", host.path)
        nodes.append(Node(scope, ready=count, **words))
        nodes[-1].start()
        wait_ready(nodes[-1], count)
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


@pytest.fixture
def node(make_node: Callable[..., Node]) -> Node:
    return make_node(ipv6=True)


def wait_ready(node: Node, count: int = READY) -> set[str]:
    """Wait until so many are ready; return the ids of all pods and of those to come."""
    request = cri.StatusRequest(verbose=True)

    def ready() -> int:
        return int(node.runtime.Status(request, timeout=CALL_TIMEOUT_S).info["ready_networks"])

    wait_until(lambda: ready() == count, what=f"{count} networks are ready")
    return set(os.listdir(node.run_dir / "ns"))


def pin(node: Node, pod: str) -> str:
    return f"{node.run_dir}/ns/{pod}/net"


def ruleset() -> str:
    return subprocess.check_output(["nft", "list", "ruleset"], text=True)


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is to be seen of a pod's network, without its own names and addresses."""

    inside: witness.Seen
    host_end: witness.SeenLink
    settings: dict[str, str]
    rules: list[str]


def behold(node: Node, host: Namespace, pod: str) -> Sight:
    inside, outside = run_in(pin(node, pod), witness.look), host.run(witness.look)
    name = next(name for name in outside.links if name.endswith(pod[:9]))
    addresses = sorted(map(ip_interface, inside.addresses["eth0"]), key=lambda a: a.is_link_local)
    own = {inside.links["eth0"].mac: "MAC", name: "HOST_END"}
    for at in addresses:
        kind = f"{at.version}{'L' if at.is_link_local else ''}"
        own |= {f"0x{at.packed.hex()}": f"PACKED{kind}", str(at.ip): f"ADDRESS{kind}"}

    def anonymous(text: str) -> str:
        for word, stand_in in own.items():
            text = re.sub(rf"\b{re.escape(word)}\b", stand_in, text)
        return text

    words = host.run(ruleset).replace("{", ",").replace("}", ",").split(",")
    return Sight(
        inside=msgspec.json.decode(
            anonymous(msgspec.json.encode(inside).decode()), type=witness.Seen
        ),
        host_end=msgspec.structs.replace(outside.links[name], mac=""),
        settings=run_in(pin(node, pod), lambda: read_settings(Path("/proc/sys/net"))),
        rules=sorted(anonymous(word.strip()) for word in words if name in word),
    )


def read_settings(folder: Path) -> dict[str, str]:
    """Return the sysctls of the calling thread's network namespace that have a value."""
    found = {}
    for file in sorted(folder.rglob("*")):
        try:
            found[str(file)] = file.read_text()
        except OSError:
            continue
    return found


def test_a_network_made_ahead_is_as_one_that_is_made_with_the_pod(
    node: Node, host: Namespace
) -> None:
    before = wait_ready(node)
    one = node.run_pod("one")
    assert one in before
    other = node.run_pod("other", annotations={ADDRESSES: f"{node.subnet.removesuffix('0/24')}200"})
    assert other not in before
    seen, ordinary = behold(node, host, one), behold(node, host, other)
    assert not seen.settings.items() ^ ordinary.settings.items()
    assert seen == ordinary
    assert len(seen.settings) > 200
    assert len(seen.rules) == 5, seen.rules  # three senders, two targets
    assert (seen.host_end.master, seen.host_end.hairpin) == (node.name, True)
    assert seen.inside.settled
    assert len(node.pod_status(one).network.additional_ips) == 1


def test_a_pod_sets_what_is_its_own_and_its_init_is_in_its_network(
    make_node: Callable[..., Node], images: Images
) -> None:
    node = make_node(netns="")  # this host's own, where the registry is
    before = wait_ready(node)
    sysctls = {"net.core.somaxconn": "77", "net.ipv4.ip_unprivileged_port_start": "1000"}
    pod = node.run_pod("own", namespaces={"pid": cri.POD}, linux={"sysctls": sysctls})
    assert pod in before
    container = node.run_container(pod, images["busybox"], command=["sleep", "60"])
    for name, value in sysctls.items():
        assert node.shell(container, f"sysctl -n {name}") == f"{value}\n"
    assert node.shell(container, "hostname") == "own\n"
    interfaces = node.shell(container, "cat /proc/1/net/dev").splitlines()[2:]
    assert {line.split(":")[0].strip() for line in interfaces} == {"lo", "eth0"}


def test_host_ports_and_limits_are_added_to_what_is_ready(node: Node, host: Namespace) -> None:
    before = wait_ready(node)
    limits = {"kubernetes.io/egress-bandwidth": "8M", "kubernetes.io/ingress-bandwidth": "16M"}
    pod = node.run_pod("served", port_mappings=HTTP_PORT, annotations=limits)
    assert pod in before
    assert run_in(pin(node, pod), witness.look).queues["eth0"].rate == 1_000_000
    (into,) = host.run(witness.look).queues.values()
    assert into.rate == 2_000_000
    with run_in(pin(node, pod), lambda: socket.create_server(("", 80))) as listener:
        listener.settimeout(CALL_TIMEOUT_S)
        with host.connect("127.0.0.1", 8080), listener.accept()[0]:
            pass
    wait_ready(node)
    with refused(grpc.StatusCode.ALREADY_EXISTS, "*:8080/TCP", f"pod {pod} has"):
        node.run_pod("late", port_mappings=HTTP_PORT)
    wait_ready(node)
    assert node.ask("network", "check") == ""
    node.ask("network", "gc")
    assert wait_ready(node) > {pod}, "what is ready is nobody's to collect"
    assert len(node.ask("network", "ls").splitlines()) == 1


def test_a_burst_larger_than_what_is_ready_has_all_its_pods(node: Node) -> None:
    pods = [node.run_pod(f"pod-{number}") for number in range(3 * READY)]
    assert len({node.pod_ip(pod) for pod in pods}) == 3 * READY
    assert wait_ready(node) > set(pods)
    assert node.ask("network", "check") == ""


def test_addresses_that_are_kept_ready_are_given_up_before_a_pod_is_refused(
    make_node: Callable[..., Node],
) -> None:
    # Eight addresses: the network's, the bridge's, five pods', the broadcast.
    node = make_node(prefix=29, count=4)
    base = node.subnet.removesuffix("0/24")
    chosen = [f"{base}{number}" for number in range(2, 7)]
    for address in chosen:
        pod = node.run_pod("chosen", annotations={ADDRESSES: address})
        assert node.pod_ip(pod) == address
        wait_ready(node, 4)
        node.stop_pod(pod)
        node.remove_pod(pod)
    pods = [node.run_pod(f"pod-{number}") for number in range(5)]
    assert {node.pod_ip(pod) for pod in pods} == set(chosen)
    with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "address"):
        node.run_pod("one-too-many")
    node.stop_pod(pods[2])
    assert node.pod_ip(node.run_pod("now")) in chosen


def test_another_range_has_all_made_anew(make_node: Callable[..., Node], host: Namespace) -> None:
    node = make_node()
    former = wait_ready(node)
    other = f"10.96.{node.subnet.split('.')[2]}.0/24"
    config = cri.RuntimeConfig(network_config=cri.NetworkConfig(pod_cidr=other))
    node.runtime.UpdateRuntimeConfig(cri.UpdateRuntimeConfigRequest(runtime_config=config))
    pod = node.run_pod("new")
    assert pod not in former
    assert node.pod_ip(pod).startswith(other.removesuffix("0/24"))
    assert not wait_ready(node) & former

    def gateways() -> set[str]:
        node.ask("network", "gc")
        return {a for a in host.run(witness.look).addresses[node.name] if "." in a}

    wait_until(lambda: len(gateways()) == 1, what="nobody has an address of the former range")


def test_a_pod_does_not_get_a_network_that_others_have_harmed(node: Node, host: Namespace) -> None:
    before = wait_ready(node)
    harmed = next(
        n for n in host.run(witness.look).links if n.endswith(tuple(p[:9] for p in before))
    )
    host.run(lambda: subprocess.run(["ip", "link", "delete", harmed], check=True))
    pods = [node.run_pod(f"pod-{number}") for number in range(READY)]
    assert not any(harmed.endswith(pod[:9]) for pod in pods)
    host.run(lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
    pod = node.run_pod("after")
    wait_until(lambda: pod[:9] in host.run(ruleset), what="the rules know the pod")
    wait_ready(node)
    assert node.ask("network", "check") == ""


def test_cni_takes_no_network_that_is_ready(
    make_node: Callable[..., Node], tmp_path: Path, host: Namespace
) -> None:
    settings = f'[network.cni]\nconf_dir = "{tmp_path}"\n'
    node = make_node(settings=settings, network='kind = "auto"')
    (tmp_path / "10.conflist").write_text("{")
    with refused(grpc.StatusCode.UNAVAILABLE, "10.conflist"):
        node.run_pod("cni")
    assert wait_ready(node, 0) == set()
    wait_until(lambda: host.run(witness.look).links.keys() == {"lo", node.name}, what="links go")


def test_a_daemon_that_is_ended_leaves_none_and_the_next_makes_them_anew(
    node: Node, host: Namespace
) -> None:
    former = wait_ready(node)
    node.stop()
    assert os.listdir(node.run_dir / "ns") == []
    node.start()
    assert not wait_ready(node) & former
    assert "without a record" not in node.daemon_log()
    assert node.ask("network", "check") == ""
