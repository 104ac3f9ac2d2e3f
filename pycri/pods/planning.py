# SPDX-License-Identifier: Apache-2.0
"""Gather what a container's plan is made from: image, user, devices, paths."""

from contextlib import AbstractContextManager

import msgspec

from pycri.errors import InvalidRequest, NotFound
from pycri.images.store import ImageStore
from pycri.model.cdi import DeviceEdits
from pycri.model.container import ContainerRecord, ContainerSpec, VolumeImage
from pycri.model.ids import ContainerId, TaskId
from pycri.model.image import Image
from pycri.model.plan import ContainerPlan, ProcessPlan
from pycri.model.pod import PodRecord
from pycri.model.security import NamespaceMode
from pycri.plan.container import ContainerInputs, plan_container
from pycri.pods.cdi import CdiDevices
from pycri.pods.devices import read_devices
from pycri.pods.foundation import Foundation
from pycri.pods.identity import Identities
from pycri.pods.profiles import Profiles, read_seccomp_text
from pycri.pods.volumes import ImageVolumes

_TARGET_FIELD = "config.linux.security_context.namespace_options.target_id"


class Additions(msgspec.Struct, frozen=True, kw_only=True):
    """What a container has besides its image: found at the creation, kept in its record."""

    volume_images: tuple[VolumeImage, ...] = ()
    device_edits: DeviceEdits = DeviceEdits()
    seccomp_text: bytes = b""


class Planner:
    """Turns the spec of a container into inputs and plan."""

    def __init__(self, foundation: Foundation, images: ImageStore) -> None:
        self._host = foundation.host
        self._cgroup_parent = foundation.settings.cgroup_parent
        self._catalogue = foundation.catalogue
        self._layout = foundation.layout
        self._images = images
        self._identities = Identities()
        self._volumes = ImageVolumes(images, foundation.layout.empty, foundation.host)
        self._profiles = Profiles(foundation.host)
        self._cdi = CdiDevices(foundation.settings.cdi_dirs)
        # Probes come every second and a container's process never changes.
        self._processes: dict[ContainerId, ProcessPlan] = {}

    def find_image(self, spec: ContainerSpec) -> Image:
        """Return the image a container names. Raises NotFound: it must be pulled before."""
        image = self._images.find(spec.image.image)
        if image is None:
            raise NotFound("image", spec.image.image)
        return image

    def find_additions(self, spec: ContainerSpec) -> Additions:
        """Return the images of volumes and what CDI devices add. May block on the disk.

        Raises: ImageVolumeMountFailed, InvalidRequest, Unsupported.
        """
        return Additions(
            volume_images=self._volumes.find(spec),
            device_edits=self._cdi.find_edits(spec.cdi_devices),
            seccomp_text=read_seccomp_text(spec.security),
        )

    def holding(self, image: Image, additions: Additions) -> AbstractContextManager[None]:
        """Keep the layers of a container that is being made, whatever becomes of its images."""
        volumes = (volume.layers for volume in additions.volume_images)
        return self._images.holding(image.layers, *volumes)

    def inputs(
        self,
        container_id: ContainerId,
        pod: PodRecord,
        spec: ContainerSpec,
        image: Image,
        additions: Additions,
    ) -> ContainerInputs:
        """Look up everything a plan needs. May block on the disk."""
        layers = self._images.layer_paths(image)
        user, home = self._identities.resolve(spec.security, image, layers)
        folder = self._layout.container(container_id)
        return ContainerInputs(
            container_id=container_id,
            pod=pod,
            pod_paths=self._layout.pod_paths(pod.id, pod.spec),
            spec=spec,
            image=image.config,
            layers=layers,
            upper=f"{folder}/upper",
            work=f"{folder}/work",
            bundle=self._layout.bundle(container_id),
            user=user,
            home=home,
            host=self._host,
            cgroup_parent=self._cgroup_parent,
            host_devices=read_devices(spec),
            volumes=self._volumes.layers(additions.volume_images),
            device_edits=additions.device_edits,
            seccomp=self._profiles.seccomp(spec.security, additions.seccomp_text),
            apparmor_profile=self._profiles.apparmor(spec.security),
            pid_target=self._pid_target(pod, spec),
        )

    def plan(self, record: ContainerRecord) -> ContainerPlan:
        """Return the plan of a container that was created before, as the same user."""
        # As it was at the creation: the image may have been removed since.
        image = Image(
            id=record.image_id,
            layers=record.image_layers,
            config=record.image_config,
            size_bytes=0,
            architecture=self._host.architecture,
        )
        additions = Additions(
            volume_images=record.volume_images,
            device_edits=record.device_edits,
            seccomp_text=record.seccomp_text,
        )
        pod = self._catalogue.pod(record.pod_id)
        spec = msgspec.structs.replace(record.spec, resources=record.resources)
        return plan_container(self.inputs(record.id, pod, spec, image, additions))

    def process(self, record: ContainerRecord) -> ProcessPlan:
        """Return a container's process as planned: what an exec in it starts from."""
        process = self._processes.get(record.id)
        if process is None:
            process = self._processes[record.id] = self.plan(record).process
        return process

    async def collect_layers(self) -> None:
        """Remove the layers that neither an image nor a container has any more."""
        await self._images.collect_garbage()

    def forget(self, container_id: ContainerId) -> None:
        """Drop what is remembered of a removed container."""
        self._processes.pop(container_id, None)

    def _pid_target(self, pod: PodRecord, spec: ContainerSpec) -> TaskId | None:
        modes = spec.security.namespaces
        if modes.pid is not NamespaceMode.TARGET:
            return None
        try:
            target = self._catalogue.container(modes.target_id)
        except NotFound as error:
            raise InvalidRequest(_TARGET_FIELD, str(error)) from error
        if target.pod_id != pod.id:
            raise InvalidRequest(_TARGET_FIELD, "is not a container of this pod")
        return TaskId(target.id)
