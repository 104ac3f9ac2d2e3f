# SPDX-License-Identifier: Apache-2.0
"""Images as volumes: found by name, and looked into before a container is made of them."""

import os

from pycri.errors import ImageVolumeMountFailed
from pycri.images.store import ImageStore
from pycri.kernel import mounts
from pycri.kernel.paths import open_beneath
from pycri.model.container import ContainerSpec, Mount, VolumeImage
from pycri.model.host import HostFacts
from pycri.model.ids import Digest
from pycri.plan.mounts import VolumeLayers


class ImageVolumes:
    """The images behind a container's mounts. empty: an empty folder."""

    def __init__(self, images: ImageStore, empty: str, host: HostFacts) -> None:
        self._images = images
        self._empty = empty
        self._host = host

    def find(self, spec: ContainerSpec) -> tuple[VolumeImage, ...]:
        """Return the image of each mount that names one. May block on the disk.

        Raises: ImageVolumeMountFailed if it is not there, or the sub path is not in it.
        """
        return tuple(
            self._find(f"config.mounts[{index}]", index, mount)
            for index, mount in enumerate(spec.mounts)
            if mount.image
        )

    def layers(self, volumes: tuple[VolumeImage, ...]) -> VolumeLayers:
        """Return where the layers are."""
        found = {volume.mount: self._images.layer_folders(volume.layers) for volume in volumes}
        return VolumeLayers(layers=found, empty=self._empty)

    def _find(self, field: str, index: int, mount: Mount) -> VolumeImage:
        assert mount.image is not None
        image = self._images.find(mount.image.image)
        if image is None or not image.layers:
            problem = "is not on this node" if image is None else "has no layers"
            raise ImageVolumeMountFailed(f"{field}.image: {mount.image.image!r} {problem}")
        os.makedirs(self._empty, mode=0o755, exist_ok=True)
        if mount.image_sub_path:
            self._check_sub_path(f"{field}.image_sub_path", mount.image_sub_path, image.layers)
        return VolumeImage(mount=index, image_id=image.id, layers=image.layers)

    def _check_sub_path(self, field: str, path: str, layers: tuple[Digest, ...]) -> None:
        """Links in the image are followed as a process with that root would; so none leads out."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ImageVolumeMountFailed(f"{field}: {path!r} does not stay in the image")
        if not self._host.overlay_lowerdir_append:
            # Older kernels make an overlay by a mount that all would see: the start will tell.
            return
        root_fd = mounts.new_overlay((*self._images.layer_folders(layers), self._empty))
        try:
            os.close(open_beneath(root_fd, path, os.O_PATH))
        except OSError as error:
            raise ImageVolumeMountFailed(f"{field}: {path!r}: {error.strerror}") from error
        finally:
            os.close(root_fd)
