# SPDX-License-Identifier: Apache-2.0
"""The part of RuntimeService that a copy of the records is enough for: lists, ContainerStatus.

Not PodSandboxStatus: it says as of when it holds, which only who writes the records knows.
"""
# ruff: noqa: N802  the methods bear the CRI's names

from collections.abc import Iterator

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.chunks import chunks
from pycri.cri.decode import request as decode
from pycri.cri.encode import records as encode
from pycri.cri.encode.shown import Shown
from pycri.pods.records import Records


class LookingService:
    """What a kubelet asks every second, and who looks at a container."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._shown_pods = Shown(encode.encode_pod)
        self._shown_containers = Shown(encode.encode_container)
        self._container_statuses = Shown(encode.encode_container_status)

    def ListPodSandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        return b"".join(self._listed_pods(request.filter))

    def StreamPodSandboxes(self, request: pb.StreamPodSandboxesRequest) -> Iterator[bytes]:
        for chunk in chunks(self._listed_pods(request.filter), len):
            yield b"".join(chunk)

    def _listed_pods(self, message: pb.PodSandboxFilter) -> Iterator[bytes]:
        wanted = decode.decode_pod_filter(message)
        records = self._records.find_pods(
            id_prefix=wanted.id_prefix, state=wanted.state, labels=wanted.labels
        )
        return self._shown_pods.all(records)

    def ContainerStatus(self, request: pb.ContainerStatusRequest) -> bytes:
        container_id = decode.decode_id(request.container_id, "container_id")
        record = self._records.container(container_id)
        status = self._container_statuses.one(record)
        if not request.verbose:
            return status
        info = encode.encode_container_info(record)
        return status + pb.ContainerStatusResponse(info=info).SerializeToString()

    def ListContainers(self, request: pb.ListContainersRequest) -> bytes:
        return b"".join(self._listed_containers(request.filter))

    def StreamContainers(self, request: pb.StreamContainersRequest) -> Iterator[bytes]:
        for chunk in chunks(self._listed_containers(request.filter), len):
            yield b"".join(chunk)

    def _listed_containers(self, message: pb.ContainerFilter) -> Iterator[bytes]:
        wanted = decode.decode_container_filter(message)
        records = self._records.find_containers(
            id_prefix=wanted.id_prefix,
            pod_prefix=wanted.pod_prefix,
            state=wanted.state,
            labels=wanted.labels,
        )
        return self._shown_containers.all(records)
