# SPDX-License-Identifier: Apache-2.0
"""What pods and containers use: counters as the kernel keeps them, and what follows from them.

Counters only grow, for as long as their group or link lives. Times are nanoseconds since the epoch
(CRI `timestamp`), durations nanoseconds, sizes bytes, unless a name says otherwise. None is what
the kernel does not tell: version 1 of control groups has no pressure, a group without a limit has
nothing "available".
"""

import msgspec

from pycri.model.container import ContainerRecord
from pycri.model.image import FilesystemUsage
from pycri.model.pod import PodRecord


class PressureLine(msgspec.Struct, frozen=True, kw_only=True):
    """How long tasks stalled: in per cent of the last 10, 60 and 300 s, and in all."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total_ns: int = 0


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Stalls of a group for one resource (Documentation/accounting/psi.rst).

    some: at least one task stalled; full: all did at once.
    """

    some: PressureLine = PressureLine()
    full: PressureLine = PressureLine()


class CpuUsage(msgspec.Struct, frozen=True, kw_only=True):
    """CRI CpuUsage, but for the rate. used_ns: summed over all CPUs."""

    used_ns: int
    pressure: Pressure | None = None


class MemoryUsage(msgspec.Struct, frozen=True, kw_only=True):
    """CRI MemoryUsage. limit_bytes: of the group itself. rss_bytes: anonymous memory."""

    used_bytes: int
    limit_bytes: int | None
    inactive_file_bytes: int
    rss_bytes: int
    page_faults: int
    major_page_faults: int
    pressure: Pressure | None = None

    @property
    def working_set_bytes(self) -> int:
        """What is used less file pages the kernel would take back first, as cAdvisor has it."""
        return max(0, self.used_bytes - self.inactive_file_bytes)

    @property
    def available_bytes(self) -> int | None:
        """How much the working set may grow."""
        if self.limit_bytes is None:
            return None
        return max(0, self.limit_bytes - self.working_set_bytes)


class SwapUsage(msgspec.Struct, frozen=True, kw_only=True):
    """CRI SwapUsage. limit_bytes: of swap alone."""

    used_bytes: int
    limit_bytes: int | None

    @property
    def available_bytes(self) -> int | None:
        """How much more may be swapped out."""
        return None if self.limit_bytes is None else max(0, self.limit_bytes - self.used_bytes)


class GroupUsage(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a control group's counters; the parts whose files are missing are None."""

    timestamp_ns: int
    cpu: CpuUsage | None = None
    memory: MemoryUsage | None = None
    swap: SwapUsage | None = None
    io_pressure: Pressure | None = None


class InterfaceCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one network interface, as the owner of the interface sees them."""

    name: str
    rx_bytes: int
    rx_packets: int
    rx_errors: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_errors: int
    tx_dropped: int


class NetworkUsage(msgspec.Struct, frozen=True, kw_only=True):
    """CRI NetworkUsage of a pod. default: the interface of its default route."""

    timestamp_ns: int
    default: InterfaceCounters
    others: tuple[InterfaceCounters, ...] = ()


class ContainerStats(msgspec.Struct, frozen=True, kw_only=True):
    """CRI ContainerStats. usage: None unless it runs. nano_cores: 10^9 is one CPU in full use."""

    container: ContainerRecord
    usage: GroupUsage | None = None
    nano_cores: int | None = None
    writable_layer: FilesystemUsage | None = None


class PodStats(msgspec.Struct, frozen=True, kw_only=True):
    """CRI PodSandboxStats: of the pod's own group, which holds its containers and their caches."""

    pod: PodRecord
    usage: GroupUsage
    nano_cores: int | None = None
    network: NetworkUsage | None = None
    processes: int = 0
    containers: tuple[ContainerStats, ...] = ()


class DeviceIo(msgspec.Struct, frozen=True, kw_only=True):
    """What a group read from and wrote to one block device. device: "/dev/vda", or "8:0"."""

    device: str
    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


class HugePages(msgspec.Struct, frozen=True, kw_only=True):
    """Huge pages of one size, "2MB". most_bytes: the most there was; version 2 does not tell."""

    size: str
    used_bytes: int
    most_bytes: int | None = None


class GroupDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What metrics tell of a control group beyond its usage."""

    cpu_user_ns: int | None = None
    cpu_system_ns: int | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_ns: int | None = None
    cache_bytes: int | None = None
    mapped_file_bytes: int | None = None
    active_file_bytes: int | None = None
    kernel_bytes: int | None = None
    most_memory_bytes: int | None = None
    limit_hits: int | None = None
    """How often the memory limit was run into."""
    oom_kills: int | None = None
    threads: int | None = None
    threads_limit: int | None = None
    huge_pages: tuple[HugePages, ...] = ()
    devices: tuple[DeviceIo, ...] = ()


class ProcessCounts(msgspec.Struct, frozen=True, kw_only=True):
    """A container's processes. soft_limits: the finite ones of its first, by names like
    "max_open_files"; sockets: at least, where there are very many descriptors."""

    processes: int
    descriptors: int
    sockets: int
    soft_limits: dict[str, int] = {}


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The file system that the writable layers are on."""

    device: str
    size_bytes: int
    inodes: int
    free_inodes: int


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All that metrics are made of, of a container or, without one, of a pod as a whole.

    group: the path of its control group.
    """

    pod: PodRecord
    container: ContainerRecord | None = None
    group: str
    usage: GroupUsage
    detail: GroupDetail
    network: NetworkUsage | None = None
    processes: ProcessCounts | None = None
    writable_layer: FilesystemUsage | None = None
    capacity: Capacity | None = None


class PodReading(msgspec.Struct, frozen=True, kw_only=True):
    """A pod and its running containers."""

    pod: Reading
    containers: tuple[Reading, ...] = ()
