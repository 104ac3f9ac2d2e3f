# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench-network`: what the network takes of a pod's start, and what it carries.

All runtimes run at once on folders, groups and networks of their own, and take turns. containerd,
and pycri with CNI, run Debian's plugins: bridge with host-local addresses, and portmap.

    rounds        a pod on the host's network, one on its own, one with a host port; the network's
                  part is the difference
    bursts        BURST pods asked for at once, one runtime after the other
    throughput    iperf3 between two pods of the built-in network, over a bare veth pair, and over a
                  bridge without rules; on a host whose IP tables do not see what bridges carry, and
                  on one where they do (br_netfilter)
"""

import contextlib
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from pycri.cri.api import node_v1_pb2, node_v1_pb2_grpc
from pycri.cri.api import runtime_v1_pb2 as cri
from tests.performance import bench, containerd, network_report, throughput
from tests.performance.client import Client
from tests.performance.contestants import Contestant, start_pycri
from tests.performance.network_report import HOST, OWN, PORT
from tests.world import leaks, session
from tests.world.cni import CniFolders
from tests.world.images import Images
from tests.world.registry import Registry

BURST = 100
BURSTS = 3
WARM_UPS = 2
SETTLE_S = 0.2
"""Before a pod is run: the kernel removes the links of the last one, and holds a lock meanwhile."""
SECONDS = 1
"""Of one measurement of throughput."""
CALLS_IP_TABLES = tuple(
    Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}") for name in ("iptables", "ip6tables")
)
FIGURES = ("pods", "throughput")

_PORTMAP: containerd.Plugin = {"type": "portmap", "capabilities": {"portMappings": True}}
_ports = itertools.count(20000)


@click.command()
@click.option(
    "--figure",
    "figures",
    multiple=True,
    type=click.Choice(FIGURES),
    default=FIGURES,
    help="What to measure, again for more; all by default.",
)
@click.option("--rounds", default=20, show_default=True, help="Pods of each kind on each.")
@click.option("--streams", default=30, show_default=True, help="Streams over each path.")
@click.option("--burst", default=BURST, show_default=True, help="Pods asked for at once.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["containerd", "cni"]),
    help="What to measure beside pycri: containerd with crun; pycri with CNI plugins.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every sample here.")
def main(
    figures: tuple[str, ...],
    rounds: int,
    streams: int,
    burst: int,
    peers: tuple[str, ...],
    file: Path | None,
) -> None:
    """Measure pycri's network, beside others if asked for."""
    _check_host(peers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    session.claim_session()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{leaks.NAME_PREFIX}{session.session_id}-"))
        stack.callback(shutil.rmtree, folder)
        registry = stack.enter_context(Registry.start(folder / "registry"))
        contestants = [stack.enter_context(start_pycri(folder))]
        if "cni" in peers:
            contestants.append(_start_cni(stack, folder))
        if "containerd" in peers:
            registry.push(bench.build_pause(folder), "pause")
            started = containerd.start_containerd(
                folder, "crun", registry.reference("pause"), chained=[_PORTMAP]
            )
            contestants.append(stack.enter_context(started))
        clients = [Client(contestant, Images(registry)["busybox"]) for contestant in contestants]
        for client in clients:
            stack.callback(client.close)
            stack.callback(client.clear)
        report = network_report.Report(host=_read_host(rounds, streams, peers), burst=burst)
        if "pods" in figures:
            report.runtimes = _measure_pods(contestants, clients, rounds=rounds, burst=burst)
        if "throughput" in figures:
            report.carried = _measure_throughput(contestants[0], clients[0], rounds=streams)
    click.echo(network_report.render(report))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def _check_host(peers: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        raise click.ClickException("needs root")
    missing = containerd.find_missing_packages() if "containerd" in peers else []
    missing += [] if shutil.which("iperf3") else ["iperf3"]
    if missing:
        raise click.ClickException(f"run: apt-get install {' '.join(missing)}")


def _start_cni(stack: contextlib.ExitStack, folder: Path) -> Contestant:
    folders = CniFolders(folder / "cni")
    bridge = f"{folder.name[:8]}cni"
    (folders.conf_dir / "10.conflist").write_text(containerd.render_network(bridge, [_PORTMAP]))
    # What host-local writes to /run goes with the mount namespace.
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run"], check=True)
    network = 'kind = "cni"'
    return stack.enter_context(
        start_pycri(folder, name="pycri+cni", settings=folders.toml(), network=network)
    )


def _read_host(rounds: int, streams: int, peers: tuple[str, ...]) -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Linux {platform.release()}",
        "software": f"Python {platform.python_version()}",
        "rounds": str(rounds),
        "streams": f"{streams} over each path, {SECONDS} s each",
        **(containerd.read_versions() if "containerd" in peers else {}),
    }


def _measure_pods(
    contestants: list[Contestant], clients: list[Client], *, rounds: int, burst: int
) -> list[network_report.Measured]:
    measured = [network_report.Measured(name=contestant.name) for contestant in contestants]
    for client in clients:
        for _ in range(WARM_UPS):
            _live(client)
        client.times = {}
    _say(f"{rounds} rounds")
    for _ in range(rounds):
        for client in clients:
            _live(client)
    for result, client in zip(measured, clients, strict=True):
        result.runs = {kind: client.times[kind] for kind in (HOST, OWN, PORT)}
    for _ in range(BURSTS):
        for result, client in zip(measured, clients, strict=True):
            _say(f"{result.name}: {burst} pods at once")
            result.bursts.append(client.run_pods(burst))
            result.ends.append(client.remove_pods())
    return measured


def _live(client: Client) -> None:
    """Run and remove a pod of each kind."""
    port = cri.PortMapping(container_port=80, host_port=next(_ports))
    runs: tuple[Callable[[], str], ...] = (
        lambda: client.run_pod(host_network=True, name=HOST),
        lambda: client.run_pod(name=OWN),
        lambda: client.run_pod(port=port, name=PORT),
    )
    for run in runs:
        time.sleep(SETTLE_S)
        client.remove_pod(run())


def _measure_throughput(
    contestant: Contestant, client: Client, *, rounds: int
) -> dict[str, list[float]]:
    """Measure all paths in turns."""
    one, other = client.run_pod(), client.run_pod()
    pins = contestant.socket.parent / "ns"
    pods = throughput.Path(
        name="pod to pod, built-in network",
        client=f"{pins}/{one}/net",
        server=f"{pins}/{other}/net",
        address=client.address(other),
    )
    carried: dict[str, list[float]] = {}
    node = node_v1_pb2_grpc.NodeStub(client.channel)
    with throughput.bare_veth_pair() as bare, throughput.plain_bridge() as bridge:
        turns = [("", path) for path in (bare, bridge, pods)]
        if all(file.exists() for file in CALLS_IP_TABLES):
            turns += [(", br_netfilter", path) for path in (bridge, pods)]
        for number in range(rounds):
            _say(f"throughput {number + 1}/{rounds}")
            for condition, path in turns if number % 2 == 0 else reversed(turns):
                _call_ip_tables(node, "1" if condition else "0")
                rate = throughput.measure(path, SECONDS)
                carried.setdefault(f"{path.name}{condition}", []).append(rate)
    client.clear()
    return {
        f"{path.name}{condition}": carried[f"{path.name}{condition}"] for condition, path in turns
    }


def _call_ip_tables(node: node_v1_pb2_grpc.NodeStub, value: str) -> None:
    """Say whether IP tables see what bridges carry, and have the daemon look at it."""
    for file in CALLS_IP_TABLES:
        if file.exists():
            file.write_text(value)
    node.CollectNetwork(node_v1_pb2.CollectNetworkRequest())


def _say(text: str) -> None:
    click.echo(f"bench-network: {text}", err=True)


if __name__ == "__main__":
    main(prog_name="scripts/bench-network")
