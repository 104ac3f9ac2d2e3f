# SPDX-License-Identifier: Apache-2.0
"""The client of the measurements: the requests of a kubelet, sent to any runtime, and timed.

A pod is one of class "best effort" with its own network, IPC and a PID namespace per container,
a parent cgroup, a log directory, masked paths as the kubelet names them, and no seccomp profile.
"""

import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc

from pycri.cri.api import runtime_v1_pb2 as cri
from pycri.cri.api import runtime_v1_pb2_grpc as cri_grpc
from tests.performance import report
from tests.performance.contestants import Contestant
from tests.world.daemon import wait_until

_TIMEOUT_S = 60.0
_PULL_TIMEOUT_S = 600.0
"""On an emulated machine that has other work; the kubelet sets no bound at all."""
_GRACE_S = 30
"""How long a container may take to end; none of ours takes it."""

_MASKED = "acpi asound interrupts kcore keys latency_stats sched_debug scsi timer_list timer_stats"
_READ_ONLY = "bus fs irq sys sysrq-trigger"
"""Below /proc; the kubelet's lists for procMount "Default"."""

ENDS_ON_TERM = ["sh", "-c", "trap 'exit 0' TERM; echo ready; sleep 3600 & wait"]
"""The first process of a PID namespace ends on SIGTERM only if it handles it."""

SLEEPS = ["sleep", "86400"]

LOOKS = (
    "ListPodSandbox",
    "ListContainers",
    "PodSandboxStatus",
    "ContainerStatus",
    "ListContainerStats",
)
"""Calls that a kubelet looks by."""

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """The kubelet of one contestant. `times` collects milliseconds by call. channel: to it."""

    def __init__(self, contestant: Contestant, image: str) -> None:
        """image: the reference of busybox."""
        self._folder = contestant.folder / "logs"
        self._parent = contestant.group.pods
        self._image = image
        self._numbers = itertools.count(1)
        self._configs: dict[str, cri.PodSandboxConfig] = {}
        self.channel = grpc.insecure_channel(f"unix:{contestant.socket}")
        self._runtime = cri_grpc.RuntimeServiceStub(self.channel)
        self._images = cri_grpc.ImageServiceStub(self.channel)
        self.times: dict[str, list[float]] = {}

    @property
    def pods(self) -> list[str]:
        """The ids of the pods that were run and not removed."""
        return list(self._configs)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()

    def _timed(
        self, name: str, call: Callable[[_Request, float], _Response], request: _Request
    ) -> _Response:
        start = time.perf_counter_ns()
        response = call(request, _TIMEOUT_S)
        self.times.setdefault(name, []).append((time.perf_counter_ns() - start) / 1e6)
        return response

    def read_version(self) -> str:
        """Return the runtime's name and version."""
        version = self._runtime.Version(cri.VersionRequest(), _TIMEOUT_S)
        return f"{version.runtime_name} {version.runtime_version}"

    def pull(self) -> None:
        """Pull the image."""
        self._images.PullImage(
            cri.PullImageRequest(image=cri.ImageSpec(image=self._image)), _TIMEOUT_S
        )

    # a pod's life, timed

    def live_once(self) -> None:
        """Run a pod with a container, look at it, stop and remove both."""
        pod = self.run_pod()
        container = self.create_container(pod, "main", ENDS_ON_TERM)
        self.start_container(container)
        log = Path(self._configs[pod].log_directory, "main.log")
        wait_until(lambda: log.exists() and "ready" in log.read_text(), what="the trap is set")
        self._exec_true(container)
        status = cri.ContainerStatusRequest(container_id=container)
        self._timed("ContainerStatus", self._runtime.ContainerStatus, status)
        self._stop_container(container)
        removal = cri.RemoveContainerRequest(container_id=container)
        self._timed("RemoveContainer", self._runtime.RemoveContainer, removal)
        self.remove_pod(pod)

    def run_pod(
        self,
        *,
        host_network: bool = False,
        port: cri.PortMapping | None = None,
        name: str = "RunPodSandbox",
    ) -> str:
        """Run a pod and return its id. name: of the sample."""
        request = self._pod_request(host_network=host_network)
        request.config.port_mappings.extend([port] if port else [])
        pod = self._timed(name, self._runtime.RunPodSandbox, request).pod_sandbox_id
        self._configs[pod] = request.config
        return pod

    def run_pods(self, count: int) -> float:
        """Run pods, all asked for at once; return the seconds until the last was ready."""
        requests = [self._pod_request() for _ in range(count)]
        start = time.perf_counter()
        calls = [self._runtime.RunPodSandbox.future(request, _TIMEOUT_S) for request in requests]
        pods = [call.result().pod_sandbox_id for call in calls]
        took_s = time.perf_counter() - start
        self._configs |= {pod: r.config for pod, r in zip(pods, requests, strict=True)}
        return took_s

    def remove_pods(self) -> float:
        """Stop and remove all pods, all asked for at once; return the seconds it took."""
        start = time.perf_counter()
        with ThreadPoolExecutor(len(self._configs)) as threads:
            list(threads.map(self.remove_pod, self.pods))
        return time.perf_counter() - start

    def create_container(self, pod: str, name: str, command: list[str]) -> str:
        """Create a container and return its id."""
        request = cri.CreateContainerRequest(
            pod_sandbox_id=pod,
            config=self._container_config(name, command),
            sandbox_config=self._configs[pod],
        )
        response = self._timed("CreateContainer", self._runtime.CreateContainer, request)
        return response.container_id

    def start_container(self, container: str) -> None:
        """Start a container."""
        request = cri.StartContainerRequest(container_id=container)
        self._timed("StartContainer", self._runtime.StartContainer, request)

    def _exec_true(self, container: str) -> None:
        request = cri.ExecSyncRequest(container_id=container, cmd=["/bin/true"], timeout=10)
        response = self._timed("ExecSync", self._runtime.ExecSync, request)
        assert response.exit_code == 0, response

    def _stop_container(self, container: str) -> None:
        request = cri.StopContainerRequest(container_id=container, timeout=_GRACE_S)
        self._timed("StopContainer", self._runtime.StopContainer, request)

    def list_containers(self) -> None:
        """List the node's containers, of which there must be LISTED."""
        request = cri.ListContainersRequest()
        listed = self._timed(report.LISTING, self._runtime.ListContainers, request).containers
        assert len(listed) == report.LISTED, len(listed)

    def look(self) -> None:
        """Look at everything, and at one pod and container: each of LOOKS once."""
        runtime = self._runtime
        self._timed("ListPodSandbox", runtime.ListPodSandbox, cri.ListPodSandboxRequest())
        request = cri.ListContainersRequest()
        listed = self._timed("ListContainers", runtime.ListContainers, request).containers
        pod = cri.PodSandboxStatusRequest(pod_sandbox_id=listed[0].pod_sandbox_id)
        self._timed("PodSandboxStatus", runtime.PodSandboxStatus, pod)
        container = cri.ContainerStatusRequest(container_id=listed[0].id)
        self._timed("ContainerStatus", runtime.ContainerStatus, container)
        stats = cri.ListContainerStatsRequest()
        found = self._timed("ListContainerStats", runtime.ListContainerStats, stats).stats
        assert found

    def pull_and_remove(self, image: str) -> None:
        """Pull another image and remove it."""
        spec = cri.ImageSpec(image=image)
        self._images.PullImage(cri.PullImageRequest(image=spec), _PULL_TIMEOUT_S)
        self._images.RemoveImage(cri.RemoveImageRequest(image=spec), _TIMEOUT_S)

    def remove_pod(self, pod: str) -> None:
        """Stop and remove a pod."""
        stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        self._timed("StopPodSandbox", self._runtime.StopPodSandbox, stop)
        removal = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        self._timed("RemovePodSandbox", self._runtime.RemovePodSandbox, removal)
        self._configs.pop(pod, None)

    def address(self, pod: str) -> str:
        """Return a pod's address."""
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod)
        return self._runtime.PodSandboxStatus(request, _TIMEOUT_S).status.network.ip

    def clear(self) -> None:
        """Remove every pod."""
        for pod in self._runtime.ListPodSandbox(cri.ListPodSandboxRequest(), _TIMEOUT_S).items:
            self.remove_pod(pod.id)

    # requests

    def _pod_request(self, *, host_network: bool = False) -> cri.RunPodSandboxRequest:
        config = self._pod_config(f"pod-{next(self._numbers)}")
        if host_network:
            config.hostname = ""
            config.linux.security_context.namespace_options.network = cri.NODE
        return cri.RunPodSandboxRequest(config=config)

    def _pod_config(self, name: str) -> cri.PodSandboxConfig:
        logs = self._folder / f"{name}-logs"
        logs.mkdir(parents=True)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name=name, uid=f"{name}-uid", namespace="bench"),
            hostname=name,
            log_directory=str(logs),
            dns_config=cri.DNSConfig(servers=["192.0.2.53"], searches=["svc.cluster.local"]),
            labels=_labels(name),
            linux=cri.LinuxPodSandboxConfig(
                cgroup_parent=self._parent,
                security_context=cri.LinuxSandboxSecurityContext(namespace_options=_namespaces()),
            ),
        )

    def _container_config(self, name: str, command: list[str]) -> cri.ContainerConfig:
        context = cri.LinuxContainerSecurityContext(
            namespace_options=_namespaces(),
            masked_paths=[*_below_proc(_MASKED), "/sys/firmware"],
            readonly_paths=_below_proc(_READ_ONLY),
        )
        resources = cri.LinuxContainerResources(cpu_shares=2, oom_score_adj=1000)
        return cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name=name),
            image=cri.ImageSpec(image=self._image),
            command=command,
            log_path=f"{name}.log",
            labels=_labels(name),
            linux=cri.LinuxContainerConfig(resources=resources, security_context=context),
        )


def _namespaces() -> cri.NamespaceOption:
    return cri.NamespaceOption(network=cri.POD, pid=cri.CONTAINER, ipc=cri.POD)


def _below_proc(names: str) -> list[str]:
    return [f"/proc/{name}" for name in names.split()]


def _labels(name: str) -> dict[str, str]:
    return {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "bench"}
