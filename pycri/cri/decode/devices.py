# SPDX-License-Identifier: Apache-2.0
"""Device to Device, and the names of CDI devices from field and annotations."""

import re
from collections.abc import Iterable, Mapping

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.errors import InvalidRequest
from pycri.model.cdi import CdiName
from pycri.model.container import Device

CDI_ANNOTATION_PREFIX = "cdi.k8s.io/"
_PERMISSIONS = re.compile(r"[rwm]{1,3}")
_CDI_NAME = re.compile(
    r"[A-Za-z](?:[\w.-]*[A-Za-z0-9])?/[A-Za-z](?:[\w.-]*[A-Za-z0-9])?"
    r"=[A-Za-z0-9](?:[\w.:-]*[A-Za-z0-9])?",
    re.ASCII,
)
"""vendor/class=name, with the characters that CDI allows in each."""


def decode_device(message: pb.Device, path: str) -> Device:
    """Return a device whose paths are absolute."""
    if not _PERMISSIONS.fullmatch(message.permissions):
        raise InvalidRequest(f"{path}.permissions", f"{message.permissions!r} is not among r, w, m")
    return Device(
        container_path=fields.absolute(message.container_path, f"{path}.container_path"),
        host_path=fields.absolute(message.host_path, f"{path}.host_path"),
        permissions=message.permissions,
    )


def decode_cdi_devices(
    devices: Iterable[pb.CDIDevice], annotations: Mapping[str, str]
) -> tuple[CdiName, ...]:
    """Return all devices, each once: those of the field first.

    A device plugin's client may say the same in both; annotations hold lists with commas.
    """
    named = [(device.name, f"config.CDI_devices[{i}].name") for i, device in enumerate(devices)]
    for key, value in sorted(annotations.items()):
        if key.startswith(CDI_ANNOTATION_PREFIX):
            named += [(name, f'config.annotations["{key}"]') for name in value.split(",")]
    found: dict[str, CdiName] = {}
    for name, path in named:
        if not _CDI_NAME.fullmatch(name):
            raise InvalidRequest(path, f"{name!r} is not a CDI device: vendor/class=name")
        found.setdefault(name, CdiName(name=name, field=path))
    return tuple(found.values())
