# SPDX-License-Identifier: Apache-2.0
"""CDI spec files of the host: found, read, kept until they change.

Each folder of the settings holds *.json and *.yaml. Of a device in two folders the later one's
counts; in two files of one folder it is nobody's. A file that cannot be read hides no other: it is
named when a device is not found. The only user of a YAML parser.
"""

import os
import stat
from collections.abc import Iterator

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.cdi import CdiName, CdiSpec, DeviceEdits
from pycri.plan.cdi import FoundDevice, check_spec, host_paths, merge_edits
from pycri.plan.devices import HostDevice
from pycri.pods.devices import read_device

FILE_LIMIT = 16 << 20
_Stamp = tuple[int, int, int]


class CdiDevices:
    """The devices that CDI files describe. folders: in rising priority."""

    def __init__(self, folders: tuple[str, ...]) -> None:
        self._folders = folders
        self._specs: dict[str, tuple[_Stamp, CdiSpec]] = {}

    def find_edits(self, names: tuple[CdiName, ...]) -> DeviceEdits:
        """Return what the named devices add to a container. May block on the disk.

        Raises: InvalidRequest naming the field for a device that nobody describes; Unsupported.
        """
        if not names:
            return DeviceEdits()
        problems: list[str] = []
        folders = [self._read_folder(folder, problems) for folder in self._folders]
        devices = tuple(_find(name, folders, problems) for name in names)
        nodes: dict[str, HostDevice] = {}
        for path in host_paths(devices):
            node = read_device(path)
            if node is not None:
                nodes[path] = node
        return merge_edits(devices, nodes)

    def _read_folder(self, folder: str, problems: list[str]) -> list[CdiSpec]:
        """Return the specs of one folder; what is wrong with others goes to `problems`."""
        found = []
        for path in _spec_paths(folder):
            try:
                found.append(self._read(path))
            except (OSError, ValueError) as error:
                problems.append(f"{path}: {error}")
        return found

    def _read(self, path: str) -> CdiSpec:
        """Raises: OSError, ValueError."""
        # Nonblocking: a pipe in its place must not hold us.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._specs.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            if not stat.S_ISREG(status.st_mode) or status.st_size > FILE_LIMIT:
                raise ValueError(f"not a file of at most {FILE_LIMIT} bytes")
            text = file.read(FILE_LIMIT)
        spec = _parse(path, text)
        self._specs[path] = stamp, spec
        return spec


def _parse(path: str, text: bytes) -> CdiSpec:
    decode = msgspec.json.decode if path.endswith(".json") else msgspec.yaml.decode
    try:
        spec = decode(text, type=CdiSpec)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    check_spec(spec)
    return spec


def _spec_paths(folder: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name.endswith((".json", ".yaml")):
            yield f"{folder}/{name}"


def _find(name: CdiName, folders: list[list[CdiSpec]], problems: list[str]) -> FoundDevice:
    for specs in reversed(folders):
        found = [
            FoundDevice(field=name.field, name=name.name, spec=spec, device=device)
            for spec in specs
            for device in spec.devices
            if f"{spec.kind}={device.name}" == name.name
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise InvalidRequest(name.field, f"{name.name} is in two CDI files of one folder")
    why = f"; not readable: {'; '.join(problems)}" if problems else ""
    raise InvalidRequest(name.field, f"unresolvable CDI device {name.name}{why}")
