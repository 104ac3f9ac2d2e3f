# SPDX-License-Identifier: Apache-2.0
"""UserNamespace and IDMapping to IdMappings."""

from collections.abc import Sequence

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.errors import InvalidRequest
from pycri.model.security import IdMapping, IdMappings, NamespaceMode

_IDS = 1 << 32
"""How many there are; the last, (uid_t) -1, is nobody's."""


def decode_user_namespace(message: pb.UserNamespace, path: str) -> IdMappings | None:
    """Return the maps of a user namespace, None for the node's (NODE).

    One line of each and id 0 in it: what the kubelet sends, and what containerd and CRI-O take.
    """
    mode = fields.choice(message.mode, f"{path}.mode", NamespaceMode)
    if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise InvalidRequest(f"{path}.mode", f"{mode.name} is neither POD nor NODE")
    if mode is NamespaceMode.NODE:
        for name in ("uids", "gids"):
            if getattr(message, name):
                raise InvalidRequest(f"{path}.{name}", "mode NODE takes no mappings")
        return None
    return IdMappings(
        uids=_decode_root_map(message.uids, f"{path}.uids"),
        gids=_decode_root_map(message.gids, f"{path}.gids"),
    )


def decode_mount_ids(message: pb.Mount, path: str) -> IdMappings | None:
    """Return the maps of an id-mapped mount, None for one that shows owners as they are."""
    if not (message.uidMappings or message.gidMappings):
        return None
    for name in ("uidMappings", "gidMappings"):
        if not getattr(message, name):
            raise InvalidRequest(f"{path}.{name}", "is missing: uids and gids go together")
    return IdMappings(
        uids=_decode_map(message.uidMappings, f"{path}.uidMappings"),
        gids=_decode_map(message.gidMappings, f"{path}.gidMappings"),
    )


def _decode_root_map(lines: Sequence[pb.IDMapping], path: str) -> tuple[IdMapping, ...]:
    if len(lines) != 1:
        raise InvalidRequest(path, f"must have one mapping, has {len(lines)}")
    if lines[0].container_id != 0:
        raise InvalidRequest(f"{path}[0].container_id", "must be 0: root has to be mapped")
    return _decode_map(lines, path)


def _decode_map(lines: Sequence[pb.IDMapping], path: str) -> tuple[IdMapping, ...]:
    return tuple(_decode_line(line, f"{path}[{i}]") for i, line in enumerate(lines))


def _decode_line(line: pb.IDMapping, path: str) -> IdMapping:
    most = _IDS - 1 - max(line.host_id, line.container_id)
    fields.number(line.length, f"{path}.length", 1, most)
    return IdMapping(host_id=line.host_id, container_id=line.container_id, length=line.length)
