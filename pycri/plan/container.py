# SPDX-License-Identifier: Apache-2.0
"""The plan of a container, and of an exec in one: every decision, put together.

All that must be looked up on the host or in the image (the user, device nodes, paths) is looked
up before, by the daemon, and comes in as ContainerInputs; from here on it is arithmetic.
"""

import msgspec

from pycri.errors import InvalidRequest
from pycri.model.cdi import DeviceEdits
from pycri.model.container import ContainerRecord, ContainerSpec
from pycri.model.host import HostFacts
from pycri.model.ids import ContainerId, TaskId
from pycri.model.image import ImageConfig
from pycri.model.plan import (
    CgroupPlan,
    ContainerPlan,
    ExecPlan,
    HookPlan,
    JoinNamespace,
    MountOverlay,
    ProcessPlan,
    Step,
)
from pycri.model.pod import PodRecord, PodSpec
from pycri.model.seccomp import SeccompProgram
from pycri.model.security import NamespaceMode, User
from pycri.model.streams import ExecRequest
from pycri.plan.cdi import owned_by
from pycri.plan.cgroups import cgroup_path, plan_cgroup, plan_exec_cgroup
from pycri.plan.devices import HostDevice, plan_device_rules, plan_devices
from pycri.plan.environment import process_args, process_env, working_directory
from pycri.plan.mounts import (
    VolumeLayers,
    check_mounts,
    drop_covered,
    plan_binds,
    plan_kernel_filesystems,
    plan_volumes,
)
from pycri.plan.names import pod_hostname
from pycri.plan.resources import oom_score_adj, plan_limits
from pycri.plan.sandbox import PodPaths
from pycri.plan.security import (
    check_privileged,
    plan_capabilities,
    plan_path_protection,
)
from pycri.plan.selinux import label_files, plan_selinux_label
from pycri.plan.user_namespaces import check_container_ids, map_plan


class ContainerInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a container's plan is made from.

    layers: host folders of the image's layers, topmost first; upper, work: of the overlay.
    bundle: host folder for hooks.
    user, home: as `users.resolve_user` and `users.home_directory` found them.
    cgroup_parent: the daemon's, for a pod that names none.
    host_devices: every node at or below a host_path of `spec.devices`; for a privileged
        container all in /dev besides.
    volumes: where the images are that mounts name.
    device_edits: what CDI devices add.
    pid_target: the task behind `spec.security.namespaces.target_id`, of the same pod.
    seccomp, apparmor_profile: the profiles that `spec.security` asks for.
    """

    container_id: ContainerId
    pod: PodRecord
    pod_paths: PodPaths
    spec: ContainerSpec
    image: ImageConfig
    layers: tuple[str, ...]
    upper: str
    work: str
    bundle: str
    user: User
    home: str = "/"
    host: HostFacts
    cgroup_parent: str
    host_devices: tuple[HostDevice, ...] = ()
    volumes: VolumeLayers = VolumeLayers()
    device_edits: DeviceEdits = DeviceEdits()
    pid_target: TaskId | None = None
    seccomp: SeccompProgram | None = None
    apparmor_profile: str = ""


def plan_container(inputs: ContainerInputs) -> ContainerPlan:
    """Return the plan of a container.

    Raises: InvalidRequest naming the field; Unsupported for what this node cannot do.
    """
    inputs = _with_device_edits(inputs)
    spec, host, security = inputs.spec, inputs.host, inputs.spec.security
    check_mounts(spec.mounts, host)
    check_privileged(security, pod_privileged=inputs.pod.spec.privileged)
    check_container_ids(spec, inputs.user, inputs.pod.spec, host)
    pid_namespace, pid_target = _pid_namespace(inputs)
    own_cgroup_view = host.cgroup_version == 2 and not _is_privileged_on_host(inputs)
    plan = ContainerPlan(
        id=TaskId(inputs.container_id),
        cgroup=_plan_cgroup(inputs),
        pid_namespace=pid_namespace,
        pid_target=pid_target,
        namespaces=tuple(
            JoinNamespace(kind=kind, path=path) for kind, path in inputs.pod_paths.pins.items()
        ),
        # Version 1 shows the group by binds instead, as containerd does (`mounts.py`).
        new_namespaces=("cgroup",) if own_cgroup_view else (),
        steps=_plan_steps(inputs),
        process=_plan_process(inputs),
        stdin=spec.stdin,
        log_path=container_log_path(inputs.pod.spec, spec),
        hooks=_plan_hooks(inputs),
    )
    ids, paths = inputs.pod.spec.namespaces.user, inputs.pod_paths
    files = (paths.hosts, paths.hostname, paths.resolv_conf)
    plan = label_files(plan, spec.mounts, (*files, paths.shm))
    if ids is None:
        return plan
    return map_plan(plan, ids, paths.pins["user"], files)


def plan_exec(
    exec_id: TaskId,
    record: ContainerRecord,
    process: ProcessPlan,
    request: ExecRequest,
    host: HostFacts,
) -> ExecPlan:
    """Return the plan of an exec.

    process: of the container's own plan: the exec runs as the same user with the same rights,
        variables and working directory; with a terminal it has TERM, as a container with one.
    Raises: InvalidRequest for an empty command.
    """
    if not request.cmd:
        raise InvalidRequest("cmd", "must not be empty")
    wanted = {"stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
    env = process.env
    if request.tty and not any(entry.startswith(b"TERM=") for entry in env):
        env = (*env, b"TERM=xterm")
    return ExecPlan(
        id=exec_id,
        container=TaskId(record.id),
        cgroup=plan_exec_cgroup(record.cgroup, exec_id, host),
        process=msgspec.structs.replace(process, args=request.cmd, env=env, terminal=request.tty),
        streams=tuple(name for name, is_wanted in wanted.items() if is_wanted),
        user_namespace=record.spec.security.namespaces.user,
    )


def container_cgroup(inputs: ContainerInputs) -> str:
    """Return the path of the container's group, as kept in ContainerRecord.cgroup."""
    return cgroup_path(
        inputs.pod.spec.cgroup_parent, inputs.cgroup_parent, inputs.pod.id, inputs.container_id
    )


def container_log_path(pod: PodSpec, spec: ContainerSpec) -> str:
    """Return the absolute path of the CRI log; "" where pod or container names none."""
    if not (pod.log_directory and spec.log_path):
        return ""
    return f"{pod.log_directory.rstrip('/')}/{spec.log_path.lstrip('/')}"


def _with_device_edits(inputs: ContainerInputs) -> ContainerInputs:
    """Return the inputs with the variables and groups of CDI devices; they win over the request."""
    edits, user = inputs.device_edits, inputs.user
    groups = tuple(dict.fromkeys((*user.groups, *edits.groups)))
    return msgspec.structs.replace(
        inputs,
        spec=msgspec.structs.replace(inputs.spec, env=inputs.spec.env + edits.env),
        user=msgspec.structs.replace(user, groups=groups),
        device_edits=owned_by(edits, user),
    )


def _plan_hooks(inputs: ContainerInputs) -> HookPlan | None:
    hooks = inputs.device_edits.hooks
    if not hooks:
        return None
    return HookPlan(hooks=hooks, bundle=inputs.bundle, annotations=dict(inputs.spec.annotations))


def _pid_namespace(inputs: ContainerInputs) -> tuple[str, TaskId | None]:
    """Return "new", "host" or "join", and with the last whose.

    A container that asks for the pod's gets what the pod has: its init's, or the host's; in a pod
    that shares none, one of its own.
    """
    pod_mode = inputs.pod.spec.namespaces.pid
    match inputs.spec.security.namespaces.pid:
        case NamespaceMode.TARGET:
            if inputs.pid_target is None:
                field = "config.linux.security_context.namespace_options.target_id"
                raise InvalidRequest(field, "is missing")
            return "join", inputs.pid_target
        case NamespaceMode.POD if pod_mode is NamespaceMode.POD:
            return "join", TaskId(inputs.pod.id)
        case NamespaceMode.POD if pod_mode is NamespaceMode.NODE:
            return "host", None
        case NamespaceMode.NODE:
            return "host", None
        case _:
            return "new", None


def _is_privileged_on_host(inputs: ContainerInputs) -> bool:
    """Tell whether the host's devices and groups are the container's too.

    In a user namespace it is privileged there, and no more than any other on the host.
    """
    return inputs.spec.security.privileged and inputs.pod.spec.namespaces.user is None


def _plan_cgroup(inputs: ContainerInputs) -> CgroupPlan:
    spec, path = inputs.spec, container_cgroup(inputs)
    rules = plan_device_rules(
        spec.devices,
        inputs.host_devices,
        inputs.device_edits.nodes,
        privileged=_is_privileged_on_host(inputs),
    )
    limits = plan_limits(spec.resources, path, inputs.host)
    return plan_cgroup(path, inputs.host, limits, rules)


def _plan_steps(inputs: ContainerInputs) -> tuple[Step, ...]:
    spec, paths = inputs.spec, inputs.pod_paths
    modes = inputs.pod.spec.namespaces
    # With the node's network /sys is the node's, which is read-only in any user namespace.
    own_sys = modes.user is None or modes.network is not NamespaceMode.NODE
    defaults = (
        *plan_kernel_filesystems(
            paths.shm,
            container_cgroup(inputs),
            inputs.host,
            privileged=spec.security.privileged and own_sys,
        ),
        *plan_devices(
            spec.devices,
            inputs.host_devices,
            inputs.device_edits.nodes,
            privileged=_is_privileged_on_host(inputs),
        ),
    )
    files = {
        "/etc/hosts": paths.hosts,
        "/etc/hostname": paths.hostname,
        "/etc/resolv.conf": paths.resolv_conf,
    }
    return (
        MountOverlay(layers=inputs.layers, upper=inputs.upper, work=inputs.work),
        *drop_covered(defaults, spec.mounts),
        *plan_volumes(
            inputs.image.volumes, spec.mounts, readonly_rootfs=spec.security.readonly_rootfs
        ),
        *plan_binds(
            spec.mounts,
            files,
            inputs.volumes,
            inputs.device_edits.mounts,
            read_only_files=spec.security.readonly_rootfs,
        ),
        *plan_path_protection(spec.security),
    )


def _plan_process(inputs: ContainerInputs) -> ProcessPlan:
    spec, image, host = inputs.spec, inputs.image, inputs.host
    return ProcessPlan(
        args=process_args(spec, image),
        env=process_env(spec, image, pod_hostname(inputs.pod.spec, host), inputs.home),
        cwd=working_directory(spec, image),
        user=inputs.user,
        capabilities=plan_capabilities(spec.security, host),
        no_new_privs=spec.security.no_new_privs,
        terminal=spec.tty,
        oom_score_adj=oom_score_adj(spec.resources, host),
        seccomp=inputs.seccomp,
        apparmor_profile=inputs.apparmor_profile,
        selinux_label=plan_selinux_label(inputs.pod.spec, spec.security, host),
    )
