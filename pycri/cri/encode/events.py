# SPDX-License-Identifier: Apache-2.0
"""Events to protobuf, with the statuses that the kubelet's evented PLEG takes from them."""

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.encode.records import encode_container_status, encode_pod_status
from pycri.model.events import Event, EventKind

_KINDS = {
    EventKind.CREATED: pb.CONTAINER_CREATED_EVENT,
    EventKind.STARTED: pb.CONTAINER_STARTED_EVENT,
    EventKind.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    EventKind.DELETED: pb.CONTAINER_DELETED_EVENT,
}


def encode_event(event: Event) -> pb.ContainerEventResponse:
    """Return an event; of a pod that has gone already without its status."""
    return pb.ContainerEventResponse(
        container_id=event.id,
        container_event_type=_KINDS[event.kind],
        created_at=event.timestamp_ns,
        pod_sandbox_status=encode_pod_status(event.pod) if event.pod else None,
        containers_statuses=[encode_container_status(one) for one in event.containers],
    )
