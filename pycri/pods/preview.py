# SPDX-License-Identifier: Apache-2.0
"""What a request would do, without doing it: every step for a pod and for a container, as text.

Made by the code that plans for real, from the request, the facts of the host, and the images on its
disk; nothing is made or changed. Ids that a daemon would choose are the words POD and CONTAINER. An
image that is not on the node leaves its parts open; they stand in <angle brackets>.
"""

from pycri.config import Settings
from pycri.errors import InvalidRequest
from pycri.images.stored import StoredImages
from pycri.model.container import ContainerSpec, Mount
from pycri.model.host import HostFacts
from pycri.model.ids import ContainerId, ImageId, PodId, TaskId
from pycri.model.image import Image, ImageConfig
from pycri.model.pod import PodRecord, PodSpec
from pycri.model.security import NamespaceMode
from pycri.network.choice import preview_attachment
from pycri.plan.container import ContainerInputs, plan_container
from pycri.plan.mounts import VolumeLayers
from pycri.plan.sandbox import plan_sandbox
from pycri.plan.text import render_plan
from pycri.pods.cdi import CdiDevices
from pycri.pods.devices import read_devices
from pycri.pods.identity import Identities
from pycri.pods.layout import Layout
from pycri.pods.profiles import Profiles, read_seccomp_text

POD = PodId("POD")
CONTAINER = ContainerId("CONTAINER")


class Preview:
    """Tells what this node would do."""

    def __init__(self, settings: Settings, host: HostFacts, images: StoredImages) -> None:
        self._settings = settings
        self._host = host
        self._images = images
        self._layout = Layout(settings)

    def pod(self, spec: PodSpec) -> str:
        """Return the steps of RunPodSandbox. Raises: InvalidRequest, Unsupported."""
        paths = self._layout.pod_paths(POD, spec)
        plan = plan_sandbox(POD, spec, paths, self._host, self._settings.cgroup_parent)
        lines = [f"file {paths.hostname}", f"file {paths.resolv_conf}"]
        lines += [f"directory {spec.log_directory}"] if spec.log_directory else []
        text = "".join(f"{line}\n" for line in lines) + render_plan(plan)
        if "net" in paths.pins:
            text += preview_attachment(self._settings.network, spec)
        return f"{text}file {paths.hosts}\n"

    def container(self, pod: PodSpec, spec: ContainerSpec) -> str:
        """Return the steps of CreateContainer and StartContainer, as if the pod were ready.

        Raises: InvalidRequest naming the field, Unsupported, ImageVolumeMountFailed.
        """
        found = self._images.find(spec.image.image)
        note = "" if found else f"# image {spec.image.image} is not on this node\n"
        try:
            inputs = self._inputs(pod, spec, found or _unknown(spec, self._host))
        except InvalidRequest as error:
            if found is None:
                error.add_note(f"image {spec.image.image} is not on this node")
            raise
        folders = f"directory {inputs.upper}\ndirectory {inputs.work}\n"
        return note + folders + render_plan(plan_container(inputs))

    def _inputs(self, pod: PodSpec, spec: ContainerSpec, image: Image) -> ContainerInputs:
        layers = self._images.layer_folders(image.layers)
        user, home = Identities().resolve(spec.security, image, layers)
        folder = self._layout.container(CONTAINER)
        profiles = Profiles(self._host)
        has_target = spec.security.namespaces.pid is NamespaceMode.TARGET
        return ContainerInputs(
            container_id=CONTAINER,
            pod=PodRecord(id=POD, spec=pod, created_ns=0),
            pod_paths=self._layout.pod_paths(POD, pod),
            spec=spec,
            image=image.config,
            layers=layers or (f"<layers of {spec.image.image}>",),
            upper=f"{folder}/upper",
            work=f"{folder}/work",
            bundle=self._layout.bundle(CONTAINER),
            user=user,
            home=home,
            host=self._host,
            cgroup_parent=self._settings.cgroup_parent,
            host_devices=read_devices(spec),
            volumes=VolumeLayers(
                layers={i: self._volume(m) for i, m in enumerate(spec.mounts) if m.image},
                empty=self._layout.empty,
            ),
            device_edits=CdiDevices(self._settings.cdi_dirs).find_edits(spec.cdi_devices),
            pid_target=TaskId(spec.security.namespaces.target_id) if has_target else None,
            seccomp=profiles.seccomp(spec.security, read_seccomp_text(spec.security)),
            apparmor_profile=profiles.apparmor(spec.security),
        )

    def _volume(self, mount: Mount) -> tuple[str, ...]:
        assert mount.image is not None
        image = self._images.find(mount.image.image)
        layers = self._images.layer_folders(image.layers) if image else ()
        return layers or (f"<layers of {mount.image.image}>",)


def _unknown(spec: ContainerSpec, host: HostFacts) -> Image:
    """Return what stands for an image that is not here."""
    name = spec.image.image
    config = ImageConfig(entrypoint=(f"<entrypoint of {name}>",), cmd=(f"<cmd of {name}>",))
    return Image(
        id=ImageId(""), size_bytes=0, config=config, layers=(), architecture=host.architecture
    )
