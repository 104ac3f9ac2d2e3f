# SPDX-License-Identifier: Apache-2.0
"""Every pod and container of this node: in memory for readers, in the database behind it.

Records are immutable; a change, always the event loop's, replaces one. Readers never wait, whatever
thread they are in: lists and statuses touch nothing but these dictionaries, and copy in one step
what they go through. A writer awaits the transaction first, so that what is shown is durable
against the death of the daemon.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from pycri.errors import NotFound
from pycri.model.container import ContainerRecord
from pycri.model.events import Event, EventKind, container_events, pod_events
from pycri.model.ids import ContainerId, PodId
from pycri.model.pod import PodRecord, Stage
from pycri.state.database import Database
from pycri.state.records import (
    delete_container,
    delete_pod,
    load_containers,
    load_pods,
    pod_name_key,
    save_container,
    save_pod,
)

R = TypeVar("R", PodRecord, ContainerRecord)


class Catalogue:
    """The only writer of pod and container records."""

    def __init__(
        self, database: Database, publish: Callable[[Event], None] = lambda event: None
    ) -> None:
        """publish: gets an event of each change, in the step in which it becomes visible."""
        self._database = database
        self._publish = publish
        # A change is made from the record as it is: two at once must not lose one, and one
        # beside a removal must not bring the record back.
        self._changing = asyncio.Lock()
        self._pods: dict[str, PodRecord] = {}
        self._containers: dict[str, ContainerRecord] = {}
        self._pod_names: dict[str, PodId] = {}
        self._by_pod: dict[PodId, dict[tuple[str, int], ContainerId]] = {}

    async def load(self) -> None:
        """Read all records."""
        for pod in await self._database.transact(load_pods):
            self._remember_pod(pod)
        for container in await self._database.transact(load_containers):
            self._remember_container(container)

    # pods

    def pods(self) -> Sequence[PodRecord]:
        """Return all pods."""
        return list(self._pods.values())

    def pod(self, pod_id: str) -> PodRecord:
        """Return the pod with this id or unambiguous prefix of one. Raises NotFound."""
        return _find(self._pods, pod_id, "pod sandbox")

    def has_pod(self, pod_id: str) -> bool:
        """Tell whether there is a pod with this whole id."""
        return pod_id in self._pods

    def pod_named(self, key: str) -> PodRecord | None:
        """Return the pod with this name (`pod_name_key`)."""
        pod_id = self._pod_names.get(key)
        return self._pods[pod_id] if pod_id else None

    async def add_pod(self, pod: PodRecord) -> None:
        """Store a new pod."""
        await self._database.transact(lambda connection: save_pod(connection, pod))
        self._remember_pod(pod)
        self._tell_pod(None, pod)

    async def change_pod(
        self, pod_id: PodId, change: Callable[[PodRecord], PodRecord]
    ) -> PodRecord:
        """Replace a pod's record by `change` of it. Raises NotFound."""
        async with self._changing:
            old = self.pod(pod_id)
            pod = change(old)
            await self._database.transact(lambda connection: save_pod(connection, pod))
            self._pods[pod_id] = pod
            self._tell_pod(old, pod)
        return pod

    async def remove_pod(self, pod_id: PodId) -> None:
        """Forget a pod; its name is free again."""
        async with self._changing:
            await self._database.transact(lambda connection: delete_pod(connection, pod_id))
            pod = self._pods.pop(pod_id, None)
        if pod:
            self._pod_names.pop(pod_name_key(pod.spec.metadata), None)
            self._by_pod.pop(pod_id, None)
            self._tell_pod(pod, None)

    # containers

    def containers(self) -> Sequence[ContainerRecord]:
        """Return all containers."""
        return list(self._containers.values())

    def container(self, container_id: str) -> ContainerRecord:
        """Return the container with this id or unambiguous prefix of one. Raises NotFound."""
        return _find(self._containers, container_id, "container")

    def has_container(self, container_id: str) -> bool:
        """Tell whether there is a container with this whole id."""
        return container_id in self._containers

    def container_named(self, pod_id: PodId, name: str, attempt: int) -> ContainerRecord | None:
        """Return a pod's container by its metadata."""
        container_id = self._by_pod.get(pod_id, {}).get((name, attempt))
        return self._containers[container_id] if container_id else None

    def containers_of(self, pod_id: PodId) -> list[ContainerRecord]:
        """Return a pod's containers."""
        keys = list(self._by_pod.get(pod_id, {}).values())
        # One may be going at this moment: its name is forgotten after its record.
        return [record for key in keys if (record := self._containers.get(key))]

    async def add_container(self, container: ContainerRecord) -> None:
        """Store a new container."""
        await self._database.transact(lambda connection: save_container(connection, container))
        self._remember_container(container)
        self._tell_container(None, container)

    async def change_container(
        self, container_id: ContainerId, change: Callable[[ContainerRecord], ContainerRecord]
    ) -> ContainerRecord:
        """Replace a container's record by `change` of it. Raises NotFound."""
        async with self._changing:
            old = self.container(container_id)
            container = change(old)
            await self._database.transact(lambda connection: save_container(connection, container))
            self._containers[container_id] = container
            self._tell_container(old, container)
        return container

    def note_timeline(self, container_id: ContainerId, timeline: tuple[Stage, ...]) -> None:
        """Show where the time of a creation went; it is stored with the next change.

        Of a container whose id nobody has been told yet, so there is no change beside it.
        """
        record = self.container(container_id)
        self._containers[container_id] = with_facts(record, timeline=timeline)

    async def remove_container(self, container_id: ContainerId) -> None:
        """Forget a container; its name is free again."""
        async with self._changing:
            await self._database.transact(
                lambda connection: delete_container(connection, container_id)
            )
            container = self._containers.pop(container_id, None)
        if container:
            metadata = container.spec.metadata
            names = self._by_pod.get(container.pod_id, {})
            names.pop((metadata.name, metadata.attempt), None)
            self._tell_container(container, None)

    def _tell_pod(self, old: PodRecord | None, new: PodRecord | None) -> None:
        if pod := new or old:
            for kind in pod_events(old, new):
                self._tell(kind, pod.id, pod)

    def _tell_container(self, old: ContainerRecord | None, new: ContainerRecord | None) -> None:
        if container := new or old:
            for kind in container_events(old, new):
                self._tell(kind, container.id, self._pods.get(container.pod_id))

    def _tell(self, kind: EventKind, event_id: str, pod: PodRecord | None) -> None:
        containers = tuple(self.containers_of(pod.id)) if pod else ()
        self._publish(Event(kind=kind, id=event_id, timestamp_ns=0, pod=pod, containers=containers))

    def _remember_pod(self, pod: PodRecord) -> None:
        self._pods[pod.id] = pod
        self._pod_names[pod_name_key(pod.spec.metadata)] = pod.id

    def _remember_container(self, container: ContainerRecord) -> None:
        self._containers[container.id] = container
        metadata = container.spec.metadata
        names = self._by_pod.setdefault(container.pod_id, {})
        names[metadata.name, metadata.attempt] = container.id


def with_facts(record: R, **facts: object) -> R:
    """Return a copy of a record with some facts added or replaced."""
    return msgspec.structs.replace(record, **facts)


def _find(records: dict[str, R], key: str, kind: str) -> R:
    record = records.get(key)
    if record is not None:
        return record
    matches = [one for one in list(records.values()) if one.id.startswith(key)] if key else []
    if len(matches) != 1:
        raise NotFound(kind, key)
    return matches[0]
