# SPDX-License-Identifier: Apache-2.0
"""A first look at pycri: a daemon of its own, a pod of two containers, and what they did.

Everything is in one temporary folder, with a bridge, an address range and a cgroup of its own, and
goes at the end. It is also an example of a client: all it does goes through the CRI socket.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import grpc  # noqa: TID251  a client of the CRI
from rich.console import Console
from rich.markup import escape

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.world.oci import Layer, build_image, write_layout

IMAGE = "quickstart.local/busybox:1"
CONFIG = """\
state_dir = "{folder}/state"
run_dir = "{folder}/run"
cgroup_parent = "/pycri-quickstart"

[network]
kind = "builtin"
bridge = "pycriquick0"
table = "pycriquick"
range = "10.89.0.0/24"
"""
WEB = "echo 'hello from a pod' > /srv/index.html; echo serving; exec httpd -f -v -p 80 -h /srv"
SIDECAR = "until wget -qO- http://127.0.0.1/; do sleep 0.05; done; exec sleep 86400"
DEADLINE_S = 20
QUICK_TO_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 10),
    ("grpc.min_reconnect_backoff_ms", 10),
    ("grpc.max_reconnect_backoff_ms", 50),
]
"""A client may ask before the daemon listens; by default it would then pause for a second."""

console = Console(highlight=False)


def say(text: str) -> None:
    """Print a step that is done."""
    console.print(f"[green]✓[/] {text}")


def build_layout(folder: Path) -> None:
    """Write an image of the host's static busybox as an OCI layout."""
    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    layer = Layer()
    for directory in ("bin", "dev", "etc", "proc", "srv", "sys", "tmp"):
        layer.directory(directory)
    layer.file("bin/busybox", busybox.read_bytes(), mode=0o755)
    for applet in set(listed.stdout.split()) - {"busybox"}:
        layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n").file("etc/group", "root:x:0:\n")
    image = build_image([layer.tar()], {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})
    write_layout(folder, image, IMAGE)


def run_verb(*words: str, quiet: bool = False) -> None:
    """Run a verb of pycri and end with it if it fails."""
    output = subprocess.DEVNULL if quiet else None
    done = subprocess.run([sys.executable, "-m", "pycri", *words], stdout=output, check=False)
    if done.returncode != 0:
        raise SystemExit(1)


@contextmanager
def serving(folder: Path, *, keep: bool) -> Iterator[grpc.Channel]:
    """Run a daemon with its files in `folder`; end it with all it made, unless kept."""
    config = folder / "config.toml"
    config.write_text(CONFIG.format(folder=folder))
    command = [sys.executable, "-m", "pycri", "serve", "--config", str(config)]
    with open(folder / "daemon.log", "wb") as log:
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    kept = False
    try:
        address = f"unix:{folder}/run/pycri.sock"
        with grpc.insecure_channel(address, options=QUICK_TO_RECONNECT) as channel:
            wait_ready(daemon, channel, folder / "daemon.log")
            yield channel
        kept = keep
    finally:
        if kept:
            explain_kept(daemon.pid, folder)
        else:
            daemon.terminate()
            daemon.wait()
            run_verb("wipe", "--config", str(config))
            shutil.rmtree(folder)
            say("cleaned up: no process, mount, link or file is left")


def wait_ready(daemon: subprocess.Popen[bytes], channel: grpc.Channel, log: Path) -> None:
    """Wait until the daemon answers; end with its log if it does not."""
    stub = cri_grpc.RuntimeServiceStub(channel)
    began = time.monotonic()
    while True:
        try:
            version = stub.Version(cri.VersionRequest(), timeout=1)
            break
        except grpc.RpcError:
            if daemon.poll() is not None or time.monotonic() - began > DEADLINE_S:
                raise SystemExit(f"the daemon did not start:\n{log.read_text()}") from None
        time.sleep(0.02)
    took_ms = (time.monotonic() - began) * 1000
    name = f"{version.runtime_name} {version.runtime_version}"
    say(f"{name} speaks CRI {version.runtime_api_version} after {took_ms:.0f} ms")


def explain_kept(pid: int, folder: Path) -> None:
    """Tell how to go on with the daemon, and how to end it."""
    console.print(
        f"\nThe daemon (pid {pid}) goes on. Look around:\n"
        f"  crictl -r unix://{folder}/run/pycri.sock ps\n"
        f"  .venv/bin/pycri timeline hello --socket {folder}/run/pycri.sock\n"
        f"End it with all it made:\n"
        f"  kill {pid}; tail --pid={pid} -f /dev/null\n"
        f"  .venv/bin/pycri wipe --config {folder}/config.toml && rm -r {folder}",
        soft_wrap=True,
    )


class Tour:
    """The calls of the tour. Each returns when the runtime has done it."""

    def __init__(self, channel: grpc.Channel, folder: Path) -> None:
        self._runtime = cri_grpc.RuntimeServiceStub(channel)
        self._pod_config = cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name="hello", uid="1", namespace="default"),
            hostname="hello",
            log_directory=str(folder / "logs"),
        )
        context = self._pod_config.linux.security_context
        context.namespace_options.pid = cri.CONTAINER
        self.pod = ""
        self.containers: dict[str, str] = {}

    def run_pod(self) -> None:
        request = cri.RunPodSandboxRequest(config=self._pod_config)
        self.pod = self._runtime.RunPodSandbox(request, timeout=DEADLINE_S).pod_sandbox_id

    def run_container(self, name: str, script: str) -> None:
        config = cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=IMAGE),
            command=["sh", "-c", script],
            log_path=f"{name}.log",
        )
        config.linux.security_context.namespace_options.pid = cri.CONTAINER
        created = self._runtime.CreateContainer(
            cri.CreateContainerRequest(
                pod_sandbox_id=self.pod, config=config, sandbox_config=self._pod_config
            ),
            timeout=DEADLINE_S,
        )
        self.containers[name] = created.container_id
        self._runtime.StartContainer(
            cri.StartContainerRequest(container_id=created.container_id), timeout=DEADLINE_S
        )

    def read_address(self) -> str:
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=self.pod)
        return self._runtime.PodSandboxStatus(request, timeout=DEADLINE_S).status.network.ip

    def exec(self, name: str, *command: str) -> str:
        request = cri.ExecSyncRequest(
            container_id=self.containers[name], cmd=command, timeout=DEADLINE_S
        )
        return self._runtime.ExecSync(request, timeout=2 * DEADLINE_S).stdout.decode()

    def read_log(self, name: str) -> str:
        return (Path(self._pod_config.log_directory) / f"{name}.log").read_text()

    def wait_log(self, name: str, text: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.read_log(name):
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} has not said {text!r}:\n{self.read_log(name)}")
            time.sleep(0.01)


def show(title: str, text: str) -> None:
    """Print what a container or a command said."""
    console.print(f"\n[bold]{title}[/]")
    for line in text.splitlines():
        console.print(f"  [dim]│[/] {escape(line)}", soft_wrap=True)


def run_tour(tour: Tour) -> None:
    """Run the pod and look at it."""
    began = time.monotonic()
    tour.run_pod()
    ready = time.monotonic()
    say(f"pod hello is ready after {(ready - began) * 1000:.0f} ms: {tour.pod[:12]}")
    for name, script in {"web": WEB, "sidecar": SIDECAR}.items():
        tour.run_container(name, script)
    took_ms = (time.monotonic() - ready) * 1000
    say(f"containers {' and '.join(tour.containers)} run after another {took_ms:.0f} ms")
    tour.wait_log("sidecar", "hello")
    address = tour.read_address()
    # No proxy of the environment stands between a pod and its node.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/", timeout=DEADLINE_S) as answer:
        page = answer.read().decode()
    show(f"the node asks http://{address}/", page)
    show("the log of web", tour.read_log("web"))
    show("the log of sidecar, which asked web on localhost", tour.read_log("sidecar"))
    show("exec in web: ps; hostname", tour.exec("web", "sh", "-c", "ps; hostname"))
    console.print()


@click.command(help=__doc__)
@click.option("--keep", is_flag=True, help="Leave the daemon and its pod running.")
def main(*, keep: bool) -> None:
    folder = Path(tempfile.mkdtemp(prefix="pycri-quickstart-"))
    with ExitStack() as stack:
        channel = stack.enter_context(serving(folder, keep=keep))
        build_layout(folder / "layout")
        socket_option = ("--socket", f"{folder}/run/pycri.sock")
        run_verb("image", "import", str(folder / "layout"), IMAGE, *socket_option, quiet=True)
        say(f"image {IMAGE} made of this machine's busybox")
        tour = Tour(channel, folder)
        run_tour(tour)
        run_verb("timeline", tour.pod, *socket_option)
        console.print()


if __name__ == "__main__":
    main()
