# SPDX-License-Identifier: Apache-2.0
"""Plans: finished decisions, plain data, what crosses the border between the processes.

A plan is made by `plan/` (pure) and applied by `spawner/init.py` and `spawner/enter.py`. Every
step prints itself in one line; `plan/text.py` prints the whole.

Paths named `source` are the host's; paths named `target` or `path` are inside the container's root
and are resolved there, never by joining strings.
"""

import msgspec

from pycri.model.hooks import Hooks
from pycri.model.ids import TaskId
from pycri.model.seccomp import SeccompProgram
from pycri.model.security import IdMappings, User

PROC_TARGETS = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps",
        "sys/kernel/ns_last_pid", "uptime",
    )
)  # fmt: skip
"""All that may be mounted upon inside /proc: files that tools like lxcfs replace. Anything else
there could be made to stand for what the executor writes to (CVE-2019-16884). As runc has it."""


class MountOverlay(msgspec.Struct, frozen=True, kw_only=True, tag="overlay"):
    """The root file system. layers: host directories, topmost first.

    ids: how the layers' owners are shown; the upper folder has the owners of the host.
    label: SELinux's, of all files in it; "" leaves each its own.
    """

    layers: tuple[str, ...]
    upper: str
    work: str
    ids: IdMappings | None = None
    label: str = ""

    def __str__(self) -> str:
        shown = f"{_shown(self.ids)}{_labelled(self.label)}"
        return f"overlay {len(self.layers)} layers, upper {self.upper}{shown}"


class BindMount(msgspec.Struct, frozen=True, kw_only=True, tag="bind"):
    """Attach the host's tree at `source` to `target`; the target is made to fit (file or folder).

    attributes: among "ro", "rro" (recursively), "nosuid", "nodev", "noexec"; "suid", "dev", "exec"
        take away what the source's mount has.
    propagation: "private", "slave" or "shared". create_source: make a missing folder.
    ids: how owners are shown and written, of this mount and none below it; `ids_field` is what
        asked for that, to be named where the source's file system cannot.
    relabel: give all files of the source this label of SELinux; "" leaves each its own.
    """

    source: str
    target: str
    attributes: tuple[str, ...] = ()
    propagation: str = "private"
    recursive: bool = True
    create_source: bool = False
    ids: IdMappings | None = None
    ids_field: str = ""
    relabel: str = ""

    def __str__(self) -> str:
        options = ",".join((*self.attributes, self.propagation))
        shown = f"{_shown(self.ids)}{_labelled(self.relabel)}"
        return f"bind {self.source} -> {self.target} ({options}){shown}"


class MountImage(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """Attach an image's files, which nobody can write to, to `target`.

    layers: as for MountOverlay. sub_path: what of the image; "" is all.
    empty: an empty host folder: overlay without an upper folder needs two layers at least.
    ids, label: as for MountOverlay.
    """

    layers: tuple[str, ...]
    target: str
    empty: str
    sub_path: str = ""
    attributes: tuple[str, ...] = ("ro",)
    ids: IdMappings | None = None
    label: str = ""

    def __str__(self) -> str:
        what = f"/{self.sub_path} of " if self.sub_path else ""
        options = ",".join(self.attributes)
        shown = f"({options}){_shown(self.ids)}{_labelled(self.label)}"
        return f"image {what}{len(self.layers)} layers -> {self.target} {shown}"


class MountFilesystem(msgspec.Struct, frozen=True, kw_only=True, tag="mount"):
    """Mount a new instance of a kernel file system.

    options: "key=value" or "key", the file system's own. attributes: as for BindMount.
    label: as for MountOverlay.
    """

    filesystem: str
    target: str
    options: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    label: str = ""

    def __str__(self) -> str:
        options = ",".join((*self.attributes, *self.options))
        return f"mount {self.filesystem} -> {self.target} ({options}){_labelled(self.label)}"


class MakeDevice(msgspec.Struct, frozen=True, kw_only=True, tag="device"):
    """Make a device node. kind: "c" or "b"; mode: permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int = 0o666
    uid: int = 0
    gid: int = 0

    def __str__(self) -> str:
        return f"device {self.path} {self.kind} {self.major}:{self.minor} {self.mode:04o}"


class MakeSymlink(msgspec.Struct, frozen=True, kw_only=True, tag="symlink"):
    path: str
    destination: str

    def __str__(self) -> str:
        return f"symlink {self.path} -> {self.destination}"


class MakeDirectory(msgspec.Struct, frozen=True, kw_only=True, tag="directory"):
    """Make a folder and its parents where they are missing."""

    path: str
    mode: int = 0o755

    def __str__(self) -> str:
        return f"directory {self.path} {self.mode:04o}"


class MaskPath(msgspec.Struct, frozen=True, kw_only=True, tag="mask"):
    """Hide a path: a folder by an empty tmpfs, a file by /dev/null; absent is fine."""

    path: str

    def __str__(self) -> str:
        return f"mask {self.path}"


class ReadOnlyPath(msgspec.Struct, frozen=True, kw_only=True, tag="readonly"):
    """Make a path read-only: its mount and those below, or a bind on itself; absent is fine."""

    path: str

    def __str__(self) -> str:
        return f"readonly {self.path}"


class WritablePath(msgspec.Struct, frozen=True, kw_only=True, tag="writable"):
    """Make a folder where it is missing and bind it on itself: it stays writable below a
    read-only root, with what the image has there."""

    path: str

    def __str__(self) -> str:
        return f"writable {self.path}"


class ReadOnlyRoot(msgspec.Struct, frozen=True, kw_only=True, tag="readonly-root"):
    """Make the root mount itself read-only; the last of the mount steps."""

    def __str__(self) -> str:
        return "readonly /"


Step = (
    MountOverlay
    | BindMount
    | MountImage
    | MountFilesystem
    | MakeDevice
    | MakeSymlink
    | MakeDirectory
    | MaskPath
    | ReadOnlyPath
    | WritablePath
    | ReadOnlyRoot
)


def _shown(ids: IdMappings | None) -> str:
    return f", {ids}" if ids else ""


def _labelled(label: str) -> str:
    return f", label {label}" if label else ""


class DeviceRule(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a device cgroup's allow list. kind: "a", "b" or "c"; None is any number."""

    kind: str
    major: int | None
    minor: int | None
    access: str

    def __str__(self) -> str:
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


class CgroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a process is put and what is written there first.

    directories: absolute, to be made (with parents) and joined: one in v2, one a hierarchy in v1.
    nested: an exec's, below its container's: parents are not made, for a container that is gone
        must not leave a group behind; `existing` are its container's own groups, joined first.
    controllers: v2 only, to be enabled in every parent.
    writes: (absolute file, value) in order.
    device_rules: the allow list; all else is denied. None leaves devices alone.
    """

    version: int
    directories: tuple[str, ...]
    nested: bool = False
    existing: tuple[str, ...] = ()
    controllers: tuple[str, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    device_rules: tuple[DeviceRule, ...] | None = None


class CapabilitySets(msgspec.Struct, frozen=True, kw_only=True):
    """Capability numbers of the executed process (capabilities(7))."""

    bounding: tuple[int, ...] = ()
    effective: tuple[int, ...] = ()
    permitted: tuple[int, ...] = ()
    inheritable: tuple[int, ...] = ()
    ambient: tuple[int, ...] = ()


class ProcessPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is executed and as whom. env: whole `NAME=value` entries. cwd: made if missing.

    rlimits: (name of setrlimit(2), soft, hard), -1 unlimited. Where none is given the container
        has the node service's (LimitNOFILE= and others of its unit), as under containerd and
        CRI-O: the CRI has no field for them.
    seccomp: None is unconfined. apparmor_profile, selinux_label: "" leaves what the spawner has.
    """

    args: tuple[str, ...]
    env: tuple[bytes, ...]
    cwd: str
    user: User
    capabilities: CapabilitySets
    no_new_privs: bool
    terminal: bool
    oom_score_adj: int
    rlimits: tuple[tuple[str, int, int], ...] = ()
    seccomp: SeccompProgram | None = None
    apparmor_profile: str = ""
    selinux_label: str = ""


class JoinNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """kind: "net", "ipc" or "uts"; path: its pin on the host."""

    kind: str
    path: str

    def __str__(self) -> str:
        return f"join {self.kind} {self.path}"


class JoinUserNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """The user namespace of a pod: its pin on the host and what it maps."""

    path: str
    ids: IdMappings

    def __str__(self) -> str:
        return f"join user {self.path}, {self.ids}"


class HookPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Programs to be run on the way (model/hooks.py). bundle: the host folder they are told of,
    in whose `rootfs` they find the container's root."""

    hooks: Hooks
    bundle: str
    annotations: dict[str, str] = {}


class ContainerPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the init child does, in order: cgroup, namespaces, steps, user namespace, process.

    pid_namespace: "new", "host" or "join"; with "join", that of the task `pid_target`.
    new_namespaces: kinds to unshare besides the mount namespace: "cgroup", "ipc", "uts".
    log_path: absolute host path of the CRI log, or "" to discard output.
    user_namespace: joined after the steps, which need the host's rights; ids in the steps are the
        host's, ids of the process those inside.
    """

    id: TaskId
    cgroup: CgroupPlan
    pid_namespace: str
    pid_target: TaskId | None = None
    namespaces: tuple[JoinNamespace, ...] = ()
    new_namespaces: tuple[str, ...] = ()
    steps: tuple[Step, ...]
    process: ProcessPlan
    stdin: bool = False
    log_path: str = ""
    user_namespace: JoinUserNamespace | None = None
    hooks: HookPlan | None = None


class PinNamespace(msgspec.Struct, frozen=True, kw_only=True):
    """A namespace to be made and held by a bind mount. kind: "user", "net", "ipc" or "uts"."""

    kind: str
    path: str

    def __str__(self) -> str:
        return f"pin {self.kind} {self.path}"


class SandboxPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The namespaces of a pod. Made by a child that exits, or that stays as the pod's init.

    pins: namespaces to make; hostname: for the new uts namespace.
    sysctls: (name with slashes, value), written once all namespaces are new.
    shm: (path, size in bytes) of the pod's /dev/shm, or None for the host's.
    init: make a pid namespace whose first process reaps; it joins `cgroup`.
    user_namespace: the maps of the new user namespace, which owns the other namespaces.
    network: path of a network namespace that is there already and is joined, or "".
    """

    id: TaskId
    pins: tuple[PinNamespace, ...]
    hostname: str = ""
    sysctls: tuple[tuple[str, str], ...] = ()
    shm: tuple[str, int] | None = None
    init: bool = False
    cgroup: CgroupPlan
    user_namespace: IdMappings | None = None
    network: str = ""


class ExecPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A further process in a running container.

    id: of the exec itself; container: the task whose namespaces are joined.
    cgroup: the exec's own group below the container's, so that all it starts can be killed.
    streams: those with a pipe to the caller, among "stdin", "stdout", "stderr"; the others are
        /dev/null. With a terminal there is only that.
    user_namespace: the maps of the container's user namespace, if it has one of its own.
    """

    id: TaskId
    container: TaskId
    cgroup: CgroupPlan
    process: ProcessPlan
    streams: tuple[str, ...] = ("stdout", "stderr")
    user_namespace: IdMappings | None = None
