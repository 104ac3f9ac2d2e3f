# SPDX-License-Identifier: Apache-2.0
"""RuntimeService: decode, call the application, encode. RPCs not here answer UNIMPLEMENTED."""
# ruff: noqa: N802  the methods bear the CRI's names

import time

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
from pycri.cri.decode import request as decode
from pycri.cri.decode.container import decode_container_spec
from pycri.cri.decode.handlers import RUNTIME_HANDLERS
from pycri.cri.decode.pod import decode_pod_spec
from pycri.cri.decode.resources import decode_resources
from pycri.cri.encode import records as encode
from pycri.cri.encode.shown import Shown
from pycri.cri.observation import ObservationService
from pycri.cri.streaming import StreamingService
from pycri.pods.records import Records


class RuntimeService(ObservationService, StreamingService):
    """Pods, containers and the node; not what a copy of the records can answer (`looking.py`)."""

    def __init__(  # noqa: PLR0913  one for each part of the application
        self,
        *,
        records: Records,
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
        self._records = records
        self._sandboxes = sandboxes
        self._containers = containers
        self._updates = updates
        self._execs = execs
        self._node = node
        self._pod_statuses = Shown(encode.encode_pod_status)
        self._containers_of_pods = Shown(
            encode.encode_container_status,
            field=pb.PodSandboxStatusResponse.CONTAINERS_STATUSES_FIELD_NUMBER,
        )

    def Version(self, request: pb.VersionRequest) -> pb.VersionResponse:
        return pb.VersionResponse(
            version="0.1.0",  # of the kubelet's runtime API; other runtimes answer the same
            runtime_name="pycri",
            runtime_version=__version__,
            runtime_api_version="v1",
        )

    def PodSandboxStatus(self, request: pb.PodSandboxStatusRequest) -> bytes:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        # Before anything is looked at: what changes meanwhile has an event of a later time. So not
        # from the front's copy: of a change under way to it the event would be of an earlier one.
        timestamp_ns = time.time_ns()
        record = self._records.pod(pod_id)
        rest = pb.PodSandboxStatusResponse(
            info=encode.encode_pod_info(record) if request.verbose else None,
            timestamp=timestamp_ns,
        )
        # For a kubelet that takes events: it does not ask for each container then.
        containers = self._containers_of_pods.all(self._records.containers_of(record.id))
        return b"".join((self._pod_statuses.one(record), *containers, rest.SerializeToString()))

    async def RunPodSandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        pod_id = await self._sandboxes.run(decode_pod_spec(request))
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod_id)

    async def StopPodSandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        await self._sandboxes.stop(decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: pb.RemovePodSandboxRequest
    ) -> pb.RemovePodSandboxResponse:
        await self._sandboxes.remove(decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def CreateContainer(
        self, request: pb.CreateContainerRequest
    ) -> pb.CreateContainerResponse:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        container_id = await self._containers.create(pod_id, decode_container_spec(request))
        return pb.CreateContainerResponse(container_id=container_id)

    async def StartContainer(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        await self._containers.start(decode.decode_id(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    async def StopContainer(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        timeout_s = decode.decode_timeout(request.timeout, "timeout")
        await self._containers.stop(container_id, timeout_s)
        return pb.StopContainerResponse()

    async def RemoveContainer(
        self, request: pb.RemoveContainerRequest
    ) -> pb.RemoveContainerResponse:
        await self._containers.remove(decode.decode_id(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    async def UpdateContainerResources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        asked = decode_resources(request.linux, "linux")
        await self._updates.update_container(container_id, asked)
        return pb.UpdateContainerResourcesResponse()

    async def UpdatePodSandboxResources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        pod_id = decode.decode_id(request.pod_sandbox_id, "pod_sandbox_id")
        overhead = decode.decode_optional_resources(request, "overhead")
        resources = decode.decode_optional_resources(request, "resources")
        await self._updates.update_pod(pod_id, overhead, resources)
        return pb.UpdatePodSandboxResourcesResponse()

    async def ExecSync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        container_id = decode.decode_id(request.container_id, "container_id")
        command = decode.decode_command(request)
        timeout_s = decode.decode_timeout(request.timeout, "timeout")
        result = await self._execs.exec_sync(container_id, command, timeout_s)
        return pb.ExecSyncResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    async def ReopenContainerLog(
        self, request: pb.ReopenContainerLogRequest
    ) -> pb.ReopenContainerLogResponse:
        await self._containers.reopen_log(decode.decode_id(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    async def Status(self, request: pb.StatusRequest) -> pb.StatusResponse:
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
        self, request: pb.UpdateRuntimeConfigRequest
    ) -> pb.UpdateRuntimeConfigResponse:
        if cidr := decode.decode_pod_cidr(request):
            await self._node.set_pod_cidr(cidr)
        return pb.UpdateRuntimeConfigResponse()

    def RuntimeConfig(self, request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        linux = pb.LinuxRuntimeConfiguration(cgroup_driver=pb.CGROUPFS)
        return pb.RuntimeConfigResponse(linux=linux)
