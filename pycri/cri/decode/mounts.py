# SPDX-License-Identifier: Apache-2.0
"""Mount to Mount: a bind of the host's, or an image as a volume."""

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.cri.decode.idmaps import decode_mount_ids
from pycri.cri.decode.image import decode_image_spec
from pycri.errors import InvalidRequest
from pycri.model.container import ImageSpec, Mount, Propagation

MOUNT_OPTIONS = ("noexec", "nodev", "nosuid", "exec", "dev", "suid")
"""The kubelet sends the first three; the others take back what the volume's own mount has."""


def decode_mount(message: pb.Mount, path: str) -> Mount:
    """Return a mount whose fields agree with each other."""
    target = fields.absolute(message.container_path, f"{path}.container_path")
    if not target.strip("/"):
        raise InvalidRequest(f"{path}.container_path", "is the root itself")
    propagation = fields.choice(message.propagation, f"{path}.propagation", Propagation)
    if message.recursive_read_only:
        where = f"{path}.recursive_read_only"
        if not message.readonly:
            raise InvalidRequest(where, "needs readonly")
        if propagation is not Propagation.PRIVATE:
            raise InvalidRequest(where, "needs propagation PRIVATE")
    host_path, image = _decode_source(message, path)
    return Mount(
        container_path=target,
        host_path=host_path,
        readonly=message.readonly,
        recursive_read_only=message.recursive_read_only,
        propagation=propagation,
        selinux_relabel=message.selinux_relabel,
        options=tuple(
            _decode_option(option, f"{path}.mount_options[{i}]")
            for i, option in enumerate(message.mount_options)
        ),
        image=image,
        # Whether it stays inside is for the mount to find out: its error has a name of the CRI's.
        ids=decode_mount_ids(message, path),
        image_sub_path=fields.no_nul(message.image_sub_path, f"{path}.image_sub_path"),
    )


def _decode_source(message: pb.Mount, path: str) -> tuple[str, ImageSpec | None]:
    """Return the host's path, or "" and the image."""
    if not message.image.image:
        if message.image_sub_path:
            raise InvalidRequest(f"{path}.image_sub_path", "needs an image")
        return fields.absolute(message.host_path, f"{path}.host_path"), None
    if message.host_path:
        raise InvalidRequest(f"{path}.host_path", "is set, and so is image")
    if not message.readonly:
        raise InvalidRequest(f"{path}.readonly", "is false, but images are read-only")
    if message.propagation != pb.PROPAGATION_PRIVATE:
        raise InvalidRequest(f"{path}.propagation", "an image has none: it must be PRIVATE")
    return "", decode_image_spec(message.image, f"{path}.image")


def _decode_option(text: str, path: str) -> str:
    if text not in MOUNT_OPTIONS:
        raise InvalidRequest(path, f"{text!r} is not among {', '.join(MOUNT_OPTIONS)}")
    return text
