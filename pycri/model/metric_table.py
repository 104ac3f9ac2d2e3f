# SPDX-License-Identifier: Apache-2.0
"""The metrics of ListPodSandboxMetrics: one table of names, labels and where the values come from.

The names are cAdvisor's. `pycri/model/metrics.py` says what a line is, and which labels all have.
"""

from typing import Final

from pycri.model.metrics import (
    counter,
    cpu_pressure,
    gauge,
    io_pressure,
    memory_pressure,
    of_interfaces,
    of_memory,
    of_pressure,
    of_spec,
    one,
    read_device_usage,
    read_faults,
    read_soft_limits,
    reserved_bytes,
    seconds,
    stalled,
    waiting,
)

_DEFAULT_CPU_PERIOD_US: Final = 100_000
_DEFAULT_CPU_SHARES: Final = 1024

_CPU = (
    counter(
        "container_cpu_usage_seconds_total",
        "Cumulative CPU time consumed in seconds.",
        lambda r: seconds(r.usage.cpu.used_ns if r.usage.cpu else None, "total"),
        "cpu",
    ),
    counter(
        "container_cpu_user_seconds_total",
        "Cumulative user CPU time consumed in seconds.",
        lambda r: seconds(r.detail.cpu_user_ns),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "Cumulative system CPU time consumed in seconds.",
        lambda r: seconds(r.detail.cpu_system_ns),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Number of elapsed enforcement period intervals.",
        lambda r: one(r.detail.cpu_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Number of throttled period intervals.",
        lambda r: one(r.detail.cpu_throttled_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Total time duration the container has been throttled.",
        lambda r: seconds(r.detail.cpu_throttled_ns),
    ),
)

_MEMORY = (
    gauge(
        "container_memory_usage_bytes",
        "Current memory usage in bytes, whenever it was accessed.",
        of_memory(lambda memory: memory.used_bytes),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Current working set in bytes.",
        of_memory(lambda memory: memory.working_set_bytes),
    ),
    gauge(
        "container_memory_rss",
        "Size of RSS in bytes.",
        of_memory(lambda memory: memory.rss_bytes),
    ),
    gauge(
        "container_memory_total_inactive_file_bytes",
        "Current inactive file memory in bytes.",
        of_memory(lambda memory: memory.inactive_file_bytes),
    ),
    gauge(
        "container_memory_total_active_file_bytes",
        "Current active file memory in bytes.",
        lambda r: one(r.detail.active_file_bytes),
    ),
    gauge(
        "container_memory_cache",
        "Number of bytes of page cache memory.",
        lambda r: one(r.detail.cache_bytes),
    ),
    gauge(
        "container_memory_mapped_file",
        "Size of memory mapped files in bytes.",
        lambda r: one(r.detail.mapped_file_bytes),
    ),
    gauge(
        "container_memory_kernel_usage",
        "Size of kernel memory allocated in bytes.",
        lambda r: one(r.detail.kernel_bytes),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        "Maximum memory usage recorded in bytes.",
        lambda r: one(r.detail.most_memory_bytes),
    ),
    gauge(
        "container_memory_swap",
        "Container swap usage in bytes.",
        lambda r: one(r.usage.swap.used_bytes if r.usage.swap else None),
    ),
    counter(
        "container_memory_failcnt",
        "Number of memory usage hits limits.",
        lambda r: one(r.detail.limit_hits),
    ),
    counter(
        "container_memory_failures_total",
        "Cumulative count of memory allocation failures.",
        read_faults,
        "failure_type",
        "scope",
    ),
    counter(
        "container_oom_events_total",
        "Count of out of memory events observed for the container.",
        lambda r: one(r.detail.oom_kills),
    ),
    gauge(
        "container_hugetlb_usage_bytes",
        "Current hugepage usage.",
        lambda r: [((pages.size,), pages.used_bytes) for pages in r.detail.huge_pages],
        "pagesize",
    ),
    gauge(
        "container_hugetlb_max_usage_bytes",
        "Maximum hugepage usages recorded.",
        lambda r: [
            ((pages.size,), pages.most_bytes)
            for pages in r.detail.huge_pages
            if pages.most_bytes is not None
        ],
        "pagesize",
    ),
)

_NETWORK = tuple(
    counter(f"container_network_{name}_total", f"Cumulative count of {text}.", read, "interface")
    for name, text, read in (
        ("receive_bytes", "bytes received", of_interfaces(lambda i: i.rx_bytes)),
        ("receive_packets", "packets received", of_interfaces(lambda i: i.rx_packets)),
        (
            "receive_packets_dropped",
            "packets dropped while receiving",
            of_interfaces(lambda i: i.rx_dropped),
        ),
        (
            "receive_errors",
            "errors encountered while receiving",
            of_interfaces(lambda i: i.rx_errors),
        ),
        ("transmit_bytes", "bytes transmitted", of_interfaces(lambda i: i.tx_bytes)),
        ("transmit_packets", "packets transmitted", of_interfaces(lambda i: i.tx_packets)),
        (
            "transmit_packets_dropped",
            "packets dropped while transmitting",
            of_interfaces(lambda i: i.tx_dropped),
        ),
        (
            "transmit_errors",
            "errors encountered while transmitting",
            of_interfaces(lambda i: i.tx_errors),
        ),
    )
)

_DISK = (
    gauge(
        "container_fs_usage_bytes",
        "Number of bytes that are consumed by the container on this filesystem.",
        lambda r: (
            one(r.writable_layer.used_bytes, r.capacity.device)
            if r.writable_layer and r.capacity
            else ()
        ),
        "device",
    ),
    gauge(
        "container_fs_limit_bytes",
        "Number of bytes that can be consumed by the container on this filesystem.",
        lambda r: one(r.capacity.size_bytes, r.capacity.device) if r.capacity else (),
        "device",
    ),
    gauge(
        "container_fs_inodes_total",
        "Number of inodes.",
        lambda r: one(r.capacity.inodes, r.capacity.device) if r.capacity else (),
        "device",
    ),
    gauge(
        "container_fs_inodes_free",
        "Number of available inodes.",
        lambda r: one(r.capacity.free_inodes, r.capacity.device) if r.capacity else (),
        "device",
    ),
    counter(
        "container_fs_reads_bytes_total",
        "Cumulative count of bytes read.",
        lambda r: [((io.device,), io.read_bytes) for io in r.detail.devices],
        "device",
    ),
    counter(
        "container_fs_reads_total",
        "Cumulative count of reads completed.",
        lambda r: [((io.device,), io.reads) for io in r.detail.devices],
        "device",
    ),
    counter(
        "container_fs_writes_bytes_total",
        "Cumulative count of bytes written.",
        lambda r: [((io.device,), io.write_bytes) for io in r.detail.devices],
        "device",
    ),
    counter(
        "container_fs_writes_total",
        "Cumulative count of writes completed.",
        lambda r: [((io.device,), io.writes) for io in r.detail.devices],
        "device",
    ),
    counter(
        "container_blkio_device_usage_total",
        "Blkio device bytes usage.",
        read_device_usage,
        "device",
        "major",
        "minor",
        "operation",
    ),
)

_PROCESSES = (
    gauge(
        "container_processes",
        "Number of processes running inside the container.",
        lambda r: one(r.processes.processes if r.processes else None),
    ),
    gauge(
        "container_threads",
        "Number of threads running inside the container.",
        lambda r: one(r.detail.threads),
    ),
    gauge(
        "container_threads_max",
        "Maximum number of threads allowed inside the container, infinity if value is zero.",
        lambda r: one(None if r.detail.threads is None else r.detail.threads_limit or 0),
    ),
    gauge(
        "container_file_descriptors",
        "Number of open file descriptors for the container.",
        lambda r: one(r.processes.descriptors if r.processes else None),
    ),
    gauge(
        "container_sockets",
        "Number of open sockets for the container.",
        lambda r: one(r.processes.sockets if r.processes else None),
    ),
    gauge(
        "container_ulimits_soft",
        "Soft ulimit values for the container root process; unlimited ones are left out.",
        read_soft_limits,
        "ulimit",
    ),
)

_PRESSURE = tuple(
    counter(f"container_pressure_{resource}_{kind}_seconds_total", text, of_pressure(part, line))
    for resource, part, congestion in (
        ("cpu", cpu_pressure, "CPU"),
        ("memory", memory_pressure, "memory"),
        ("io", io_pressure, "IO"),
    )
    for kind, line, text in (
        (
            "stalled",
            stalled,
            "Total time duration no tasks in the container could make progress due to"
            f" {congestion} congestion.",
        ),
        (
            "waiting",
            waiting,
            "Total time duration tasks in the container have waited due to"
            f" {congestion} congestion.",
        ),
    )
)

_SPEC = (
    gauge(
        "container_spec_cpu_period",
        "CPU period of the container.",
        of_spec(lambda spec: spec.cpu_period_us or _DEFAULT_CPU_PERIOD_US),
    ),
    gauge(
        "container_spec_cpu_quota",
        "CPU quota of the container.",
        of_spec(lambda spec: spec.cpu_quota_us if spec.cpu_quota_us > 0 else None),
    ),
    gauge(
        "container_spec_cpu_shares",
        "CPU share of the container.",
        of_spec(lambda spec: spec.cpu_shares or _DEFAULT_CPU_SHARES),
    ),
    gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit for the container.",
        of_spec(lambda spec: max(0, spec.memory_limit_bytes)),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Memory swap limit for the container.",
        of_spec(lambda spec: max(0, spec.memory_swap_limit_bytes)),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory reservation limit for the container.",
        of_spec(reserved_bytes),
    ),
)

_LIFE = (
    gauge(
        "container_start_time_seconds",
        "Start time of the container since unix epoch in seconds.",
        lambda r: seconds((r.container.started_ns if r.container else r.pod.ready_ns) or None),
    ),
    gauge(
        "container_last_seen",
        "Last time a container was seen by the exporter.",
        lambda r: seconds(r.usage.timestamp_ns),
    ),
)

METRICS: Final = (
    *_CPU, *_MEMORY, *_NETWORK, *_DISK, *_PROCESSES, *_PRESSURE, *_SPEC, *_LIFE
)  # fmt: skip
"""The table."""
