# SPDX-License-Identifier: Apache-2.0
"""CDI devices to what they add to a container: variables, nodes, mounts, groups, hooks.

A file's own edits come once, before those of its first device; then each device's, in the order
asked for. Later ones win; of hooks all are run. Source: CDI SPEC.md.
"""

import re
from collections.abc import Iterable, Mapping

import msgspec

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.cdi import (
    CdiChanges,
    CdiDevice,
    CdiHook,
    CdiMount,
    CdiNode,
    CdiSpec,
    DeviceEdits,
    DeviceNode,
)
from pycri.model.hooks import DEFAULT_ENV, HOOK_NAMES, Hook, Hooks
from pycri.model.plan import BindMount, MountFilesystem
from pycri.model.security import User
from pycri.plan.devices import HostDevice
from pycri.plan.mounts import clean_path

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0")
_KIND = re.compile(r"[A-Za-z][\w.-]*/[A-Za-z][\w-]*", re.ASCII)
_DEVICE_NAME = re.compile(r"[A-Za-z0-9](?:[\w.:-]*[A-Za-z0-9])?", re.ASCII)
_ACCESS = re.compile(r"[rwm]{0,3}")
_ATTRIBUTES = {"ro", "rro", "nosuid", "nodev", "noexec", "suid", "dev", "exec"}
_PROPAGATIONS = {
    f"{recursive}{name}": name for name in ("private", "slave", "shared") for recursive in ("", "r")
}
_BINDS = ("", "bind", "none")
_AS_IT_IS = {"rw", "defaults", "relatime", "bind", "rbind"}
"""Options that ask for what a mount has anyway, or that are read elsewhere."""


class FoundDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device that was asked for and the file it is in. field: of the request."""

    field: str
    name: str
    spec: CdiSpec
    device: CdiDevice


def check_spec(spec: CdiSpec) -> None:
    """Raise ValueError, with what is wrong, for a file that says what it may not."""
    if spec.cdi_version not in VERSIONS:
        raise ValueError(f"cdiVersion {spec.cdi_version!r} is not among {', '.join(VERSIONS)}")
    if not _KIND.fullmatch(spec.kind):
        raise ValueError(f"kind {spec.kind!r} is not vendor/class")
    names = [device.name for device in spec.devices]
    for name in names:
        if not _DEVICE_NAME.fullmatch(name) or names.count(name) > 1:
            raise ValueError(f"the device name {name!r} is wrong, or there twice")
    for changes in (spec.container_edits, *(device.container_edits for device in spec.devices)):
        _check_changes(changes)


def host_paths(devices: Iterable[FoundDevice]) -> tuple[str, ...]:
    """Return the host's nodes that must be looked at: kind or numbers are not in the file."""
    return tuple(
        node.host_path or node.path
        for changes in _all_changes(devices)
        for node in changes.device_nodes
        if not _is_complete(node)
    )


def merge_edits(devices: tuple[FoundDevice, ...], nodes: Mapping[str, HostDevice]) -> DeviceEdits:
    """Return what the devices add. nodes: those of `host_paths` that there are.

    Raises: InvalidRequest for a node that is not there, or a mount option nobody knows;
        Unsupported for what cannot be done. Both name the field of the request.
    """
    env: dict[str, bytes] = {}
    made: dict[str, DeviceNode] = {}
    mounts: dict[str, BindMount | MountFilesystem] = {}
    groups: dict[int, None] = {}
    hooks: list[CdiHook] = []
    applied: list[CdiSpec] = []
    for found in devices:
        shared = () if found.spec in applied else (found.spec.container_edits,)
        applied.append(found.spec)
        for changes in (*shared, found.device.container_edits):
            _refuse(found, changes)
            for entry in changes.env:
                name, _, value = entry.partition("=")
                env[name] = value.encode("utf-8", "surrogateescape")
            made |= {clean_path(n.path): _node(found, n, nodes) for n in changes.device_nodes}
            mounts |= {clean_path(m.container_path): _mount(found, m) for m in changes.mounts}
            groups |= dict.fromkeys(gid for gid in changes.additional_gids if gid)
            hooks += changes.hooks
    return DeviceEdits(
        env=tuple(env.items()),
        nodes=tuple(made.values()),
        mounts=tuple(mounts.values()),
        groups=tuple(groups),
        hooks=_hooks(hooks),
    )


def owned_by(edits: DeviceEdits, user: User) -> DeviceEdits:
    """Return the edits with nodes that name no owner given to the container's user."""
    return msgspec.structs.replace(
        edits,
        nodes=tuple(
            msgspec.structs.replace(
                node,
                uid=user.uid if node.uid is None else node.uid,
                gid=user.gid if node.gid is None else node.gid,
            )
            for node in edits.nodes
        ),
    )


def _all_changes(devices: Iterable[FoundDevice]) -> Iterable[CdiChanges]:
    for found in devices:
        yield found.spec.container_edits
        yield found.device.container_edits


def _check_changes(changes: CdiChanges) -> None:
    _check_env(changes.env)
    paths = [node.path for node in changes.device_nodes]
    paths += [mount.container_path for mount in changes.mounts]
    paths += [mount.host_path for mount in changes.mounts if mount.type in _BINDS]
    paths += [hook.path for hook in changes.hooks]
    for path in paths:
        if "\0" in path or not path.startswith("/"):
            raise ValueError(f"{path!r} is not an absolute path")
    if "/" in {clean_path(mount.container_path) for mount in changes.mounts}:
        raise ValueError("a mount takes the place of the container's root")
    for hook in changes.hooks:
        _check_hook(hook)
    for node in changes.device_nodes:
        if not _ACCESS.fullmatch(node.permissions):
            raise ValueError(f"permissions {node.permissions!r} are not among r, w, m")


def _check_env(env: tuple[str, ...]) -> None:
    for entry in env:
        name, equals, _ = entry.partition("=")
        if not (name and equals) or "\0" in entry:
            # Not quoted: it may be a secret that lacks its name.
            raise ValueError("an entry of env is not NAME=VALUE")


def _check_hook(hook: CdiHook) -> None:
    _check_env(hook.env)
    if hook.hook_name not in HOOK_NAMES:
        raise ValueError(f"hookName {hook.hook_name!r} is not among {', '.join(HOOK_NAMES)}")
    if hook.timeout is not None and hook.timeout <= 0:
        raise ValueError(f"the timeout of hook {hook.path} is not above 0")
    if "\0" in "".join(hook.args):
        raise ValueError(f"an argument of hook {hook.path} holds a zero byte")


def _hooks(written: list[CdiHook]) -> Hooks:
    """Return hooks by when they are run: OCI's order is that of its names, then that given."""
    lists: dict[str, tuple[Hook, ...]] = {}
    for name, field in HOOK_NAMES.items():
        found = tuple(
            Hook(
                path=hook.path,
                args=hook.args or (hook.path,),
                env=hook.env or DEFAULT_ENV,
                timeout_s=hook.timeout,
            )
            for hook in written
            if hook.hook_name == name
        )
        lists[field] = lists.get(field, ()) + found
    return Hooks(**lists)


def _refuse(found: FoundDevice, changes: CdiChanges) -> None:
    if changes.intel_rdt is not None:
        raise Unsupported(f"{found.field}: {found.name} asks for intelRdt: it is not supported")


def _is_complete(node: CdiNode) -> bool:
    return bool(node.type and (node.major or node.minor))


def _node(found: FoundDevice, node: CdiNode, nodes: Mapping[str, HostDevice]) -> DeviceNode:
    path = node.host_path or node.path
    kind, major, minor = node.type, node.major, node.minor
    if not _is_complete(node):
        host = nodes.get(path)
        if host is None or node.type not in ("", host.kind):
            raise InvalidRequest(found.field, f"{found.name}: no device at {path}")
        kind, major, minor = host.kind, host.major, host.minor
    kind = "c" if kind == "u" else kind
    if kind not in ("b", "c"):
        raise Unsupported(f"{found.field}: {found.name}: a node of type {kind!r}: not supported")
    return DeviceNode(
        path=clean_path(node.path),
        kind=kind,
        major=major,
        minor=minor,
        mode=0o666 if node.file_mode is None else node.file_mode & 0o777,
        uid=node.uid,
        gid=node.gid,
        access=node.permissions or "rwm",
    )


def _mount(found: FoundDevice, mount: CdiMount) -> BindMount | MountFilesystem:
    target = clean_path(mount.container_path)
    attributes = tuple(option for option in mount.options if option in _ATTRIBUTES)
    others = [option for option in mount.options if option not in _ATTRIBUTES | _AS_IT_IS]
    if mount.type == "tmpfs":
        return MountFilesystem(
            filesystem="tmpfs", target=target, options=tuple(others), attributes=attributes
        )
    if mount.type not in _BINDS:
        raise Unsupported(f"{found.field}: {found.name}: a mount of type {mount.type!r}")
    unknown = [option for option in others if option not in _PROPAGATIONS]
    if unknown:
        reason = f"{found.name}: unknown mount option {unknown[0]!r} for {target}"
        raise InvalidRequest(found.field, reason)
    return BindMount(
        source=mount.host_path,
        target=target,
        attributes=attributes,
        propagation=_PROPAGATIONS[others[-1]] if others else "private",
        # As runc takes it: "bind" alone leaves what is mounted below behind.
        recursive="bind" not in mount.options,
    )
