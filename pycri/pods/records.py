# SPDX-License-Identifier: Apache-2.0
"""Records of pods and containers in memory, to look at.

Records are immutable; a change replaces one, and only one thread makes changes. Readers never wait,
whatever thread they are in: they touch nothing but these dictionaries, and copy in one step what
they go through.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from pycri.errors import NotFound
from pycri.model.container import ContainerRecord, ContainerState
from pycri.model.ids import ContainerId, PodId
from pycri.model.pod import PodRecord, PodState

R = TypeVar("R", PodRecord, ContainerRecord)


class Records:
    """Every pod and container that is known here."""

    def __init__(self) -> None:
        self._pods: dict[str, PodRecord] = {}
        self._containers: dict[str, ContainerRecord] = {}
        self._by_pod: dict[PodId, dict[tuple[str, int], ContainerId]] = {}

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

    def find_pods(
        self,
        *,
        id_prefix: str = "",
        state: PodState | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Sequence[PodRecord]:
        """Return the pods that match every given filter."""
        return _matching(self.pods(), id_prefix, state, labels)

    def put_pod(self, pod: PodRecord) -> None:
        """Add a pod, or replace the record with its id."""
        self._pods[pod.id] = pod

    def drop_pod(self, pod_id: PodId) -> PodRecord | None:
        """Forget a pod; return what was known of it."""
        self._by_pod.pop(pod_id, None)
        return self._pods.pop(pod_id, None)

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

    def containers_of(self, pod_id: PodId) -> Sequence[ContainerRecord]:
        """Return a pod's containers."""
        keys = list(self._by_pod.get(pod_id, {}).values())
        # One may be going at this moment: its name is forgotten after its record.
        return [record for key in keys if (record := self._containers.get(key))]

    def find_containers(
        self,
        *,
        id_prefix: str = "",
        pod_prefix: str = "",
        state: ContainerState | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Sequence[ContainerRecord]:
        """Return the containers that match every given filter."""
        found = self.containers()
        if pod_prefix:
            found = [one for one in found if one.pod_id.startswith(pod_prefix)]
        return _matching(found, id_prefix, state, labels)

    def put_container(self, container: ContainerRecord) -> None:
        """Add a container, or replace the record with its id."""
        self._containers[container.id] = container
        metadata = container.spec.metadata
        names = self._by_pod.setdefault(container.pod_id, {})
        names[metadata.name, metadata.attempt] = container.id

    def drop_container(self, container_id: ContainerId) -> ContainerRecord | None:
        """Forget a container; return what was known of it."""
        container = self._containers.pop(container_id, None)
        if container:
            metadata = container.spec.metadata
            names = self._by_pod.get(container.pod_id, {})
            names.pop((metadata.name, metadata.attempt), None)
        return container


def _find(records: dict[str, R], key: str, kind: str) -> R:
    record = records.get(key)
    if record is not None:
        return record
    matches = [one for one in list(records.values()) if one.id.startswith(key)] if key else []
    if len(matches) != 1:
        raise NotFound(kind, key)
    return matches[0]


def _matching(
    records: Sequence[R],
    id_prefix: str,
    state: PodState | ContainerState | None,
    labels: Mapping[str, str] | None,
) -> Sequence[R]:
    # One pass for each filter that is given: mostly none is, every second.
    found = records
    if id_prefix:
        found = [one for one in found if one.id.startswith(id_prefix)]
    if state is not None:
        found = [one for one in found if one.state is state]
    if labels:
        wanted = labels.items()
        found = [one for one in found if wanted <= one.spec.labels.items()]
    return found
