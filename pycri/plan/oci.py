# SPDX-License-Identifier: Apache-2.0
"""A ContainerPlan in the words of OCI runtimes: `config.json` of a bundle.

What a plan says and OCI cannot, and how it is bridged:

    MountOverlay          OCI wants a mounted root: `Bundle.rootfs`, mounted by the caller
    MakeDirectory         OCI makes no folders: the caller does, in that root
    create_source         an OCI runtime fails at a missing source: the caller makes it
    WritablePath          a tmpfs that begins with a copy ("tmpcopyup"): a bind would need a host
                          path inside the container's root, and links in there lead anywhere
    MountImage            an overlay of its layers; a part of an image is none OCI could name
    seccomp               OCI wants rules, the plan has a compiled program: `Bundle.seccomp`
    /sys/fs/cgroup        one mount of type "cgroup", which runtimes spell out as we do
    links in /dev         runtimes make the same ones unasked

Source: OCI runtime-spec 1.1, config.md and config-linux.md.
"""

from collections.abc import Callable, Iterable
from typing import Any, assert_never

import msgspec

from pycri.errors import Unsupported
from pycri.model.hooks import HOOK_NAMES, OCI_VERSION, Hook
from pycri.model.plan import (
    BindMount,
    CgroupPlan,
    ContainerPlan,
    DeviceRule,
    HookPlan,
    MakeDevice,
    MakeDirectory,
    MakeSymlink,
    MaskPath,
    MountFilesystem,
    MountImage,
    MountOverlay,
    ProcessPlan,
    ReadOnlyPath,
    ReadOnlyRoot,
    Step,
    WritablePath,
)
from pycri.model.seccomp import SeccompAction, SeccompFilter, SeccompRule
from pycri.model.security import CAPABILITY_NAMES, IdMapping, IdMappings
from pycri.plan.mounts import is_beneath

_CGROUP_ROOT = "/sys/fs/cgroup"
_UMASK = 0o022
"""As the built-in executor sets it."""
_NAMESPACES = {"net": "network", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "pid": "pid"}
_PROPAGATION = {"private": "rprivate", "slave": "rslave", "shared": "rshared"}
_OWN_LINKS = {"/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/core", "/dev/ptmx"}
_LIMITS_V1 = {
    "cpu.shares": ("cpu", "shares"),
    "cpu.cfs_period_us": ("cpu", "period"),
    "cpu.cfs_quota_us": ("cpu", "quota"),
    "cpuset.cpus": ("cpu", "cpus"),
    "cpuset.mems": ("cpu", "mems"),
    "memory.limit_in_bytes": ("memory", "limit"),
    "memory.memsw.limit_in_bytes": ("memory", "swap"),
    "pids.max": ("pids", "limit"),
}
_ACTIONS_WITH_ERRNO = (SeccompAction.ERRNO, SeccompAction.TRACE)
_HUGETLB_V1 = (".rsvd.limit_in_bytes", ".limit_in_bytes")

_Object = dict[str, Any]


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """What an OCI runtime must be told besides the plan.

    rootfs: host path of the mounted root. cgroup: as in ContainerRecord.cgroup.
    pid_namespace: path of the namespace to join, for a plan that joins one.
    seccomp: what the plan's program was compiled from.
    """

    rootfs: str
    cgroup: str
    pid_namespace: str = ""
    seccomp: SeccompFilter | None = None


def render_config(plan: ContainerPlan, bundle: Bundle) -> bytes:
    """Return the text of `config.json`.

    Raises: Unsupported for what OCI has no words for.
    """
    config = {
        "ociVersion": OCI_VERSION,
        "root": {"path": bundle.rootfs, "readonly": any(_of(plan, ReadOnlyRoot))},
        "process": _process(plan.process),
        "mounts": _mounts(plan),
        "linux": _linux(plan, bundle),
        **_hooks(plan.hooks),
    }
    return msgspec.json.format(msgspec.json.encode(config), indent=2)


def _hooks(plan: HookPlan | None) -> _Object:
    if plan is None:
        return {}
    names = {field: name for name, field in HOOK_NAMES.items()}
    lists = {name: getattr(plan.hooks, field) for field, name in names.items()}
    rendered = {name: [_hook(hook) for hook in hooks] for name, hooks in lists.items() if hooks}
    return {"hooks": rendered, "annotations": plan.annotations}


def _hook(hook: Hook) -> _Object:
    timeout = {} if hook.timeout_s is None else {"timeout": hook.timeout_s}
    return {"path": hook.path, "args": list(hook.args), "env": list(hook.env)} | timeout


def _of(plan: ContainerPlan, kind: type[Any]) -> list[Any]:
    return [step for step in plan.steps if isinstance(step, kind)]


def _process(process: ProcessPlan) -> _Object:
    sets = process.capabilities
    capabilities = {
        name: [CAPABILITY_NAMES[number] for number in getattr(sets, name)]
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    user = process.user
    return {
        "terminal": process.terminal,
        "user": {
            "uid": user.uid,
            "gid": user.gid,
            "umask": _UMASK,
            "additionalGids": list(user.groups),
        },
        "args": [_text(word, "argument") for word in process.args],
        "env": [_text(entry, "variable") for entry in process.env],
        "cwd": _text(process.cwd, "working directory"),
        "capabilities": capabilities,
        "noNewPrivileges": process.no_new_privs,
        "oomScoreAdj": process.oom_score_adj,
        "rlimits": [
            {"type": _limit_name(name), "soft": soft, "hard": hard}
            for name, soft, hard in process.rlimits
        ],
        **_labels(process),
    }


def _labels(process: ProcessPlan) -> _Object:
    """Return what is set: crun takes an empty label for one to be written."""
    labels = {"apparmorProfile": process.apparmor_profile, "selinuxLabel": process.selinux_label}
    return {name: label for name, label in labels.items() if label}


def _limit_name(name: str) -> str:
    return "RLIMIT_" + name.upper().removeprefix("RLIMIT_")


def _text(value: str | bytes, what: str) -> str:
    """Return text that JSON can hold. The value is not quoted: it may be a secret."""
    try:
        raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Unsupported(f"an OCI runtime cannot be given a {what} that is not UTF-8") from None


def _mounts(plan: ContainerPlan) -> list[_Object]:
    rendered = []
    for step in plan.steps:
        if isinstance(step, MountFilesystem) and step.target == _CGROUP_ROOT:
            rendered.append(_cgroup_mount(step, plan))
        elif not _is_cgroup_part(step, plan.cgroup):
            rendered += _mount(step)
    return rendered


def _cgroup_mount(step: MountFilesystem, plan: ContainerPlan) -> _Object:
    protected = any(path.path == _CGROUP_ROOT for path in _of(plan, ReadOnlyPath))
    read_only = ("ro",) if protected and "ro" not in step.attributes else ()
    return _entry(_CGROUP_ROOT, "cgroup", "cgroup", (*read_only, *step.attributes))


def _is_cgroup_part(step: Step, cgroup: CgroupPlan) -> bool:
    """Tell whether a step belongs to what the mount of type "cgroup" stands for."""
    match step:
        case BindMount():
            return is_beneath(step.target, _CGROUP_ROOT) and step.source in cgroup.directories
        case MakeSymlink():
            return is_beneath(step.path, _CGROUP_ROOT)
        case _:
            return False


def _mount(step: Step) -> list[_Object]:
    """Return a step as an entry of `mounts`; none for what has its place elsewhere."""
    match step:
        case MountFilesystem():
            options = (*step.attributes, *step.options)
            return [_entry(step.target, step.filesystem, step.filesystem, options)]
        case BindMount():
            return [_bind(step)]
        case MountImage():
            return [_image_mount(step)]
        case WritablePath():
            return [_entry(step.path, "tmpfs", "tmpfs", ("tmpcopyup",))]
        case MakeSymlink():
            _check_link(step)
        case (
            MountOverlay()
            | MakeDevice()
            | MakeDirectory()
            | MaskPath()
            | ReadOnlyPath()
            | ReadOnlyRoot()
        ):
            pass
        case _:
            assert_never(step)
    return []


def _check_link(step: MakeSymlink) -> None:
    if step.path not in _OWN_LINKS:
        raise Unsupported(f"{step}: an OCI runtime makes no such link")


def _bind(step: BindMount) -> _Object:
    kind = "rbind" if step.recursive else "bind"
    options = (kind, *step.attributes, _PROPAGATION[step.propagation])
    entry = _entry(step.target, "bind", step.source, options)
    return entry | (_mappings(step.ids) if step.ids else {})


def _image_mount(step: MountImage) -> _Object:
    if step.sub_path or step.ids:
        raise Unsupported(f"{step}: an OCI runtime can neither mount a part nor map owners")
    layers = ":".join((*step.layers, step.empty))
    return _entry(step.target, "overlay", "overlay", (*step.attributes, f"lowerdir={layers}"))


def _mappings(ids: IdMappings) -> _Object:
    def lines(mappings: tuple[IdMapping, ...]) -> list[_Object]:
        return [
            {"containerID": line.container_id, "hostID": line.host_id, "size": line.length}
            for line in mappings
        ]

    return {"uidMappings": lines(ids.uids), "gidMappings": lines(ids.gids)}


def _entry(target: str, kind: str, source: str, options: Iterable[str]) -> _Object:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _linux(plan: ContainerPlan, bundle: Bundle) -> _Object:
    rendered: _Object = {
        "cgroupsPath": bundle.cgroup,
        "namespaces": _namespaces(plan, bundle),
        "resources": _resources(plan.cgroup),
        "devices": [_device(step) for step in _of(plan, MakeDevice)],
        "maskedPaths": [step.path for step in _of(plan, MaskPath)],
        "readonlyPaths": [
            step.path for step in _of(plan, ReadOnlyPath) if step.path != _CGROUP_ROOT
        ],
    }
    if label := next((step.label for step in _of(plan, MountOverlay)), ""):
        rendered["mountLabel"] = label
    if plan.user_namespace:
        rendered |= _mappings(plan.user_namespace.ids)
    if plan.process.seccomp:
        if bundle.seccomp is None:
            raise Unsupported("an OCI runtime takes the rules of a seccomp filter, not the program")
        rendered["seccomp"] = _seccomp(bundle.seccomp)
    propagations = {step.propagation for step in _of(plan, BindMount)}
    for name in ("shared", "slave"):
        if name in propagations:
            # Else the root's own propagation, private, would cut the mount off.
            return rendered | {"rootfsPropagation": _PROPAGATION[name]}
    return rendered


def _namespaces(plan: ContainerPlan, bundle: Bundle) -> list[_Object]:
    rendered: list[_Object] = [{"type": "mount"}]
    if plan.pid_namespace == "new":
        rendered.append({"type": "pid"})
    elif plan.pid_namespace == "join":
        rendered.append({"type": "pid", "path": bundle.pid_namespace})
    if plan.user_namespace:
        rendered.append({"type": "user", "path": plan.user_namespace.path})
    rendered += [{"type": _NAMESPACES[kind]} for kind in plan.new_namespaces]
    return rendered + [
        {"type": _NAMESPACES[joined.kind], "path": joined.path} for joined in plan.namespaces
    ]


def _device(step: MakeDevice) -> _Object:
    return {
        "path": step.path,
        "type": step.kind,
        "major": step.major,
        "minor": step.minor,
        "fileMode": step.mode,
        "uid": step.uid,
        "gid": step.gid,
    }


def _seccomp(wanted: SeccompFilter) -> _Object:
    rendered: _Object = {
        "defaultAction": wanted.default_action.value,
        "architectures": [architecture.value for architecture in wanted.architectures],
        "flags": [flag.value for flag in wanted.flags],
        "syscalls": [_seccomp_rule(rule) for rule in wanted.rules],
    }
    if wanted.default_action in _ACTIONS_WITH_ERRNO:
        rendered["defaultErrnoRet"] = wanted.default_errno
    if wanted.listener_path:
        rendered["listenerPath"] = wanted.listener_path
        rendered["listenerMetadata"] = wanted.listener_metadata
    return rendered


def _seccomp_rule(rule: SeccompRule) -> _Object:
    errno = {"errnoRet": rule.errno} if rule.action in _ACTIONS_WITH_ERRNO else {}
    arguments = [
        {
            "index": argument.index,
            "value": argument.value,
            "valueTwo": argument.value_two,
            "op": argument.operator.value,
        }
        for argument in rule.arguments
    ]
    return {"names": list(rule.names), "action": rule.action.value, "args": arguments} | errno


def _resources(cgroup: CgroupPlan) -> _Object:
    devices: list[_Object] = []
    if cgroup.device_rules is not None:
        devices = [{"allow": False, "access": "rwm"}, *map(_device_rule, cgroup.device_rules)]
    limits = _limits_v2 if cgroup.version == 2 else _limits_v1
    return {"devices": devices} | limits(_file_writes(cgroup))


def _file_writes(cgroup: CgroupPlan) -> list[tuple[str, str]]:
    return [(path.rpartition("/")[2], value) for path, value in cgroup.writes]


def _device_rule(rule: DeviceRule) -> _Object:
    numbers = {"major": rule.major, "minor": rule.minor}
    known = {name: number for name, number in numbers.items() if number is not None}
    return {"allow": True, "type": rule.kind, "access": rule.access} | known


def _limits_v2(writes: list[tuple[str, str]]) -> _Object:
    """Return the writes as they are: that is what `unified` is for."""
    return {"unified": dict(writes)} if writes else {}


def _limits_v1(writes: list[tuple[str, str]]) -> _Object:
    rendered: _Object = {}
    huge_pages: dict[str, int] = {}
    for file, value in writes:
        if file.startswith("hugetlb."):
            # What may be reserved is limited with what may be used.
            huge_pages[_page_size(file)] = int(value)
        elif file in _LIMITS_V1:
            group, field = _LIMITS_V1[file]
            read: Callable[[str], object] = str if file.startswith("cpuset.") else int
            rendered.setdefault(group, {})[field] = read(value)
        else:
            raise Unsupported(f"an OCI runtime cannot be told of {file}")
    if huge_pages:
        rendered["hugepageLimits"] = [
            {"pageSize": size, "limit": limit} for size, limit in huge_pages.items()
        ]
    return rendered


def _page_size(file: str) -> str:
    name = file.removeprefix("hugetlb.")
    for suffix in _HUGETLB_V1:
        name = name.removesuffix(suffix)
    return name
