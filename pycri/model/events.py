# SPDX-License-Identifier: Apache-2.0
"""Events of the life of pods and containers (CRI ContainerEventResponse).

    container    ──CREATED──▶ CREATED ──STARTED──▶ RUNNING ──STOPPED──▶ EXITED ──DELETED──▶
    pod          ──CREATED, STARTED──▶ READY ──STOPPED──▶ NOTREADY ──DELETED──▶

An event is derived from two records of the same pod or container, so whatever a status shows has
had its event. A pod that never was ready has none; that a container ended for lack of memory is
said by the reason in its status.
"""

import enum

import msgspec

from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.pod import PodRecord, PodState


class EventKind(enum.Enum):
    """CRI ContainerEventType."""

    CREATED = 0
    STARTED = 1
    STOPPED = 2
    DELETED = 3


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that became visible. id: of the container, or of the pod if it is the pod's own.

    timestamp_ns: since the epoch; greater than that of every event before.
    pod, containers: all of the pod, as they were then; pod is None if its record had gone before.
    """

    kind: EventKind
    id: str
    timestamp_ns: int
    pod: PodRecord | None
    containers: tuple[ContainerRecord, ...]


_OF_STATE = {
    ContainerState.CREATED: EventKind.CREATED,
    ContainerState.RUNNING: EventKind.STARTED,
    ContainerState.EXITED: EventKind.STOPPED,
    ContainerState.UNKNOWN: EventKind.STOPPED,
}


def container_events(
    old: ContainerRecord | None, new: ContainerRecord | None
) -> tuple[EventKind, ...]:
    """Return what a change of a container's record means; None is no record."""
    if new is None:
        return (EventKind.DELETED,) if old else ()
    if old is not None and old.state is new.state:
        return ()
    return (_OF_STATE[new.state],)


def pod_events(old: PodRecord | None, new: PodRecord | None) -> tuple[EventKind, ...]:
    """Return what a change of a pod's record means; None is no record."""
    was_ready = old is not None and old.state is PodState.READY
    if new is None:
        return (EventKind.DELETED,) if old is not None and old.ready_ns is not None else ()
    is_ready = new.state is PodState.READY
    if was_ready == is_ready:
        return ()
    return (EventKind.CREATED, EventKind.STARTED) if is_ready else (EventKind.STOPPED,)
