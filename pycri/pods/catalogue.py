# SPDX-License-Identifier: Apache-2.0
"""Every pod and container of this node: records in memory, with the database behind them.

The only writer of both, in the event loop, one change at a time. It awaits the transaction first,
so that what is shown is durable against the death of the daemon.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from pycri.model.container import ContainerRecord
from pycri.model.events import Event, EventKind, container_events, pod_events
from pycri.model.ids import ContainerId, PodId
from pycri.model.pod import PodRecord, Stage
from pycri.pods.records import Records
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


class Mirror(Protocol):
    """Shows the same records elsewhere; told of each change before anybody else can know of it."""

    def put_pod(self, pod: PodRecord) -> object: ...
    def drop_pod(self, pod_id: PodId) -> object: ...
    def put_container(self, container: ContainerRecord) -> object: ...
    def drop_container(self, container_id: ContainerId) -> object: ...


class Catalogue(Records):
    """The only writer of pod and container records."""

    def __init__(
        self,
        database: Database,
        publish: Callable[[Event], None] = lambda event: None,
        mirrors: Sequence[Mirror] = (),
    ) -> None:
        """publish: gets an event of each change, in the step in which it becomes visible."""
        super().__init__()
        self._database = database
        self._publish = publish
        self._mirrors = mirrors
        # A change is made from the record as it is: two at once must not lose one, and one
        # beside a removal must not bring the record back.
        self._changing = asyncio.Lock()
        self._pod_names: dict[str, PodId] = {}

    async def load(self) -> None:
        """Read all records."""
        for pod in await self._database.transact(load_pods):
            self.put_pod(pod)
        for container in await self._database.transact(load_containers):
            self.put_container(container)

    def pod_named(self, key: str) -> PodRecord | None:
        """Return the pod with this name (`pod_name_key`)."""
        pod_id = self._pod_names.get(key)
        return self._pods[pod_id] if pod_id else None

    async def add_pod(self, pod: PodRecord) -> None:
        """Store a new pod."""
        await self._database.transact(lambda connection: save_pod(connection, pod))
        self.put_pod(pod)
        self._tell_pod(None, pod)

    async def change_pod(
        self, pod_id: PodId, change: Callable[[PodRecord], PodRecord]
    ) -> PodRecord:
        """Replace a pod's record by `change` of it. Raises NotFound."""
        async with self._changing:
            old = self.pod(pod_id)
            pod = change(old)
            await self._database.transact(lambda connection: save_pod(connection, pod))
            self.put_pod(pod)
            self._tell_pod(old, pod)
        return pod

    async def remove_pod(self, pod_id: PodId) -> None:
        """Forget a pod; its name is free again."""
        async with self._changing:
            await self._database.transact(lambda connection: delete_pod(connection, pod_id))
            pod = self.drop_pod(pod_id)
        if pod:
            self._tell_pod(pod, None)

    async def add_container(self, container: ContainerRecord) -> None:
        """Store a new container."""
        await self._database.transact(lambda connection: save_container(connection, container))
        self.put_container(container)
        self._tell_container(None, container)

    async def change_container(
        self, container_id: ContainerId, change: Callable[[ContainerRecord], ContainerRecord]
    ) -> ContainerRecord:
        """Replace a container's record by `change` of it. Raises NotFound."""
        async with self._changing:
            old = self.container(container_id)
            container = change(old)
            await self._database.transact(lambda connection: save_container(connection, container))
            self.put_container(container)
            self._tell_container(old, container)
        return container

    def note_timeline(self, container_id: ContainerId, timeline: tuple[Stage, ...]) -> None:
        """Show where the time of a creation went; it is stored with the next change.

        Of a container whose id nobody has been told yet, so there is no change beside it.
        """
        self.put_container(with_facts(self.container(container_id), timeline=timeline))

    async def remove_container(self, container_id: ContainerId) -> None:
        """Forget a container; its name is free again."""
        async with self._changing:
            await self._database.transact(
                lambda connection: delete_container(connection, container_id)
            )
            container = self.drop_container(container_id)
        if container:
            self._tell_container(container, None)

    # changes, in memory; others are told in the same step

    def put_pod(self, pod: PodRecord) -> None:
        super().put_pod(pod)
        self._pod_names[pod_name_key(pod.spec.metadata)] = pod.id
        for mirror in self._mirrors:
            mirror.put_pod(pod)

    def drop_pod(self, pod_id: PodId) -> PodRecord | None:
        pod = super().drop_pod(pod_id)
        if pod:
            self._pod_names.pop(pod_name_key(pod.spec.metadata), None)
        for mirror in self._mirrors:
            mirror.drop_pod(pod_id)
        return pod

    def put_container(self, container: ContainerRecord) -> None:
        super().put_container(container)
        for mirror in self._mirrors:
            mirror.put_container(container)

    def drop_container(self, container_id: ContainerId) -> ContainerRecord | None:
        for mirror in self._mirrors:
            mirror.drop_container(container_id)
        return super().drop_container(container_id)

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


def with_facts(record: R, **facts: object) -> R:
    """Return a copy of a record with some facts added or replaced."""
    return msgspec.structs.replace(record, **facts)
