# SPDX-License-Identifier: Apache-2.0
"""Privileges: capability sets, hidden and read-only paths.

The lists of paths are the request's, as they are: an empty list means nothing is hidden (a pod
with procMount Unmasked sends just that). On the wire an empty list and one never set look alike,
so containerd hides nothing from a caller that sets none. We tell one case apart: a request with
no security context at all (`crictl` by hand) gets the default lists, from `cri/decode.py`.
"""

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.host import HostFacts
from pycri.model.plan import CapabilitySets, MaskPath, ReadOnlyPath, ReadOnlyRoot, Step
from pycri.model.security import CAPABILITY_NAMES, ContainerSecurity
from pycri.plan.mounts import clean_path

DEFAULT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""containerd's and Docker's."""
DEFAULT_MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
"""Those of moby. /proc/interrupts among them: its counts give away when keys are struck."""
DEFAULT_READONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""Likewise."""

_FIELD = "config.linux.security_context"
_CAPABILITIES = f"{_FIELD}.capabilities"
_NUMBERS = {name: number for number, name in enumerate(CAPABILITY_NAMES)}


def check_privileged(security: ContainerSecurity, *, pod_privileged: bool) -> None:
    """Raise InvalidRequest for a privileged container in a pod that is not."""
    if security.privileged and not pod_privileged:
        raise InvalidRequest(f"{_FIELD}.privileged", "the pod sandbox is not privileged")


def plan_capabilities(security: ContainerSecurity, host: HostFacts) -> CapabilitySets:
    """Return the default set, plus `add`, minus `drop`; all that the host has when privileged.

    "ALL" comes before single names, so that drop ALL, add ONE leaves one. Nothing is inheritable
    but what is ambient (CVE-2022-24769). For a user who is not root the kernel clears the rest at
    exec (capabilities(7)); ambient ones stay.
    Raises: InvalidRequest for an unknown name, Unsupported for one this node cannot give.
    """
    available = {name for name in host.capabilities if name in _NUMBERS}
    wanted, ambient = set(available), set[str]()
    if _has_all(security.add_ambient_capabilities):
        ambient = set(available)
    ambient |= _expand(security.add_ambient_capabilities, "add_ambient_capabilities")
    if not security.privileged:
        dropped = _expand(security.drop_capabilities, "drop_capabilities")
        wanted = _wanted(security, available) - dropped
        ambient -= dropped
    missing = (wanted | ambient) - available
    if missing:
        raise Unsupported(f"{_CAPABILITIES}: this node cannot give {', '.join(sorted(missing))}")
    numbers = _sorted_numbers(wanted | ambient)
    ambient_numbers = _sorted_numbers(ambient)
    return CapabilitySets(
        bounding=numbers,
        effective=numbers,
        permitted=numbers,
        inheritable=ambient_numbers,
        ambient=ambient_numbers,
    )


def plan_path_protection(security: ContainerSecurity) -> tuple[Step, ...]:
    """Return the steps after all mounts: read-only paths, masked ones above them, the root."""
    steps: list[Step] = []
    if not security.privileged:
        steps += [ReadOnlyPath(path=clean_path(path)) for path in security.readonly_paths]
        steps += [MaskPath(path=clean_path(path)) for path in security.masked_paths]
    if security.readonly_rootfs:
        steps.append(ReadOnlyRoot())
    return tuple(steps)


def _wanted(security: ContainerSecurity, available: set[str]) -> set[str]:
    """Return what is asked for before single names are dropped."""
    wanted = available & set(DEFAULT_CAPABILITIES)
    if _has_all(security.add_capabilities):
        wanted = set(available)
    if _has_all(security.drop_capabilities):
        wanted = set()
    return wanted | _expand(security.add_capabilities, "add_capabilities")


def _expand(names: tuple[str, ...], field: str) -> set[str]:
    """Return the full names of all but "ALL"."""
    expanded = set()
    for index, name in enumerate(names):
        full = "CAP_" + name.upper().removeprefix("CAP_")
        if full not in _NUMBERS and name.upper() != "ALL":
            raise InvalidRequest(f"{_CAPABILITIES}.{field}[{index}]", f"unknown: {name!r}")
        expanded.add(full)
    return expanded - {"CAP_ALL"}


def _has_all(names: tuple[str, ...]) -> bool:
    return any(name.upper() == "ALL" for name in names)


def _sorted_numbers(names: set[str]) -> tuple[int, ...]:
    return tuple(sorted(_NUMBERS[name] for name in names))
