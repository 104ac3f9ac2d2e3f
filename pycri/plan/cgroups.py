# SPDX-License-Identifier: Apache-2.0
"""Where processes go in the control group trees.

    PARENT/CONTAINER            a container; PARENT as the kubelet gave it, else DEFAULT/POD
    PARENT/POD                  the init of a pod that shares its pid namespace
    PARENT/CONTAINER/exec-EXEC  an exec, so that all it starts can be killed at once;
                                in version 1 in the freezer hierarchy only, which is enough for that

A path is written once for all hierarchies: relative to their mount points, with a leading "/".
"""

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.host import HostFacts
from pycri.model.ids import PodId
from pycri.model.plan import CgroupPlan, DeviceRule

CONTROLLERS_V2 = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")
"""What containers are limited by or measured with; enabled in every parent where the host can."""

_FIELD = "config.linux.cgroup_parent"


EXEC_GROUP_PREFIX = "exec-"
"""How the names of execs' groups begin, below their container's."""


def cgroup_path(cgroup_parent: str, default_parent: str, pod_id: PodId, name: str) -> str:
    """Return the path of a pod's group `name` (a container's id, or the pod's for its init).

    cgroup_parent: of the PodSpec: a path (cgroupfs driver), a slice name (systemd driver), or "".
    default_parent: used for pods without one, which then get a group of their own below it.
    Raises: InvalidRequest for a path that climbs or a name that is no slice.
    """
    if not cgroup_parent:
        return _join(default_parent, pod_id, name)
    if cgroup_parent.endswith(".slice"):
        return _join(_expand_slice(cgroup_parent.rpartition("/")[2]), name)
    if ".." in cgroup_parent.split("/"):
        raise InvalidRequest(_FIELD, f"{cgroup_parent!r} must not contain '..'")
    return _join(cgroup_parent, name)


def pod_cgroup_path(cgroup_parent: str, default_parent: str, pod_id: PodId) -> str:
    """Return the path of the group that holds all of a pod; of a parent given, that is the parent.

    Raises: as `cgroup_path`.
    """
    return cgroup_path(cgroup_parent, default_parent, pod_id, pod_id).rpartition("/")[0]


def check_cgroup_parent(cgroup_parent: str, host: HostFacts) -> None:
    """Refuse a slice where systemd runs: it alone may make groups in its slices.

    RuntimeConfig says cgroupfs, so a kubelet gives paths. Where no systemd runs, a slice's name
    is only a name, and its groups are made where systemd would have them.
    Raises: Unsupported naming the field.
    """
    if host.systemd and cgroup_parent.endswith(".slice"):
        raise Unsupported(
            f"{_FIELD}: {cgroup_parent!r} belongs to systemd, and pycri has the cgroupfs driver"
            " only: set the kubelet's cgroupDriver to cgroupfs"
        )


def controller_directory(controller: str, path: str, host: HostFacts) -> str | None:
    """Return the absolute folder of a group under one controller, None if the host lacks it."""
    if controller not in host.cgroup_controllers:
        return None
    if host.cgroup_version == 2:
        return host.cgroup_root + path
    for controllers, mount in host.cgroup1_mounts.items():
        if controller in controllers.split(","):
            return mount + path
    return None


def plan_cgroup(
    path: str,
    host: HostFacts,
    writes: tuple[tuple[str, str], ...] = (),
    device_rules: tuple[DeviceRule, ...] | None = None,
) -> CgroupPlan:
    """Return the plan of the group at `path` in every hierarchy."""
    if host.cgroup_version == 2:
        directories: tuple[str, ...] = (host.cgroup_root + path,)
        controllers = tuple(name for name in CONTROLLERS_V2 if name in host.cgroup_controllers)
    else:
        directories = tuple(sorted(mount + path for mount in host.cgroup1_mounts.values()))
        controllers = ()
    return CgroupPlan(
        version=host.cgroup_version,
        directories=directories,
        controllers=controllers,
        writes=writes,
        device_rules=device_rules,
    )


def plan_exec_cgroup(path: str, exec_id: str, host: HostFacts) -> CgroupPlan:
    """Return the plan of an exec's group below its container's, `path`.

    No controller is enabled for it: the container's own processes stay beside it, and version 2
    forbids processes in a group whose children have controllers ("no internal processes").
    """
    leaf = exec_cgroup_path(path, exec_id)
    if host.cgroup_version == 2:
        return CgroupPlan(version=2, directories=(host.cgroup_root + leaf,), nested=True)
    made, existing = [], []
    for controllers, mount in sorted(host.cgroup1_mounts.items()):
        if "freezer" in controllers.split(","):
            made.append(mount + leaf)
        else:
            existing.append(mount + path)
    return CgroupPlan(version=1, directories=tuple(made), nested=True, existing=tuple(existing))


def exec_cgroup_path(path: str, exec_id: str) -> str:
    """Return the path of an exec's group below its container's, `path`."""
    return f"{path}/{EXEC_GROUP_PREFIX}{exec_id[:12]}"


def _expand_slice(name: str) -> str:
    """Return where systemd keeps a slice: "a-b.slice" lies in "a.slice" (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return "/"
    parts = stem.split("-")
    if "" in parts:
        raise InvalidRequest(_FIELD, f"{name!r} is not the name of a slice")
    return "".join(f"/{'-'.join(parts[: depth + 1])}.slice" for depth in range(len(parts)))


def _join(*parts: str) -> str:
    return "".join(
        f"/{word}" for part in parts for word in part.split("/") if word not in ("", ".")
    )
