# SPDX-License-Identifier: Apache-2.0
"""Namespaces, identities, capabilities and profiles of pods and containers.

Profiles of the node are decoded by name; whether there is such a one is for `pods/profiles.py`.
"""

import re
from collections.abc import Iterable

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode import fields
from pycri.cri.decode.idmaps import decode_user_namespace
from pycri.errors import InvalidRequest
from pycri.model.security import (
    ContainerSecurity,
    NamespaceMode,
    NamespaceModes,
    ProfileType,
    SecurityProfile,
    SupplementalGroupsPolicy,
)

_LARGEST_ID = (1 << 32) - 2
"""(uid_t) -1 means "leave as it is" to the kernel, setresuid(2)."""
_CAPABILITY = re.compile(r"[A-Z][A-Z_]*")
_SELINUX_DEFAULTS = {
    "user": "system_u",
    "role": "system_r",
    "type": "container_t",
    "level": "s0",
}
_SELINUX_PART = re.compile(r"[A-Za-z0-9_.:,-]{1,255}")
_LOCALHOST = "localhost/"
_USERNAME = re.compile(r"[^\s:\x00-\x1f\x7f]{1,256}")


def decode_namespaces(message: pb.NamespaceOption, path: str, *, pod: bool) -> NamespaceModes:
    """Return the modes. Only a container may name a target; network and ipc are POD or NODE.

    Without userns_options the user namespace is the node's, as for a kubelet that knows none.
    """
    modes = NamespaceModes(
        network=_pod_or_node(message.network, f"{path}.network"),
        pid=fields.choice(message.pid, f"{path}.pid", NamespaceMode),
        ipc=_pod_or_node(message.ipc, f"{path}.ipc"),
        target_id=fields.one_line(message.target_id, f"{path}.target_id"),
        user=decode_user_namespace(message.userns_options, f"{path}.userns_options")
        if message.HasField("userns_options")
        else None,
    )
    is_target = modes.pid is NamespaceMode.TARGET
    if is_target and pod:
        raise InvalidRequest(f"{path}.pid", "a pod cannot join a container")
    if is_target != bool(modes.target_id):
        raise InvalidRequest(f"{path}.target_id", "goes with pid TARGET and only with it")
    return modes


def _pod_or_node(value: int, path: str) -> NamespaceMode:
    mode = fields.choice(value, path, NamespaceMode)
    if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
        raise InvalidRequest(path, f"{mode.name} is neither POD nor NODE")
    return mode


def decode_selinux(message: pb.SELinuxOption, path: str) -> str:
    """Return the label "user:role:type:level", "" if nothing is asked for; the parts that are not
    given are those of containers everywhere (container-selinux)."""
    parts = {name: getattr(message, name) for name in _SELINUX_DEFAULTS}
    for name, value in parts.items():
        if value and not _SELINUX_PART.fullmatch(value):
            raise InvalidRequest(f"{path}.{name}", f"{value!r} cannot be part of a label")
    if not any(parts.values()):
        return ""
    return ":".join(parts[name] or default for name, default in _SELINUX_DEFAULTS.items())


def decode_user_id(message: pb.Int64Value, path: str) -> int:
    return fields.number(message.value, path, 0, _LARGEST_ID)


def decode_groups(groups: Iterable[int], path: str) -> tuple[int, ...]:
    return tuple(fields.number(g, f"{path}[{i}]", 0, _LARGEST_ID) for i, g in enumerate(groups))


def decode_container_security(
    message: pb.LinuxContainerSecurityContext, path: str
) -> ContainerSecurity:
    """Return the security context of a container.

    A privileged container is unconfined whatever its profiles say (CRI, `privileged`).
    """
    _check_identity(message, path)
    label = decode_selinux(message.selinux_options, f"{path}.selinux_options")
    confined = not message.privileged
    capabilities, caps = message.capabilities, f"{path}.capabilities"
    options, groups_path = message.namespace_options, f"{path}.supplemental_groups"
    has_user, has_group = message.HasField("run_as_user"), message.HasField("run_as_group")
    return ContainerSecurity(
        namespaces=decode_namespaces(options, f"{path}.namespace_options", pod=False),
        privileged=message.privileged,
        run_as_user=message.run_as_user.value if has_user else None,
        run_as_username=message.run_as_username,
        run_as_group=message.run_as_group.value if has_group else None,
        supplemental_groups=decode_groups(message.supplemental_groups, groups_path),
        supplemental_groups_policy=fields.choice(
            message.supplemental_groups_policy, f"{groups_path}_policy", SupplementalGroupsPolicy
        ),
        readonly_rootfs=message.readonly_rootfs,
        no_new_privs=message.no_new_privs,
        add_capabilities=_capabilities(capabilities.add_capabilities, f"{caps}.add_capabilities"),
        drop_capabilities=_capabilities(
            capabilities.drop_capabilities, f"{caps}.drop_capabilities"
        ),
        add_ambient_capabilities=_capabilities(
            capabilities.add_ambient_capabilities, f"{caps}.add_ambient_capabilities"
        ),
        masked_paths=_paths(message.masked_paths, f"{path}.masked_paths"),
        readonly_paths=_paths(message.readonly_paths, f"{path}.readonly_paths"),
        seccomp=_decode_seccomp(message, path) if confined else None,
        apparmor=_decode_apparmor(message, path) if confined else None,
        selinux_label=label,
    )


def _check_identity(message: pb.LinuxContainerSecurityContext, path: str) -> None:
    user, name = message.HasField("run_as_user"), message.run_as_username
    if user:
        decode_user_id(message.run_as_user, f"{path}.run_as_user")
    if name and not _USERNAME.fullmatch(name):
        raise InvalidRequest(f"{path}.run_as_username", f"{name!r} cannot be a user's name")
    if name and user:
        raise InvalidRequest(f"{path}.run_as_username", "cannot be given with run_as_user")
    if message.HasField("run_as_group"):
        check_group(message.run_as_group, f"{path}.run_as_group", has_user=user or bool(name))


def check_group(message: pb.Int64Value, path: str, *, has_user: bool) -> None:
    """Refuse a group without a user (CRI, `run_as_group`)."""
    if not has_user:
        raise InvalidRequest(path, "needs run_as_user or run_as_username")
    decode_user_id(message, path)


def _capabilities(names: Iterable[str], path: str) -> tuple[str, ...]:
    return tuple(_capability(name, f"{path}[{i}]") for i, name in enumerate(names))


def _capability(text: str, path: str) -> str:
    """Return "ALL" or CAP_NAME; whether the kernel knows the name is for the plan to say."""
    name = text.upper().removeprefix("CAP_")
    if not _CAPABILITY.fullmatch(name):
        raise InvalidRequest(path, f"{text!r} is not a capability")
    return name if name == "ALL" else f"CAP_{name}"


def _paths(texts: Iterable[str], path: str) -> tuple[str, ...]:
    return tuple(fields.absolute(text, f"{path}[{i}]") for i, text in enumerate(texts))


def _decode_seccomp(message: pb.LinuxContainerSecurityContext, path: str) -> SecurityProfile | None:
    """Return the profile: the field, else the deprecated string; None is unconfined."""
    where = f"{path}.seccomp_profile_path"
    profile = _named_profile(message.seccomp_profile_path, where)
    if message.HasField("seccomp"):
        where = f"{path}.seccomp.localhost_ref"
        profile = _profile(message.seccomp, f"{path}.seccomp")
    if profile is not None and profile.type is ProfileType.LOCALHOST:
        fields.absolute(profile.localhost_ref, where)
    return profile


def _decode_apparmor(
    message: pb.LinuxContainerSecurityContext, path: str
) -> SecurityProfile | None:
    if message.HasField("apparmor"):
        return _profile(message.apparmor, f"{path}.apparmor")
    return _named_profile(message.apparmor_profile, f"{path}.apparmor_profile")


def _profile(message: pb.SecurityProfile, path: str) -> SecurityProfile:
    kind = fields.choice(message.profile_type, f"{path}.profile_type", ProfileType)
    if kind is not ProfileType.LOCALHOST:
        return SecurityProfile(type=kind)
    # Callers that knew the deprecated strings put their prefix here too; all runtimes bear it.
    name = message.localhost_ref.removeprefix(_LOCALHOST)
    return SecurityProfile(type=kind, localhost_ref=fields.required(name, f"{path}.localhost_ref"))


def _named_profile(text: str, path: str) -> SecurityProfile | None:
    """Return what the deprecated string names: "", runtime/default, unconfined, localhost/X."""
    match text:
        case "":
            return None
        case "runtime/default" | "docker/default":
            return SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
        case "unconfined":
            return SecurityProfile(type=ProfileType.UNCONFINED)
    if text.startswith(_LOCALHOST):
        name = fields.required(text.removeprefix(_LOCALHOST), path)
        return SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref=name)
    raise InvalidRequest(path, f"{text!r} is not a profile")
