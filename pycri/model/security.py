# SPDX-License-Identifier: Apache-2.0
"""Who a container's process is and what it may do (CRI LinuxContainerSecurityContext)."""

import enum

import msgspec

CAPABILITY_NAMES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Every capability by its number (linux/capability.h)."""


DEFAULT_APPARMOR = "pycri-default"
"""The AppArmor profile that RuntimeDefault means; the daemon loads it where the kernel can."""


class NamespaceMode(enum.Enum):
    """CRI NamespaceMode."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class IdMapping(msgspec.Struct, frozen=True, kw_only=True):
    """CRI IDMapping: `length` ids from `container_id` on are the host's from `host_id` on."""

    host_id: int
    container_id: int
    length: int

    def __str__(self) -> str:
        return f"{self.container_id}:{self.host_id}+{self.length}"


class IdMappings(msgspec.Struct, frozen=True, kw_only=True):
    """What a user namespace or an id-mapped mount maps; at least one line of each."""

    uids: tuple[IdMapping, ...]
    gids: tuple[IdMapping, ...]

    def host_uid(self, uid: int) -> int | None:
        """Return which user of the host a user inside is, None if the host has none for it."""
        return _host_id(self.uids, uid)

    def host_gid(self, gid: int) -> int | None:
        """Likewise of a group."""
        return _host_id(self.gids, gid)

    def __str__(self) -> str:
        return f"uids {','.join(map(str, self.uids))} gids {','.join(map(str, self.gids))}"


def _host_id(lines: tuple[IdMapping, ...], number: int) -> int | None:
    for line in lines:
        if 0 <= number - line.container_id < line.length:
            return line.host_id + number - line.container_id
    return None


class NamespaceModes(msgspec.Struct, frozen=True, kw_only=True):
    """CRI NamespaceOption. `target_id` is set if and only if `pid` is TARGET.

    user: the maps of the pod's user namespace, in which id 0 is mapped; None is the node's.
    """

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.POD
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: IdMappings | None = None


class SupplementalGroupsPolicy(enum.Enum):
    """CRI SupplementalGroupsPolicy."""

    MERGE = 0
    STRICT = 1


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A resolved identity: numbers only."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


class ProfileType(enum.Enum):
    """CRI SecurityProfile.ProfileType."""

    RUNTIME_DEFAULT = 0
    UNCONFINED = 1
    LOCALHOST = 2


class SecurityProfile(msgspec.Struct, frozen=True, kw_only=True):
    """localhost_ref, with LOCALHOST only: seccomp's is the absolute path of a file of the node,
    AppArmor's the name of a loaded profile."""

    type: ProfileType
    localhost_ref: str = ""


class ContainerSecurity(msgspec.Struct, frozen=True, kw_only=True):
    """The security context of a container, as asked.

    masked_paths, readonly_paths: absolute paths; empty means none (an unmasked /proc).
    seccomp: None is unconfined. apparmor: None is RuntimeDefault; a privileged container has none.
    selinux_label: "user:role:type:level" or "".
    """

    namespaces: NamespaceModes = NamespaceModes()
    privileged: bool = False
    run_as_user: int | None = None
    run_as_username: str = ""
    run_as_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_policy: SupplementalGroupsPolicy = SupplementalGroupsPolicy.MERGE
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    add_ambient_capabilities: tuple[str, ...] = ()
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfile | None = None
    apparmor: SecurityProfile | None = None
    selinux_label: str = ""
