# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench`: what each CRI call costs in time, and an idle pod in memory.

All runtimes run at once on folders, groups and networks of their own, and take turns: each round is
one pod's life on each, so that a drift of the machine hits all alike. One client serves all, over
the same image from the same registry.

    memory        PODS idle pods, PSS before and after, one runtime after the other; first, because
                  a heap that many calls have widened would hide what pods cost
    listing       LISTED containers, ListContainers in turns
    rounds        pods live and die, one at a time (`Client.live_once`)
"""

import contextlib
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

from tests.performance import containerd, memory, report
from tests.performance.client import SLEEPS, Client
from tests.performance.contestants import Contestant, start_pycri
from tests.world import leaks, session
from tests.world.images import Images
from tests.world.oci import Image, Layer, build_image
from tests.world.registry import Registry

PODS = 20
WARM_UPS = 2
SETTLE_S = 3.0
"""Before memory is read: garbage collectors and late work of the kernel come to rest."""


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Pods that live and die on each.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["containerd", "none"]),
    help="What to measure beside pycri; containerd means one with crun and one with runc.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every sample here.")
def main(rounds: int, peers: tuple[str, ...], file: Path | None) -> None:
    """Measure pycri, beside other runtimes if asked for."""
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
            contestants += _start_containerds(stack, folder, registry)
        measured = measure(contestants, Images(registry)["busybox"], rounds=rounds)
    result = report.Report(host=_read_host(rounds, peers), runtimes=measured)
    click.echo(report.render(result))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(result)))


def _start_containerds(
    stack: contextlib.ExitStack, folder: Path, registry: Registry
) -> list[Contestant]:
    registry.push(build_pause(folder), "pause")
    pause = registry.reference("pause")
    return [
        stack.enter_context(containerd.start_containerd(folder, runtime, pause))
        for runtime in containerd.OCI_RUNTIMES
    ]


def build_pause(folder: Path) -> Image:
    """Build the image of the process that holds a pod's namespaces for containerd."""
    program = folder / "pause"
    source = Path(__file__).with_name("pause.c")
    subprocess.run(["gcc", "-Os", "-static", "-s", "-o", program, source], check=True)
    layer = Layer().file("pause", program.read_bytes(), mode=0o755)
    return build_image([layer.tar()], {"Entrypoint": ["/pause"], "User": "65535:65535"})


def _read_host(rounds: int, peers: tuple[str, ...]) -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Linux {platform.release()}",
        "software": f"Python {platform.python_version()}",
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "rounds": str(rounds),
        **(containerd.read_versions() if "containerd" in peers else {}),
    }


def measure(contestants: list[Contestant], image: str, *, rounds: int) -> list[report.Measured]:
    """Measure all contestants and remove all pods."""
    clients = [Client(contestant, image) for contestant in contestants]
    results = []
    with contextlib.ExitStack() as stack:
        for contestant, client in zip(contestants, clients, strict=True):
            stack.callback(client.close)
            stack.callback(client.clear)
            _say(f"{contestant.name}: image, warm-up, memory")
            client.pull()
            for _ in range(WARM_UPS):
                client.live_once()
            results.append(_measure_memory(contestant, client))
            _fill(client)
        _say("listing")
        listings = _take_turns(clients, rounds, Client.list_containers)
        for client in clients:
            client.clear()
        _say(f"{rounds} rounds")
        lives = _take_turns(clients, rounds, Client.live_once)
    for result, lived, listed in zip(results, lives, listings, strict=True):
        result.times = {**lived, report.LISTING: listed[report.LISTING]}
    return results


def _take_turns(
    clients: list[Client], rounds: int, action: Callable[[Client], None]
) -> list[dict[str, list[float]]]:
    """Do something on each runtime in turn, `rounds` times; return what each client timed."""
    for client in clients:
        client.times = {}
    for _ in range(rounds):
        for client in clients:
            action(client)
    return [client.times for client in clients]


def _measure_memory(contestant: Contestant, client: Client) -> report.Measured:
    time.sleep(SETTLE_S)
    empty = memory.read_memory(contestant)
    for _ in range(PODS):
        client.start_container(client.create_container(client.run_pod(), "main", SLEEPS))
    time.sleep(SETTLE_S)
    return report.Measured(
        name=contestant.name,
        version=client.read_version(),
        pods=PODS,
        empty=empty,
        full=memory.read_memory(contestant),
    )


def _fill(client: Client) -> None:
    """Add containers to the pods until LISTED are on the node."""
    for number in range(report.LISTED // PODS - 1):
        for pod in client.pods:
            client.start_container(client.create_container(pod, f"more-{number}", SLEEPS))


def _say(text: str) -> None:
    click.echo(f"bench: {text}", err=True)


if __name__ == "__main__":
    main(prog_name="scripts/bench")
