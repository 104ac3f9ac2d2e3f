# SPDX-License-Identifier: Apache-2.0
"""The folders of a pod and of a container on the host (design: folders on a node).

RUN/ns/POD/{user,net,ipc,uts,shm}     pins
STATE/pods/POD/{hostname,hosts,resolv.conf}
STATE/containers/ID/{upper,work}
STATE/containers/ID/bundle/           config.json, rootfs; for a container with hooks
STATE/empty/                          the lowest layer of an image volume that has one layer only
"""

import os
import shutil

from pycri.config import Settings
from pycri.kernel import mounts, namespaces
from pycri.model.host import HostFacts
from pycri.model.ids import ContainerId, PodId
from pycri.model.pod import PodRecord, PodSpec
from pycri.model.security import IdMappings
from pycri.plan.names import pod_hostname, render_hostname, render_hosts, render_resolv_conf
from pycri.plan.sandbox import PodPaths, pod_pins

HOST_RESOLV_CONF = "/etc/resolv.conf"


class Layout:
    """Paths, and the making and removing of what is at them. All calls may block."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def pins(self, pod_id: PodId) -> str:
        """Return the folder of a pod's pins."""
        return f"{self._settings.pins_dir}/{pod_id}"

    def container(self, container_id: ContainerId) -> str:
        """Return the folder of a container."""
        return f"{self._settings.containers_dir}/{container_id}"

    def bundle(self, container_id: ContainerId) -> str:
        """Return the folder that a container's hooks are told of."""
        return f"{self.container(container_id)}/bundle"

    @property
    def containers(self) -> str:
        """The folder of all containers' folders."""
        return self._settings.containers_dir

    @property
    def empty(self) -> str:
        """An empty folder, made when it is first needed."""
        return f"{self._settings.state_dir}/empty"

    def pod_paths(self, pod_id: PodId, spec: PodSpec) -> PodPaths:
        """Return the host paths of a pod."""
        pins, files = self.pins(pod_id), self._files(pod_id)
        kinds = pod_pins(spec)
        return PodPaths(
            pins={kind: f"{pins}/{kind}" for kind in kinds},
            shm=f"{pins}/shm" if "ipc" in kinds else "",
            hosts=f"{files}/hosts",
            hostname=f"{files}/hostname",
            resolv_conf=f"{files}/resolv.conf",
        )

    def make_pod(self, pod_id: PodId, spec: PodSpec, host: HostFacts) -> None:
        """Make a pod's folders, and the files that do not depend on its address."""
        os.makedirs(self.pins(pod_id), mode=0o700, exist_ok=True)
        os.makedirs(self._files(pod_id), mode=0o700, exist_ok=True)
        paths = self.pod_paths(pod_id, spec)
        _write(paths.hostname, render_hostname(pod_hostname(spec, host)))
        _write(paths.resolv_conf, _resolv_conf(spec))
        if spec.log_directory:
            os.makedirs(spec.log_directory, mode=0o755, exist_ok=True)

    def make_network_pin(self, pod_id: PodId) -> str:
        """Make the folder of the pins of a pod that is to come; return where its network goes."""
        os.makedirs(self.pins(pod_id), mode=0o700)
        return f"{self.pins(pod_id)}/net"

    def write_hosts(self, pod: PodRecord, host: HostFacts) -> None:
        """Write a pod's /etc/hosts, now that its address is known."""
        addresses = pod.attachment.addresses if pod.attachment else ()
        paths = self.pod_paths(pod.id, pod.spec)
        _write(paths.hosts, render_hosts(pod_hostname(pod.spec, host), addresses))

    def has_pins(self, pod_id: PodId) -> bool:
        """Tell whether anything of the pod is still pinned."""
        return os.path.isdir(self.pins(pod_id))

    def remove_pins(self, pod_id: PodId) -> None:
        """Let go of a pod's namespaces and its /dev/shm; absent is fine."""
        folder = self.pins(pod_id)
        if not os.path.isdir(folder):
            return
        for name in os.listdir(folder):
            if name == "shm":
                mounts.unmount_all(f"{folder}/shm")
                os.rmdir(f"{folder}/shm")
            else:
                namespaces.unpin(f"{folder}/{name}")
        os.rmdir(folder)

    def remove_pod(self, pod_id: PodId) -> None:
        """Remove a pod's files."""
        shutil.rmtree(self._files(pod_id), ignore_errors=True)

    def make_container(
        self,
        container_id: ContainerId,
        ids: IdMappings | None = None,
        bundle_config: bytes | None = None,
    ) -> None:
        """Make a container's folders. ids: of its user namespace, whose root gets the upper one.

        bundle_config: `config.json` of a bundle, where there is to be one.
        """
        folder = self.container(container_id)
        # Closed to the host's users: the upper folder may hold set-user-ID programs.
        os.makedirs(folder, mode=0o700)
        if bundle_config is not None:
            os.makedirs(f"{folder}/bundle/rootfs")
            with open(f"{folder}/bundle/config.json", "wb") as file:
                file.write(bundle_config)
        for name in ("upper", "work"):
            os.mkdir(f"{folder}/{name}")
        uid, gid = (ids.host_uid(0), ids.host_gid(0)) if ids else (None, None)
        if uid is not None and gid is not None:
            os.chown(f"{folder}/upper", uid, gid)

    def has_container(self, container_id: ContainerId) -> bool:
        """Tell whether a container's folders are there; `work` is made last."""
        return os.path.isdir(f"{self.container(container_id)}/work")

    def remove_container(self, container_id: ContainerId) -> None:
        """Remove a container's folders; absent is fine."""
        try:
            shutil.rmtree(self.container(container_id))
        except FileNotFoundError:
            return

    def names(self) -> set[str]:
        """Return the ids of all pods and containers that have a folder; the folders are made."""
        settings = self._settings
        found: set[str] = set()
        for folder in (settings.pins_dir, settings.pods_dir, settings.containers_dir):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            found.update(os.listdir(folder))
        return found

    def _files(self, pod_id: PodId) -> str:
        return f"{self._settings.pods_dir}/{pod_id}"


def _resolv_conf(spec: PodSpec) -> str:
    if spec.dns is not None:
        return render_resolv_conf(spec.dns)
    try:
        with open(HOST_RESOLV_CONF) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, 0o644)
