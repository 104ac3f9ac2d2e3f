# SPDX-License-Identifier: Apache-2.0
"""Debian's containerd as a contestant: an instance of its own, which leaves nothing behind.

    FOLDER/config.toml  net.d/  containerd.sock  log  root/     configuration, images
    FOLDER/upper, work                                          what it writes below /var/lib

It runs in a mount namespace of its own. There /run is a file system in memory (its shims have
/run/containerd built in) and /var/lib is a writable layer over the host's (the CNI library keeps
results in /var/lib/cni). On a host with cgroup v2 beside v1, v2 is not mounted there: crun 1.8
takes such a host for one of v2. Network and rules are in the bench's network namespace.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.performance.cgroups import RuntimeGroup, read_hybrid_mounts
from tests.performance.contestants import Contestant
from tests.world import session
from tests.world.daemon import wait_until

Plugin = dict[str, Any]
"""An object of a conflist's "plugins"."""

OCI_RUNTIMES = ("crun", "runc")
_PACKAGES = {
    "containerd": "containerd",
    "crun": "crun",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "/usr/lib/cni/host-local": "containernetworking-plugins",
}
_STOP_TIMEOUT_S = 20.0

_CONFIG = """\
version = 2
root = "{folder}/root"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.restart", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{folder}/containerd.sock"
[ttrpc]
  address = "/run/containerd/ttrpc.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/root/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  # Root may lack CAP_SYS_RESOURCE.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "{runtime}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{runtime}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{runtime}.options]
        BinaryName = "{binary}"
        Root = "/run/containerd/{runtime}"
"""

_LAUNCH = """\
folder=$1 join=$2
shift 2
echo $$ >"$join"
for hidden; do umount "$hidden"; done
mount -t tmpfs -o mode=755 run /run
mount -t overlay -o "lowerdir=/var/lib,upperdir=$folder/upper,workdir=$folder/work" none /var/lib
mount --make-rshared /
exec containerd --config "$folder/config.toml"
"""


def find_missing_packages() -> list[str]:
    """Return the Debian packages to install before containerd can run."""
    return sorted({package for file, package in _PACKAGES.items() if not shutil.which(file)})


def read_versions() -> dict[str, str]:
    """Return the versions of the Debian packages."""
    packages = sorted(set(_PACKAGES.values()))
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *packages]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in shown.splitlines())


def render_network(bridge: str, chained: Sequence[Plugin] = ()) -> str:
    """Return a conflist that gives pods what pycri's built-in network gives them.

    chained: plugins behind the bridge plugin.
    """
    subnet = session.claim_subnet()
    ipam = {
        "type": "host-local",
        "dataDir": "/run/ipam",
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": ipam,
    }
    return json.dumps({"cniVersion": "1.0.0", "name": bridge, "plugins": [plugin, *chained]})


def _prepare(folder: Path, runtime: str, pause_image: str, network: str) -> None:
    for part in ("net.d", "root", "upper", "work"):
        (folder / part).mkdir(parents=True)
    (folder / "net.d/10-bridge.conflist").write_text(network)
    config = _CONFIG.format(
        folder=folder, pause_image=pause_image, runtime=runtime, binary=shutil.which(runtime)
    )
    (folder / "config.toml").write_text(config)


def _is_ready(process: subprocess.Popen[bytes], socket: Path, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"containerd ended: {log.read_text()[-2000:]}")
    try:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            runtime = cri_grpc.RuntimeServiceStub(channel)
            status = runtime.Status(cri.StatusRequest(), timeout=2).status
    except grpc.RpcError:
        return False
    return all(condition.status for condition in status.conditions)


@contextmanager
def start_containerd(
    folder: Path, runtime: str, pause_image: str, *, chained: Sequence[Plugin] = ()
) -> Iterator[Contestant]:
    """Run containerd.

    runtime: "crun" or "runc". pause_image: the reference of what holds a pod's namespaces.
    chained: CNI plugins behind the bridge plugin.
    """
    name = f"{folder.name[:8]}{runtime}"
    folder = folder / f"containerd-{runtime}"
    _prepare(folder, runtime, pause_image, render_network(name, chained))
    group = RuntimeGroup(name)
    log = folder / "log"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _LAUNCH, "sh"]
    arguments = [folder, group.make_daemon_group(), *read_hybrid_mounts()]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        socket = folder / "containerd.sock"
        wait_until(lambda: _is_ready(process, socket, log), what="containerd is ready")
        yield Contestant(
            name=f"containerd+{runtime}",
            socket=socket,
            folder=folder,
            group=group,
            daemons={"daemon": process.pid},
        )
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        finally:
            group.remove()
