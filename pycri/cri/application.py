# SPDX-License-Identifier: Apache-2.0
"""The application as the services see it. `pods/` and `images/` are it; tests have small fakes.

Ids are whole or unambiguous prefixes. Unless told otherwise an unknown one raises NotFound.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pycri.model.container import ContainerRecord, ContainerSpec, ContainerState, ExecResult
from pycri.model.host import Condition
from pycri.model.ids import ContainerId, PodId
from pycri.model.image import FilesystemUsage, Image, RegistryAuth
from pycri.model.pod import PodRecord, PodSpec, PodState
from pycri.model.resources import Resources


class Sandboxes(Protocol):
    """stop and remove of an unknown id succeed."""

    async def run(self, spec: PodSpec) -> PodId: ...
    async def stop(self, pod_id: str) -> None: ...
    async def remove(self, pod_id: str) -> None: ...
    def status(self, pod_id: str) -> PodRecord: ...
    def list(
        self,
        *,
        id_prefix: str = "",
        state: PodState | None = None,
        labels: Mapping[str, str] = ...,
    ) -> Sequence[PodRecord]: ...


class Containers(Protocol):
    """stop and remove of an unknown id succeed."""

    async def create(self, pod_id: str, spec: ContainerSpec) -> ContainerId: ...
    async def start(self, container_id: str) -> None: ...
    async def stop(self, container_id: str, timeout_s: int) -> None: ...
    async def remove(self, container_id: str) -> None: ...
    def status(self, container_id: str) -> ContainerRecord: ...
    def list(
        self,
        *,
        id_prefix: str = "",
        pod_prefix: str = "",
        state: ContainerState | None = None,
        labels: Mapping[str, str] = ...,
    ) -> Sequence[ContainerRecord]: ...
    async def reopen_log(self, container_id: str) -> None: ...


class Updates(Protocol):
    async def update_container(self, container_id: str, asked: Resources) -> None: ...
    async def update_pod(
        self, pod_id: str, overhead: Resources | None, resources: Resources | None
    ) -> None: ...


class Execs(Protocol):
    async def exec_sync(
        self, container_id: str, command: tuple[str, ...], timeout_s: int
    ) -> ExecResult: ...


class Node(Protocol):
    def conditions(self) -> Sequence[Condition]: ...
    async def set_pod_cidr(self, cidr: str) -> None: ...
    def verbose(self) -> Mapping[str, str]: ...


class Images(Protocol):
    """find returns None, and remove succeeds, where there is no such image."""

    def images(self) -> Sequence[Image]: ...
    def find(self, name: str) -> Image | None: ...
    async def pull(self, name: str, auth: RegistryAuth | None) -> Image: ...
    async def remove(self, name: str) -> None: ...
    async def import_layout(self, path: Path, name: str) -> Image: ...
    def usage(self) -> FilesystemUsage: ...
