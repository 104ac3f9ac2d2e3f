# SPDX-License-Identifier: Apache-2.0
"""Debian's crun and runc as other executors of the plan that a node has made for a container.

    FOLDER/RUNTIME-NUMBER/  config.json  root (the mounted overlay)  upper  work  state

The plan is made by pycri's own planner from the records in the node's database, under a new id. It
runs in a mount namespace of its own, so that nothing has to be unmounted. On a host with cgroup
v2 beside v1, v2 is not mounted there: crun 1.8 takes such a host for one of v2.
"""

import itertools
import os
import pty
import shutil
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from pycri.config import Settings, load
from pycri.images.store import ImageStore
from pycri.kernel.features import probe_host
from pycri.model.container import ContainerRecord
from pycri.model.ids import ContainerId
from pycri.model.image import Image
from pycri.model.plan import BindMount, ContainerPlan, MakeDirectory, MountOverlay
from pycri.model.pod import PodRecord
from pycri.model.seccomp import SeccompFilter
from pycri.model.security import CAPABILITY_NAMES
from pycri.plan.oci import Bundle, render_config
from pycri.plan.seccomp import select_rules
from pycri.plan.seccomp_default import default_profile
from pycri.pods.foundation import Foundation
from pycri.pods.layout import Layout
from pycri.pods.planning import Planner
from pycri.state.records import load_containers, load_pods
from tests.world import session
from tests.world.daemon import Node

_RUN_TIMEOUT_S = 20.0
_numbers = itertools.count(1)

_LAUNCH = """\
overlay=$1 root=$2
shift 2
while [ "$1" != -- ]; do umount "$1"; shift; done
shift
mount -t overlay -o "$overlay" overlay "$root"
exec "$@"
"""


class Records:
    """The pods and containers in a node's database, and the folders of its layers."""

    def __init__(self, node: Node) -> None:
        self.settings: Settings = load(node.config)
        connection = sqlite3.connect(f"file:{self.settings.database_path}?mode=ro", uri=True)
        try:
            self._pods = {pod.id: pod for pod in load_pods(connection)}
            self._containers = {found.id: found for found in load_containers(connection)}
        finally:
            connection.close()

    def pod(self, pod_id: str) -> PodRecord:
        """Return a pod."""
        return next(pod for found, pod in self._pods.items() if found == pod_id)

    def container(self, container_id: str) -> ContainerRecord:
        """Return a container."""
        return next(record for found, record in self._containers.items() if found == container_id)

    def layer_paths(self, image: Image) -> tuple[str, ...]:
        """Return the folders of an image's layers, topmost first."""
        folder = f"{self.settings.state_dir}/images/layers"
        return tuple(f"{folder}/{layer.partition(':')[2]}" for layer in reversed(image.layers))


def plan_again(node: Node, container: str) -> tuple[ContainerPlan, ContainerRecord]:
    """Return the plan of a container of the node under another id, so in another group."""
    records = Records(node)
    record = records.container(container)
    number = f"{next(_numbers):04x}"
    again = msgspec.structs.replace(
        record,
        id=ContainerId(number + record.id[4:]),
        cgroup=record.cgroup.replace(record.id, number + record.id[4:]),
    )
    foundation = SimpleNamespace(
        settings=records.settings,
        host=probe_host(),
        catalogue=records,
        layout=Layout(records.settings),
    )
    planner = Planner(cast(Foundation, foundation), cast(ImageStore, records))
    return planner.plan(again), again


def run_plan(node: Node, runtime: str, container: str) -> str:
    """Run the plan of a container of the node by an OCI runtime; return what it printed.

    runtime: "crun" or "runc". It must end with code 0.
    """
    plan, record = plan_again(node, container)
    folder = node.folder / f"{runtime}-{record.id[:4]}"
    for name in ("root", "upper", "work"):
        (folder / name).mkdir(parents=True)
    try:
        _prepare(plan, folder)
        pid_namespace = ""
        if plan.pid_target:
            pid_namespace = f"/proc/{_init_pid(node, plan.pid_target)}/ns/pid"
        bundle = Bundle(
            rootfs=str(folder / "root"),
            cgroup=record.cgroup,
            pid_namespace=pid_namespace,
            seccomp=_default_filter(plan) if plan.process.seccomp else None,
        )
        (folder / "config.json").write_bytes(render_config(plan, bundle))
        command = [*_launcher(plan, folder), *_invocation(runtime, folder, record.id)]
        return _run(command, terminal=plan.process.terminal)
    finally:
        _remove_groups(plan)
        shutil.rmtree(folder)


def _default_filter(plan: ContainerPlan) -> SeccompFilter:
    """Return what our default profile is for a plan; the tests use no other."""
    bounding = plan.process.capabilities.bounding
    names = frozenset(CAPABILITY_NAMES[number] for number in bounding)
    host = probe_host()
    return select_rules(default_profile(), names, host.architecture, host.kernel)


def _prepare(plan: ContainerPlan, folder: Path) -> None:
    """Make what OCI has no words for: missing sources, folders in the root."""
    for step in plan.steps:
        match step:
            case BindMount(create_source=True) if not os.path.exists(step.source):
                os.makedirs(step.source)
            case MakeDirectory():
                (folder / "upper" / step.path.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _init_pid(node: Node, task: str) -> int:
    """Return the pid of a pod's init, which is in the pod's own group."""
    (file,) = Path("/sys/fs/cgroup").glob(f"pids/{node.name}/*/{task}/cgroup.procs")
    return int(file.read_text().split()[0])


def _launcher(plan: ContainerPlan, folder: Path) -> list[str]:
    overlay = plan.steps[0]
    assert isinstance(overlay, MountOverlay)
    layers = ":".join(overlay.layers)
    options = f"lowerdir={layers},upperdir={folder}/upper,workdir={folder}/work,volatile"
    start = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", _LAUNCH, "sh"]
    return [*start, options, str(folder / "root"), *_hybrid_mounts(), "--"]


def _hybrid_mounts() -> list[str]:
    """Return where cgroup v2 is mounted beside v1."""
    with open("/proc/self/mounts") as table:
        kinds = {point: kind for _, point, kind, *_ in map(str.split, table)}
    points = [point for point, kind in kinds.items() if kind == "cgroup2"]
    return points if "cgroup" in kinds.values() else []


def _invocation(runtime: str, folder: Path, container: str) -> list[str]:
    return [runtime, "--root", str(folder / "state"), "run", "--bundle", str(folder), container]


def _run(command: list[str], *, terminal: bool) -> str:
    words: dict[str, Any] = {"env": session.environment(), "timeout": _RUN_TIMEOUT_S}
    if not terminal:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, **words)
        assert done.returncode == 0, f"{command}: {done.stderr!r}"
        return str(done.stdout, "utf-8")
    ours, theirs = pty.openpty()
    try:
        with open(theirs, "rb+", buffering=0) as end:
            done = subprocess.run(command, stdin=end, stdout=end, stderr=end, **words)
        return _read_terminal(ours).decode()
    finally:
        os.close(ours)


def _read_terminal(fd: int) -> bytes:
    """Read what is left in a pty whose other end is closed: then the kernel says EIO."""
    content = b""
    try:
        while chunk := os.read(fd, 65536):
            content += chunk
    except OSError:
        pass
    return content


def _remove_groups(plan: ContainerPlan) -> None:
    for directory in plan.cgroup.directories:
        if os.path.isdir(directory):
            os.rmdir(directory)
