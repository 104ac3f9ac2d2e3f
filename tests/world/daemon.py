# SPDX-License-Identifier: Apache-2.0
"""Node: a whole pycri on folders, addresses and names of its own, and a client's view of it.

    FOLDER/config.toml  daemon.log  run/ (run_dir)  state/ (state_dir)  logs/POD/CONTAINER.log

Requests are built from few words; every field that a test does not name has a plain value.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import grpc
import msgspec

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.world import leaks, session

START_TIMEOUT_S = 20.0 * session.TIME_FACTOR
CALL_TIMEOUT_S = 30.0 * session.TIME_FACTOR
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 64 << 20),
    # The first try comes before the daemon listens; by default the next would be a second later.
    ("grpc.initial_reconnect_backoff_ms", 10),
    ("grpc.min_reconnect_backoff_ms", 10),
    ("grpc.max_reconnect_backoff_ms", 50),
]
_numbers = itertools.count(1)
_Found = TypeVar("_Found")


def wait_until(
    probe: Callable[[], _Found | None], *, what: str, timeout_s: float = CALL_TIMEOUT_S
) -> _Found:
    """Call `probe` until it returns something true, and return that; fail at the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (found := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.01)
    return found


@contextmanager
def refused(code: grpc.StatusCode, *words: str) -> Iterator[None]:
    """Expect a call to fail with `code` and a message that has all `words`."""
    try:
        yield
    except grpc.RpcError as error:
        message = str(error.details())
        assert error.code() is code, f"{error.code()}: {message}"
        missing = [word for word in words if word not in message]
        assert not missing, f"{missing} not in: {message}"
    else:
        raise AssertionError(f"not refused with {code.name}")


class LogLine(msgspec.Struct, frozen=True):
    """A line of a CRI log file: "TIME STREAM TAG CONTENT"."""

    time: str
    stream: str
    tag: str
    content: str


def parse_log(text: str) -> list[LogLine]:
    """Split a CRI log; a line that is not whole is an error."""
    assert not text or text.endswith("\n"), f"torn line: {text[-200:]!r}"
    lines = [LogLine(*line.split(" ", 3)) for line in text.split("\n")[:-1]]
    assert {line.stream for line in lines} <= {"stdout", "stderr"}, lines
    assert {line.tag for line in lines} <= {"P", "F"}, lines
    return lines


class Node:
    """A pycri under test. `runtime` and `images` are the two services of its socket.

    open: the nodes that have not been closed.
    """

    open: ClassVar[list["Node"]] = []

    def __init__(
        self,
        scope: leaks.Scope,
        *,
        settings: str = "",
        prefix: int = 24,
        log_level: str = "debug",
        run_dir: Path | None = None,
        network: str = 'kind = "builtin"',
        netns: str = "",
        ipv6: bool = False,
        ready: int | None = 0,
    ) -> None:
        """Write the config of a new node. Nothing runs yet.

        settings: TOML of further keys. prefix: length of the address range's. run_dir: elsewhere
        than in the node's folder. network: TOML of further keys of its table. netns: the network
        namespace that is the node's host, whose lo is brought up; "" is ours. ipv6: pods have
        addresses of it, too. ready: networks made ahead of pods, which come and go by themselves;
        None is the default of the settings.
        """
        self.name = f"{leaks.NAME_PREFIX}{session.session_id}n{next(_numbers)}"
        self.folder = Path(scope.folders[0], self.name)
        self.run_dir = run_dir or self.folder / "run"
        self.state_dir = self.folder / "state"
        self.config = self.folder / "config.toml"
        self.subnet = session.claim_subnet()
        subnets = f"{self.subnet.removesuffix('24')}{prefix}"
        if ipv6:
            subnets += f",fd00:97:{self.subnet.split('.')[2]}::/64"
        self._enter = ["nsenter", f"--net={netns}"] if netns else []
        if netns:
            subprocess.run([*self._enter, "ip", "link", "set", "lo", "up"], check=True)
        self._scope = scope
        self._watched = {str(self.run_dir), str(self.state_dir / "containers")}
        self._pods: dict[str, cri.PodSandboxConfig] = {}
        self._channel: grpc.Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        Node.open.append(self)
        self.folder.mkdir()
        network += "" if ready is None else f"\nready = {ready}"
        self.config.write_text(
            f'state_dir = "{self.state_dir}"\n'
            f'run_dir = "{self.run_dir}"\n'
            f'cgroup_parent = "/{self.name}"\n'
            f'log_level = "{log_level}"\n'
            f"{settings}\n"
            f"[network]\n{network}\n"
            f'bridge = "{self.name}"\n'
            f'table = "{self.name}"\n'
            f'range = "{subnets}"\n'
        )

    # the life of the node

    def start(self) -> "Node":
        """Start the daemon and wait until it answers."""
        with open(self.folder / "daemon.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._enter,
                    sys.executable,
                    "-m",
                    "pycri",
                    "serve",
                    "--config",
                    str(self.config),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=session.environment(),
                start_new_session=True,
            )
        self._channel = grpc.insecure_channel(
            f"unix:{self.run_dir}/pycri.sock",
            options=_CHANNEL_OPTIONS,
        )
        self.runtime = cri_grpc.RuntimeServiceStub(self._channel)
        self.images = cri_grpc.ImageServiceStub(self._channel)
        wait_until(self._answers, what=f"{self.name} answers", timeout_s=START_TIMEOUT_S)
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon ended:\n{self.daemon_log()}"
        try:
            return bool(self.runtime.Version(cri.VersionRequest(), timeout=1).runtime_name)
        except grpc.RpcError:
            return False

    def daemon_log(self) -> str:
        """Return what daemon, spawner and monitor have written."""
        return (self.folder / "daemon.log").read_text()

    def pid_of(self, process: str) -> int:
        """Return the pid of "daemon", "front", "spawner" or "monitor"."""
        if process in ("daemon", "front"):
            assert self._process is not None
            pid = self._process.pid
            return pid if process == "daemon" else _child_named("pycri-front", pid)
        info = self.runtime.Status(cri.StatusRequest(verbose=True), timeout=CALL_TIMEOUT_S).info
        return int(info[f"{process}_pid"])

    def kill(self, process: str, *, number: int = signal.SIGKILL) -> int:
        """Send a signal to one of the node's processes and wait for its end; return its pid."""
        pid = self.pid_of(process)
        os.kill(pid, number)
        if process == "daemon":
            self.reap()
        wait_until(lambda: not is_running(pid), what=f"{process} {pid} ends")
        return pid

    def reap(self) -> int:
        """Take leave of a daemon that has been killed, or ends by itself; return its status."""
        assert self._process is not None
        assert self._channel is not None
        self._channel.close()
        status = self._process.wait(CALL_TIMEOUT_S)
        self._process = self._channel = None
        return status

    def stop(self) -> None:
        """End the daemon as a service manager does; containers go on."""
        if self._process is not None:
            self.kill("daemon", number=signal.SIGTERM)

    def restart(self) -> None:
        """End the daemon with SIGTERM, if it runs, and start it again."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """End the daemon and everything that it keeps: pods, processes, bridge, table."""
        self.stop()
        self.command("wipe")

    def command(self, *words: str) -> str:
        """Run `pycri VERB --config FILE ...` and return its standard output."""
        verb, *rest = words
        return self._run_verb(verb, "--config", str(self.config), *rest)

    def ask(self, *words: str) -> str:
        """Run `pycri VERB ... --socket SOCKET` and return its standard output."""
        return self._run_verb(*words, "--socket", f"{self.run_dir}/pycri.sock")

    def _run_verb(self, *words: str) -> str:
        command = [*self._enter, sys.executable, "-m", "pycri", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, env=session.environment(), check=False
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """Wipe, and remove the node's folder."""
        Node.open.remove(self)
        try:
            self.wipe()
        finally:
            self.unwatch()
            session.release_subnet(self.subnet)
        shutil.rmtree(self.folder)

    def warm(self, image: str) -> None:
        """Run and remove a pod, so that what is made once per node is there; then watch folders."""
        pod = self.run_pod("warm")
        self.run_container(pod, image, command=["true"])
        self.clear()
        self._scope.watched |= self._watched

    def unwatch(self) -> None:
        """Let the leak check disregard the node's folders again."""
        self._scope.watched -= self._watched

    def clear(self) -> None:
        """Remove every pod, and the logs, which the kubelet would remove."""
        for pod in self.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            request = cri.StopPodSandboxRequest(pod_sandbox_id=pod.id)
            self.runtime.StopPodSandbox(request, timeout=CALL_TIMEOUT_S)
            self.remove_pod(pod.id)
        shutil.rmtree(self.folder / "logs", ignore_errors=True)

    # images

    def pull(self, image: str, **auth: str) -> str:
        """Pull an image and return its id."""
        request = cri.PullImageRequest(image=cri.ImageSpec(image=image))
        if auth:
            request.auth.CopyFrom(cri.AuthConfig(**auth))
        return self.images.PullImage(request, timeout=CALL_TIMEOUT_S).image_ref

    def _ensure_image(self, image: str) -> None:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=image))
        if not self.images.ImageStatus(request, timeout=CALL_TIMEOUT_S).HasField("image"):
            self.pull(image)

    # pods

    def pod_config(
        self,
        name: str,
        *,
        attempt: int = 0,
        namespaces: dict[str, Any] | None = None,
        security: dict[str, Any] | None = None,
        linux: dict[str, Any] | None = None,
        **fields: Any,
    ) -> cri.PodSandboxConfig:
        """Build a pod's config; `fields` are further ones of PodSandboxConfig.

        Like the kubelet's, a pod has a PID namespace for each container unless asked otherwise.
        """
        options = {"pid": cri.CONTAINER} | (namespaces or {})
        plain: dict[str, Any] = {
            "metadata": {
                "name": name,
                "uid": f"{name}-uid",
                "namespace": "tests",
                "attempt": attempt,
            },
            "hostname": name,
            "log_directory": str(self.folder / "logs" / name),
            "linux": {
                "security_context": {"namespace_options": options, **(security or {})},
                **(linux or {}),
            },
        }
        return cri.PodSandboxConfig(**(plain | fields))

    def run_pod(self, name: str = "pod", *, handler: str = "", **fields: Any) -> str:
        """Run a pod and return its id."""
        return self.run_config(self.pod_config(name, **fields), handler=handler)

    def run_config(self, config: cri.PodSandboxConfig, *, handler: str = "") -> str:
        """Run a pod of the given config and return its id."""
        request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
        pod = self.runtime.RunPodSandbox(request, timeout=CALL_TIMEOUT_S).pod_sandbox_id
        self._pods[pod] = config
        return pod

    def pod_status(self, pod: str) -> cri.PodSandboxStatus:
        """Return a pod's status."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
        return self.runtime.PodSandboxStatus(request, timeout=CALL_TIMEOUT_S).status

    def pod_ip(self, pod: str) -> str:
        """Return a pod's address."""
        return self.pod_status(pod).network.ip

    def stop_pod(self, pod: str) -> None:
        """Stop a pod."""
        request = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.StopPodSandbox(request, timeout=CALL_TIMEOUT_S)

    def remove_pod(self, pod: str) -> None:
        """Remove a pod."""
        request = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self.runtime.RemovePodSandbox(request, timeout=CALL_TIMEOUT_S)
        self._pods.pop(pod, None)

    # containers

    def container_config(
        self,
        name: str,
        image: str | dict[str, str] | None,
        *,
        command: Iterable[str] = (),
        args: Iterable[str] = (),
        env: dict[str, str] | None = None,
        mounts: Iterable[dict[str, Any]] = (),
        security: dict[str, Any] | None = None,
        resources: dict[str, Any] | None = None,
        **fields: Any,
    ) -> cri.ContainerConfig:
        """Build a container's config; `fields` are further ones of ContainerConfig.

        image: a reference, or an ImageSpec. command: a shell script if it is one string.
        """
        plain: dict[str, Any] = {
            "metadata": {"name": name},
            "image": {"image": image} if isinstance(image, str) else image,
            "command": ["sh", "-c", command] if isinstance(command, str) else list(command),
            "args": list(args),
            "envs": [{"key": key, "value": value.encode()} for key, value in (env or {}).items()],
            "mounts": list(mounts),
            "log_path": f"{name}.log",
            "linux": {"security_context": security or {}, "resources": resources or {}},
        }
        return cri.ContainerConfig(**(plain | fields))

    def create_container(self, pod: str, image: str, *, name: str = "main", **words: Any) -> str:
        """Create a container, its image pulled if need be, and return its id."""
        self._ensure_image(image)
        return self.create_config(pod, self.container_config(name, image, **words))

    def create_config(self, pod: str, config: cri.ContainerConfig) -> str:
        """Create a container of the given config and return its id.

        Without namespace options of its own it gets the pod's, as from the kubelet.
        """
        context = config.linux.security_context
        if pod in self._pods and not context.HasField("namespace_options"):
            options = self._pods[pod].linux.security_context.namespace_options
            context.namespace_options.CopyFrom(options)
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod, config=config, sandbox_config=self._pods.get(pod)
        )
        return self.runtime.CreateContainer(request, timeout=CALL_TIMEOUT_S).container_id

    def start_container(self, container: str) -> None:
        """Start a container."""
        request = cri.StartContainerRequest(container_id=container)
        self.runtime.StartContainer(request, timeout=CALL_TIMEOUT_S)

    def run_container(self, pod: str, image: str, *, name: str = "main", **words: Any) -> str:
        """Create and start a container and return its id."""
        container = self.create_container(pod, image, name=name, **words)
        self.start_container(container)
        return container

    def run_to_end(self, pod: str, image: str, *, name: str = "main", **words: Any) -> str:
        """Run a container, wait for its end, and return what it wrote to standard output.

        It must end with code 0.
        """
        container = self.run_container(pod, image, name=name, **words)
        status = self.wait_exited(container)
        output = self.output(container)
        assert status.exit_code == 0, f"{status.exit_code} {status.message}: {self.log(container)}"
        return output

    def status(self, container: str) -> cri.ContainerStatus:
        """Return a container's status."""
        request = cri.ContainerStatusRequest(container_id=container)
        return self.runtime.ContainerStatus(request, timeout=CALL_TIMEOUT_S).status

    def pid(self, container: str) -> int:
        """Return the host's pid of a running container's first process."""
        request = cri.ContainerStatusRequest(container_id=container, verbose=True)
        info = self.runtime.ContainerStatus(request, timeout=CALL_TIMEOUT_S).info["info"]
        return int(msgspec.json.decode(info)["pid"])

    def wait_exited(
        self, container: str, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> cri.ContainerStatus:
        """Wait until a container has exited and return its status."""

        def exited() -> cri.ContainerStatus | None:
            status = self.status(container)
            return status if status.state == cri.CONTAINER_EXITED else None

        return wait_until(exited, what=f"container {container[:12]} exits", timeout_s=timeout_s)

    def stop_container(self, container: str, *, timeout: int = 0) -> None:
        """Stop a container; `timeout` is the grace in seconds."""
        request = cri.StopContainerRequest(container_id=container, timeout=timeout)
        self.runtime.StopContainer(request, timeout=timeout + CALL_TIMEOUT_S)

    def remove_container(self, container: str) -> None:
        """Remove a container."""
        request = cri.RemoveContainerRequest(container_id=container)
        self.runtime.RemoveContainer(request, timeout=CALL_TIMEOUT_S)

    def exec(self, container: str, *command: str, timeout: int = 0) -> cri.ExecSyncResponse:
        """Run a command in a container; `timeout` in seconds, 0 for none."""
        request = cri.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        return self.runtime.ExecSync(request, timeout=timeout + CALL_TIMEOUT_S)

    def shell(self, container: str, script: str) -> str:
        """Run a shell script in a container and return its output; it must succeed."""
        done = self.exec(container, "sh", "-c", script)
        assert done.exit_code == 0, f"{script}: {done.exit_code} {done.stderr.decode()}"
        return done.stdout.decode()

    def touch(self, container: str, path: str) -> None:
        """Make a file in a running container's root, from outside.

        An exec that makes the first process end is killed with it, at times before its own end.
        """
        Path(f"/proc/{self.pid(container)}/root{path}").touch()

    def log(self, container: str) -> list[LogLine]:
        """Return the lines of a container's log file."""
        return parse_log(Path(self.status(container).log_path).read_text())

    def output(self, container: str) -> str:
        """Return what an exited container wrote to standard output, as the log has it."""
        return "".join(
            line.content + ("\n" if line.tag == "F" else "")
            for line in self.log(container)
            if line.stream == "stdout"
        )

    def wait_log(self, container: str, text: str, *, count: int = 1) -> list[LogLine]:
        """Wait until `count` lines of a container's log have `text`, and return all lines."""

        def found() -> list[LogLine] | None:
            path = Path(self.status(container).log_path)
            written = path.read_text() if path.exists() else ""
            lines = parse_log(written[: written.rfind("\n") + 1])
            return lines if sum(text in line.content for line in lines) >= count else None

        return wait_until(found, what=f"{text!r} in the log of {container[:12]}")


def _child_named(name: str, parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(
        int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n"
    )


def is_running(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"
