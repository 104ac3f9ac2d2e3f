# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench-images`: what a pull with its unpacking takes in time and memory.

All contestants pull the same images from the same registry on loopback, and take turns: each round
is one pull on each, with nothing of the image there before. Everything they write is on a file
system of the bench's own (`tests/world/disks.py`).

    pull          the call, or the commands
    on disk       the same, and then syncfs: what the pull has left to the kernel to write
    peak          VmHWM of the daemon, since before the first pull of the image; of a pull's other
                  processes the largest sum that was seen in the warm-up
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
from pathlib import Path

import click
import msgspec

from tests.performance import containerd, image_report
from tests.performance.contestants import start_pycri
from tests.performance.pullers import CriPuller, Puller, SkopeoAndTar, read_skopeo_version
from tests.world import large_images, leaks, session
from tests.world.daemon import wait_until
from tests.world.disks import own_disk
from tests.world.registry import Registry

_DISK_BYTES = 24 * 1024**3
"""Of a file with holes."""
_SLACK_INODES = 500
"""What a daemon may keep for itself."""
_FREE_TIMEOUT_S = 120.0


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Pulls of each image on each.")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Choice(list(large_images.LAYERS)),
    help="What to pull; all by default.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["containerd", "skopeo"]),
    help="What to measure beside pycri.",
)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write every sample here.")
def main(rounds: int, images: tuple[str, ...], peers: tuple[str, ...], file: Path | None) -> None:
    """Measure pulls with pycri, beside others if asked for."""
    if os.geteuid() != 0:
        raise click.ClickException("needs root")
    if "containerd" in peers and (missing := containerd.find_missing_packages()):
        raise click.ClickException(f"run: apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    session.claim_session()
    with contextlib.ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix=f"{leaks.NAME_PREFIX}{session.session_id}-"))
        stack.callback(shutil.rmtree, scratch)
        registry = stack.enter_context(Registry.start(scratch / "registry"))
        disk = scratch / f"{leaks.NAME_PREFIX}{session.session_id}"
        disk.mkdir()
        stack.enter_context(own_disk(scratch / "disk.img", disk, _DISK_BYTES))
        pullers: list[Puller] = [CriPuller(stack.enter_context(start_pycri(disk)))]
        if "containerd" in peers:
            started = containerd.start_containerd(disk, "runc", registry.reference("pause"))
            pullers.append(CriPuller(stack.enter_context(started)))
        if "skopeo" in peers:
            pullers.append(SkopeoAndTar(disk / "skopeo"))
        measured = [
            _measure(name, registry, pullers, disk, rounds=rounds)
            for name in images or large_images.LAYERS
        ]
    report = image_report.Report(host=_read_host(rounds, peers), images=measured)
    click.echo(image_report.render(report))
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def _measure(
    name: str, registry: Registry, pullers: list[Puller], disk: Path, *, rounds: int
) -> image_report.Measured:
    """Pull one image on all, and leave nothing of it."""
    layout = large_images.build_layout(name)
    reference = large_images.push_layout(registry, layout, f"bench/{name}")
    result = image_report.Measured(image=name, facts=large_images.read_facts(layout))
    for puller in pullers:
        click.echo(f"bench-images: {name}: {puller.name}: warm-up", err=True)
        with puller.watched() as peaks:
            _pull_once(puller, reference, disk)
        result.pullers[puller.name] = image_report.Pulls(peaks=peaks)
    for number in range(rounds):
        click.echo(f"bench-images: {name}: round {number + 1} of {rounds}", err=True)
        for puller in pullers:
            pulled, on_disk = _pull_once(puller, reference, disk)
            result.pullers[puller.name].pull_s.append(pulled)
            result.pullers[puller.name].on_disk_s.append(on_disk)
    for puller in pullers:
        result.pullers[puller.name].peaks |= puller.read_peaks()
    return result


def _pull_once(puller: Puller, reference: str, disk: Path) -> tuple[float, float]:
    """Pull and remove. Returns: seconds of the pull, and until it is on disk."""
    _sync(disk)
    free = os.statvfs(disk).f_ffree
    start = time.perf_counter()
    puller.pull(reference)
    pulled = time.perf_counter() - start
    _sync(disk)
    on_disk = time.perf_counter() - start
    puller.remove(reference)
    wait_until(
        lambda: os.statvfs(disk).f_ffree >= free - _SLACK_INODES,
        what=f"{puller.name} has freed the disk",
        timeout_s=_FREE_TIMEOUT_S,
    )
    return pulled, on_disk


def _sync(disk: Path) -> None:
    subprocess.run(["sync", "--file-system", disk], check=True)


def _read_host(rounds: int, peers: tuple[str, ...]) -> dict[str, str]:
    return {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Linux {platform.release()}",
        "software": f"Python {platform.python_version()}",
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "rounds": str(rounds),
        **(containerd.read_versions() if "containerd" in peers else {}),
        **({"skopeo": read_skopeo_version()} if "skopeo" in peers else {}),
    }


if __name__ == "__main__":
    main(prog_name="scripts/bench-images")
