# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench-lists`: what a kubelet's looking costs on a full node, quiet and under load.

All runtimes run at once, each with PODS pods of two containers.

    looks         each call that only looks, in turns
    relists       lists of pods and containers once a second: CPU time of the daemon
    storm         lists, from a process of their own, while images are pulled and removed, files are
                  written and synced on the same disk, and STORM_PODS pods are run, on each in turn;
                  beside it, at the same moments, a server that has nothing else to do is asked:
                  what it takes is the machine's part
"""

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import msgspec

from tests.performance import bench, containerd
from tests.performance.client import LOOKS, SLEEPS, Client
from tests.performance.contestants import Contestant, start_pycri
from tests.performance.report import median, render_table
from tests.world import leaks, session
from tests.world.images import Images
from tests.world.oci import Layer, build_image
from tests.world.registry import Registry

PODS = 100
CONTAINERS_PER_POD = 2
STORM_PODS = 50
STORM_CLIENTS = 4
SYNCERS = 2
SYNCED_BYTES = 1 << 20
PULLED_BYTES = 64 << 20
QUIET_S = 5.0
STORM_S = 15.0
LISTED_BYTES = 40_000
"""What the idle server answers: about what ListPodSandbox does for PODS pods."""
LIST_INTERVAL_S = 0.02


class Looked(msgspec.Struct, kw_only=True):
    """One runtime's numbers: milliseconds by call; the daemon's CPU seconds for each relist.

    quiet, storm: from a process that only lists. idle: of a server with nothing else to do, in the
    same storm.
    """

    name: str
    times: dict[str, list[float]] = {}
    relist_cpu: float = 0.0
    quiet: dict[str, list[float]] = {}
    storm: dict[str, list[float]] = {}
    idle: dict[str, list[float]] = {}


class Report(msgspec.Struct, kw_only=True):
    """A whole run."""

    runtimes: list[Looked]


@click.command()
@click.option("--rounds", default=200, show_default=True, help="Looks of each kind on each.")
@click.option("--pods", default=PODS, show_default=True, help="Pods on each.")
@click.option("--seconds", default=60, show_default=True, help="Relists, one a second.")
@click.option(
    "--storm-seconds", default=STORM_S, show_default=True, help="How long each is under load."
)
@click.option("--peer", "peers", multiple=True, type=click.Choice(["containerd"]))
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every sample here.")
def main(
    rounds: int,
    pods: int,
    seconds: int,
    storm_seconds: float,
    peers: tuple[str, ...],
    file: Path | None,
) -> None:
    """Measure lists and statuses, beside containerd if asked for."""
    if os.geteuid() != 0:
        raise click.ClickException("needs root")
    if "containerd" in peers and (missing := containerd.find_missing_packages()):
        raise click.ClickException(f"run: apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    session.claim_session()
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{leaks.NAME_PREFIX}{session.session_id}-"))
        stack.callback(shutil.rmtree, folder)
        registry = stack.enter_context(Registry.start(folder / "registry"))
        contestants = [stack.enter_context(start_pycri(folder))]
        if "containerd" in peers:
            registry.push(bench.build_pause(folder), "pause")
            peer = containerd.start_containerd(folder, "crun", registry.reference("pause"))
            contestants.append(stack.enter_context(peer))
        image = Images(registry)["busybox"]
        clients = [Client(contestant, image) for contestant in contestants]
        for client in clients:
            stack.callback(client.close)
            stack.callback(client.clear)
            _fill(client, pods)
        report = Report(runtimes=_look(contestants, clients, rounds))
        big = _push_big(registry)
        idle = stack.enter_context(_idle_server(folder / "idle.sock"))
        for looked, contestant, client in zip(report.runtimes, contestants, clients, strict=True):
            looked.relist_cpu = _relist(contestant, seconds)
            looked.quiet = _Listing({"runtime": contestant.socket}, QUIET_S).result()["runtime"]
            sockets = {"runtime": contestant.socket, "idle": idle}
            synced = folder / f"synced-{contestant.name}"
            times = _storm(sockets, client, big, synced, storm_seconds)
            looked.storm, looked.idle = times["runtime"], times["idle"]
    click.echo(render(report))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def _fill(client: Client, pods: int) -> None:
    client.pull()
    for _ in range(pods):
        pod = client.run_pod()
        for number in range(CONTAINERS_PER_POD):
            client.start_container(client.create_container(pod, f"c{number}", SLEEPS))


def _look(contestants: list[Contestant], clients: list[Client], rounds: int) -> list[Looked]:
    for client in clients:
        client.times = {}
        client.look()  # not counted: what was made for the first time
        client.times = {}
    for _ in range(rounds):
        for client in clients:
            client.look()
    return [
        Looked(name=contestant.name, times=client.times)
        for contestant, client in zip(contestants, clients, strict=True)
    ]


def _relist(contestant: Contestant, seconds: int) -> float:
    """Return the CPU seconds of the runtime's daemons for each second in which it is listed."""
    before = _cpu_seconds(contestant)
    subprocess.run(
        _lister({"runtime": contestant.socket}, seconds, 1.0), check=True, capture_output=True
    )
    return (_cpu_seconds(contestant) - before) / seconds


def _cpu_seconds(contestant: Contestant) -> float:
    ticks = 0
    for pid in contestant.daemons.values():
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class _Listing:
    """A lister that runs."""

    def __init__(self, sockets: dict[str, Path], seconds: float) -> None:
        self._process = subprocess.Popen(
            _lister(sockets, seconds, LIST_INTERVAL_S), stdout=subprocess.PIPE
        )

    def result(self) -> dict[str, dict[str, list[float]]]:
        """Return milliseconds by server and call."""
        output, _ = self._process.communicate()
        assert self._process.returncode == 0
        return msgspec.json.decode(output, type=dict[str, dict[str, list[float]]])


def _lister(sockets: dict[str, Path], seconds: float, interval: float) -> list[str]:
    module = [sys.executable, "-m", "tests.performance.lister"]
    named = [f"{name}={socket}" for name, socket in sockets.items()]
    return [*module, str(seconds), str(interval), *named]


@contextlib.contextmanager
def _idle_server(socket: Path) -> Iterator[Path]:
    module = [sys.executable, "-m", "tests.performance.idle_server"]
    command = [*module, str(socket), str(LISTED_BYTES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield socket
        finally:
            server.terminate()


def _push_big(registry: Registry) -> str:
    layer = Layer().file("random", os.urandom(PULLED_BYTES))
    registry.push(build_image([layer.tar()], {}), "big")
    return registry.reference("big")


def _storm(
    sockets: dict[str, Path], client: Client, big: str, folder: Path, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """List while pods are run, again and again; return milliseconds by server and call."""
    over = threading.Event()
    with ThreadPoolExecutor(SYNCERS + 1 + STORM_CLIENTS) as load:
        folder.mkdir()
        others = [load.submit(_sync, folder / str(number), over) for number in range(SYNCERS)]
        others.append(load.submit(_pull, client, big, over))
        listing = _Listing(sockets, seconds)
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            pods = list(load.map(lambda _: _start_pod(client), range(STORM_PODS)))
            list(load.map(client.remove_pod, pods))
        times = listing.result()
        over.set()
        for other in others:
            other.result()
    return times


def _start_pod(client: Client) -> str:
    pod = client.run_pod()
    client.start_container(client.create_container(pod, "main", SLEEPS))
    return pod


def _sync(path: Path, over: threading.Event) -> None:
    written = os.urandom(SYNCED_BYTES)
    with open(path, "wb") as file:
        while not over.is_set():
            file.seek(0)
            file.write(written)
            os.fsync(file.fileno())


def _pull(client: Client, image: str, over: threading.Event) -> None:
    while not over.is_set():
        client.pull_and_remove(image)


def render(report: Report) -> str:
    """Return the report as Markdown."""
    header = ["ms"]
    for runtime in report.runtimes:
        header += [runtime.name, "p99"] + ["ratio"] * (runtime is not report.runtimes[0])
    rows = [header, *([call, *_cells(report.runtimes, call)] for call in LOOKS)]
    relists = [f"{runtime.name}: {runtime.relist_cpu * 1000:.1f} ms" for runtime in report.runtimes]
    ratio = "p99 / median"
    listed = [["ms", "quiet", "p99", "under load", "p99", ratio, "idle server", "p99", ratio]]
    for runtime in report.runtimes:
        for call, quiet in runtime.quiet.items():
            storm, idle = runtime.storm[call], runtime.idle[call]
            cells = [*_spread(quiet)[:2], *_spread(storm), *_spread(idle)]
            listed.append([f"{runtime.name} {call}", *cells])
    return "\n".join(
        [
            *render_table(rows),
            "",
            "CPU of the daemon for a second with one listing of all: " + ", ".join(relists),
            "",
            *render_table(listed),
        ]
    )


def _cells(runtimes: list[Looked], call: str) -> Iterator[str]:
    first = median(runtimes[0].times[call])
    for runtime in runtimes:
        times = runtime.times[call]
        yield f"{median(times):.2f}"
        yield f"{_p99(times):.2f}"
        if runtime is not runtimes[0]:
            yield f"{median(times) / first:.1f}"


def _spread(times: list[float]) -> list[str]:
    """Return median, p99, and how many times the median that is."""
    middle, late = median(times), _p99(times)
    return [f"{middle:.2f}", f"{late:.2f}", f"{late / middle:.1f}"]


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[-1]


if __name__ == "__main__":
    main(prog_name="scripts/bench-lists")
