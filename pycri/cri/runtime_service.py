# SPDX-License-Identifier: Apache-2.0
"""RuntimeService: decode, call the application, encode. RPCs not here answer UNIMPLEMENTED."""
# ruff: noqa: N802  the methods bear the CRI's names

import time
from collections.abc import AsyncIterator, Iterator

import grpc  # noqa: TID251  the edge is its home

from pycri import __version__
from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.application import (
    Containers,
    Execs,
    Node,
    Observed,
    Sandboxes,
    Streaming,
    Updates,
)
from pycri.cri.chunks import chunks
from pycri.cri.decode import request as decode
from pycri.cri.decode.container import decode_container_spec
from pycri.cri.decode.handlers import RUNTIME_HANDLERS
from pycri.cri.decode.pod import decode_pod_spec
from pycri.cri.decode.resources import decode_resources
from pycri.cri.encode import records as encode
from pycri.cri.encode.shown import Shown
from pycri.cri.observation import ObservationService
from pycri.cri.streaming import StreamingService

Context = grpc.aio.ServicerContext[object, object]


class RuntimeService(ObservationService, StreamingService):
    """Pods, containers and the node."""

    def __init__(  # noqa: PLR0913  one for each part of the application
        self,
        *,
        sandboxes: Sandboxes,
        containers: Containers,
        updates: Updates,
        execs: Execs,
        streaming: Streaming,
        node: Node,
        observed: Observed,
    ) -> None:
        ObservationService.__init__(self, observed)
        StreamingService.__init__(self, streaming)
        self._sandboxes = sandboxes
        self._containers = containers
        self._updates = updates
        self._execs = execs
        self._node = node
        self._pods = Shown(encode.encode_pod)
        self._pod_statuses = Shown(encode.encode_pod_status)
        self._all_containers = Shown(encode.encode_container)
        self._container_statuses = Shown(encode.encode_container_status)
        self._containers_of_pods = Shown(
            encode.encode_container_status,
            field=pb.PodSandboxStatusResponse.CONTAINERS_STATUSES_FIELD_NUMBER,
        )

    async def Version(self, request: pb.VersionRequest, context: Context) -> pb.VersionResponse:
        return pb.VersionResponse(
            version="0.1.0",  # of the kubelet's runtime API; other runtimes answer the same
            runtime_name="pycri",
            runtime_version=__version__,
            runtime_api_version="v1",
        )

    async def RunPodSandbox(
        self, request: pb.RunPodSandboxRequest, context: Context
    ) -> pb.RunPodSandboxResponse:
        pod_id = await self._sandboxes.run(decode_pod_spec(request))
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod_id)

    async def StopPodSandbox(
        self, request: pb.StopPodSandboxRequest, context: Context
    ) -> pb.StopPodSandboxResponse:
        await self._sandboxes.stop(decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest, context: Context
    ) -> pb.RemovePodSandboxResponse:
        await self._sandboxes.remove(decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def PodSandboxStatus(  # type: ignore[override]  # encoded already
        self, request: pb.PodSandboxStatusRequest, context: Context
    ) -> bytes:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        record = self._sandboxes.status(pod_id)
        rest = pb.PodSandboxStatusResponse(
            info=encode.encode_pod_info(record) if request.verbose else None,
            timestamp=time.time_ns(),
        )
        # For a kubelet that takes events: it does not ask for each container then.
        containers = self._containers_of_pods.all(self._containers.of_pod(record.id))
        return b"".join((self._pod_statuses.one(record), *containers, rest.SerializeToString()))

    async def ListPodSandbox(  # type: ignore[override]  # encoded already
        self, request: pb.ListPodSandboxRequest, context: Context
    ) -> bytes:
        return b"".join(self._listed_pods(request.filter))

    async def StreamPodSandboxes(  # type: ignore[override]  # encoded already
        self, request: pb.StreamPodSandboxesRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for chunk in chunks(self._listed_pods(request.filter), len):
            yield b"".join(chunk)

    def _listed_pods(self, message: pb.PodSandboxFilter) -> Iterator[bytes]:
        wanted = decode.decode_pod_filter(message)
        records = self._sandboxes.list(
            id_prefix=wanted.id_prefix, state=wanted.state, labels=wanted.labels
        )
        return self._pods.all(records)

    async def CreateContainer(
        self, request: pb.CreateContainerRequest, context: Context
    ) -> pb.CreateContainerResponse:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        container_id = await self._containers.create(pod_id, decode_container_spec(request))
        return pb.CreateContainerResponse(container_id=container_id)

    async def StartContainer(
        self, request: pb.StartContainerRequest, context: Context
    ) -> pb.StartContainerResponse:
        await self._containers.start(decode.decode_id(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    async def StopContainer(
        self, request: pb.StopContainerRequest, context: Context
    ) -> pb.StopContainerResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        timeout_s = decode.decode_timeout(request.timeout, "timeout")
        await self._containers.stop(container_id, timeout_s)
        return pb.StopContainerResponse()

    async def RemoveContainer(
        self, request: pb.RemoveContainerRequest, context: Context
    ) -> pb.RemoveContainerResponse:
        await self._containers.remove(decode.decode_id(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    async def ListContainers(  # type: ignore[override]  # encoded already
        self, request: pb.ListContainersRequest, context: Context
    ) -> bytes:
        return b"".join(self._listed_containers(request.filter))

    async def StreamContainers(  # type: ignore[override]  # encoded already
        self, request: pb.StreamContainersRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for chunk in chunks(self._listed_containers(request.filter), len):
            yield b"".join(chunk)

    def _listed_containers(self, message: pb.ContainerFilter) -> Iterator[bytes]:
        wanted = decode.decode_container_filter(message)
        records = self._containers.list(
            id_prefix=wanted.id_prefix,
            pod_prefix=wanted.pod_prefix,
            state=wanted.state,
            labels=wanted.labels,
        )
        return self._all_containers.all(records)

    async def ContainerStatus(  # type: ignore[override]  # encoded already
        self, request: pb.ContainerStatusRequest, context: Context
    ) -> bytes:
        container_id = decode.decode_id(request.container_id, "container_id")
        record = self._containers.status(container_id)
        status = self._container_statuses.one(record)
        if not request.verbose:
            return status
        info = encode.encode_container_info(record)
        return status + pb.ContainerStatusResponse(info=info).SerializeToString()

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest, context: Context
    ) -> pb.UpdateContainerResourcesResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        asked = decode_resources(request.linux, "linux")
        await self._updates.update_container(container_id, asked)
        return pb.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest, context: Context
    ) -> pb.UpdatePodSandboxResourcesResponse:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        overhead = decode.decode_optional_resources(request, "overhead")
        resources = decode.decode_optional_resources(request, "resources")
        await self._updates.update_pod(pod_id, overhead, resources)
        return pb.UpdatePodSandboxResourcesResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest, context: Context) -> pb.ExecSyncResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        command = decode.decode_command(request)
        timeout_s = decode.decode_timeout(request.timeout, "timeout")
        result = await self._execs.exec_sync(container_id, command, timeout_s)
        return pb.ExecSyncResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest, context: Context
    ) -> pb.ReopenContainerLogResponse:
        await self._containers.reopen_log(decode.decode_id(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    async def Status(self, request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        user_namespaces = self._node.user_namespaces()
        handler = pb.RuntimeHandlerFeatures(
            recursive_read_only_mounts=True, user_namespaces=user_namespaces
        )
        return pb.StatusResponse(
            status=encode.encode_conditions(self._node.conditions()),
            info=self._node.verbose() if request.verbose else None,
            runtime_handlers=[
                pb.RuntimeHandler(name=name, features=handler) for name in RUNTIME_HANDLERS
            ],
            features=pb.RuntimeFeatures(
                supplemental_groups_policy=True,
                mount_options=True,
                user_namespaces_host_network=user_namespaces,
            ),
        )

    async def UpdateRuntimeConfig(
        self, request: pb.UpdateRuntimeConfigRequest, context: Context
    ) -> pb.UpdateRuntimeConfigResponse:
        if cidr := decode.decode_pod_cidr(request):
            await self._node.set_pod_cidr(cidr)
        return pb.UpdateRuntimeConfigResponse()

    async def RuntimeConfig(
        self, request: pb.RuntimeConfigRequest, context: Context
    ) -> pb.RuntimeConfigResponse:
        linux = pb.LinuxRuntimeConfiguration(cgroup_driver=pb.CGROUPFS)
        return pb.RuntimeConfigResponse(linux=linux)
