# SPDX-License-Identifier: Apache-2.0
"""The table of metrics: complete, consistent, and each number from where it should come."""

import msgspec
import pytest

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.encode.metrics import encode_metric_descriptors, encode_pod_metrics
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.image import FilesystemUsage
from pycri.model.pod import PodMetadata, PodRecord, PodSpec
from pycri.model.resources import Resources
from pycri.model.security import User
from pycri.model.stats import (
    Capacity,
    CpuUsage,
    DeviceIo,
    GroupDetail,
    GroupUsage,
    HugePages,
    InterfaceCounters,
    MemoryUsage,
    NetworkUsage,
    PodReading,
    Pressure,
    PressureLine,
    ProcessCounts,
    Reading,
    SwapUsage,
)

CADVISOR = """
blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total
cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total
cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes
fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total
hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt
memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes
memory_rss memory_swap memory_usage_bytes memory_working_set_bytes
network_receive_bytes_total network_receive_errors_total
network_receive_packets_dropped_total network_receive_packets_total
network_transmit_bytes_total network_transmit_errors_total
network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total
pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total
pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total
pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes
sockets spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes
spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads
threads_max ulimits_soft
"""
"""Without "container_": what a kubelet tells with cAdvisor, as cri-tools' critest lists it."""

SECOND = 1_000_000_000
PRESSURE = Pressure(some=PressureLine(total_ns=7 * SECOND), full=PressureLine(total_ns=3 * SECOND))
POD = PodRecord(
    id=PodId("p"),
    spec=PodSpec(metadata=PodMetadata(name="web", uid="u", namespace="shop")),
    created_ns=1,
    ready_ns=5 * SECOND,
)
CONTAINER = ContainerRecord(
    id=ContainerId("c"),
    pod_id=POD.id,
    spec=ContainerSpec(
        metadata=ContainerMetadata(name="app"),
        image=ImageSpec(image="sha256:1", user_specified_image="nginx:1"),
        resources=Resources(
            cpu_quota_us=5000,
            cpu_shares=2,
            memory_limit_bytes=100,
            memory_swap_limit_bytes=-1,
            unified={"memory.min": "50"},
        ),
    ),
    image_id=ImageId("i"),
    user=User(uid=0, gid=0, groups=()),
    stop_signal=15,
    cgroup="/pods/p/c",
    log_path="",
    created_ns=1,
    started_ns=6 * SECOND,
)
USAGE = GroupUsage(
    timestamp_ns=9 * SECOND,
    cpu=CpuUsage(used_ns=12 * SECOND + 1, pressure=PRESSURE),
    memory=MemoryUsage(
        used_bytes=100,
        limit_bytes=None,
        inactive_file_bytes=30,
        rss_bytes=50,
        page_faults=8,
        major_page_faults=2,
        pressure=PRESSURE,
    ),
    swap=SwapUsage(used_bytes=4, limit_bytes=None),
    io_pressure=PRESSURE,
)
DETAIL = GroupDetail(
    cpu_user_ns=5 * SECOND,
    cpu_system_ns=7 * SECOND,
    cpu_periods=10,
    cpu_throttled_periods=3,
    cpu_throttled_ns=2 * SECOND,
    cache_bytes=11,
    mapped_file_bytes=12,
    active_file_bytes=13,
    kernel_bytes=14,
    most_memory_bytes=15,
    limit_hits=16,
    oom_kills=17,
    threads=18,
    threads_limit=None,
    huge_pages=(HugePages(size="2MB", used_bytes=19, most_bytes=20),),
    devices=(
        DeviceIo(
            device="/dev/vda",
            major=8,
            minor=0,
            read_bytes=21,
            write_bytes=22,
            reads=23,
            writes=24,
        ),
    ),
)
LINK = InterfaceCounters(
    name="eth0",
    rx_bytes=1, rx_packets=2, rx_errors=3, rx_dropped=4,
    tx_bytes=5, tx_packets=6, tx_errors=7, tx_dropped=8,
)  # fmt: skip
READING = PodReading(
    pod=Reading(
        pod=POD,
        group="/pods/p",
        usage=USAGE,
        detail=DETAIL,
        network=NetworkUsage(timestamp_ns=1, default=LINK),
    ),
    containers=(
        Reading(
            pod=POD,
            container=CONTAINER,
            group=CONTAINER.cgroup,
            usage=USAGE,
            detail=DETAIL,
            processes=ProcessCounts(
                processes=2, descriptors=9, sockets=1, soft_limits={"max_open_files": 1024}
            ),
            writable_layer=FilesystemUsage(
                timestamp_ns=1, mountpoint="/m", used_bytes=4096, inodes_used=1
            ),
            capacity=Capacity(device="/dev/vda", size_bytes=10, inodes=5, free_inodes=4),
        ),
    ),
)


def keys() -> dict[str, list[str]]:
    return {one.name: list(one.label_keys) for one in encode_metric_descriptors()}


def values(metrics: list[pb.Metric], name: str) -> dict[tuple[str, ...], int]:
    """Return the values of a metric by its own labels."""
    return {
        tuple(metric.label_values[6:]): metric.value.value
        for metric in metrics
        if metric.name == f"container_{name}"
    }


@pytest.fixture(scope="module")
def shown() -> pb.PodSandboxMetrics:
    return encode_pod_metrics(READING)


@pytest.fixture
def of_container(shown: pb.PodSandboxMetrics) -> list[pb.Metric]:
    (container,) = shown.container_metrics
    assert container.container_id == "c"
    return list(container.metrics)


def test_every_name_of_cadvisor_is_described_once() -> None:
    names = [one.name for one in encode_metric_descriptors()]
    assert len(names) == len(set(names))
    missing = {f"container_{name}" for name in CADVISOR.split()} - set(names)
    assert not missing
    assert all(one.help.endswith(".") for one in encode_metric_descriptors())


def test_a_reading_of_everything_gives_every_metric_with_its_labels(
    shown: pb.PodSandboxMetrics, of_container: list[pb.Metric]
) -> None:
    described = keys()
    found = [*shown.metrics, *of_container]
    assert {metric.name for metric in found} == set(described)
    assert all(len(metric.label_values) == len(described[metric.name]) for metric in found)
    assert all(metric.timestamp == USAGE.timestamp_ns for metric in found)


def test_labels_name_container_and_pod_as_cadvisor_does(
    shown: pb.PodSandboxMetrics, of_container: list[pb.Metric]
) -> None:
    assert keys()["container_last_seen"] == [
        "container", "id", "image", "name", "namespace", "pod",
    ]  # fmt: skip
    assert of_container[0].label_values[:6] == ["app", "/pods/p/c", "nginx:1", "c", "shop", "web"]
    assert shown.metrics[0].label_values[:6] == ["", "/pods/p", "", "", "shop", "web"]


def test_durations_are_whole_seconds_and_counters_are_told_from_gauges(
    of_container: list[pb.Metric],
) -> None:
    assert values(of_container, "cpu_usage_seconds_total") == {("total",): 12}
    assert values(of_container, "cpu_cfs_throttled_seconds_total") == {(): 2}
    assert values(of_container, "pressure_io_stalled_seconds_total") == {(): 3}
    assert values(of_container, "pressure_io_waiting_seconds_total") == {(): 7}
    assert values(of_container, "start_time_seconds") == {(): 6}
    for metric in of_container:
        counts = metric.name.endswith("_total") or metric.name == "container_memory_failcnt"
        gauges = metric.name.startswith("container_fs_inodes_total")
        assert (metric.metric_type == pb.COUNTER) == (counts and not gauges), metric.name


def test_labels_of_a_metric_s_own_tell_its_values_apart(
    shown: pb.PodSandboxMetrics, of_container: list[pb.Metric]
) -> None:
    assert values(of_container, "memory_failures_total") == {
        ("pgfault", "container"): 8,
        ("pgfault", "hierarchy"): 8,
        ("pgmajfault", "container"): 2,
        ("pgmajfault", "hierarchy"): 2,
    }
    assert values(of_container, "blkio_device_usage_total") == {
        ("/dev/vda", "8", "0", "Read"): 21,
        ("/dev/vda", "8", "0", "Write"): 22,
    }
    assert values(of_container, "ulimits_soft") == {("max_open_files",): 1024}
    assert values(of_container, "hugetlb_max_usage_bytes") == {("2MB",): 20}
    assert values(list(shown.metrics), "network_receive_packets_dropped_total") == {("eth0",): 4}
    assert values(list(shown.metrics), "network_transmit_errors_total") == {("eth0",): 7}


def test_limits_are_those_in_force_and_none_is_0(of_container: list[pb.Metric]) -> None:
    assert values(of_container, "spec_cpu_quota") == {(): 5000}
    assert values(of_container, "spec_cpu_period") == {(): 100_000}
    assert values(of_container, "spec_memory_limit_bytes") == {(): 100}
    assert values(of_container, "spec_memory_swap_limit_bytes") == {(): 0}
    assert values(of_container, "spec_memory_reservation_limit_bytes") == {(): 50}
    assert values(of_container, "threads_max") == {(): 0}


def test_what_is_not_known_is_left_out() -> None:
    empty = msgspec.structs.replace(
        READING.containers[0],
        usage=GroupUsage(timestamp_ns=1),
        detail=GroupDetail(),
        processes=None,
        writable_layer=None,
        capacity=None,
    )
    shown = encode_pod_metrics(PodReading(pod=READING.pod, containers=(empty,)))
    names = {metric.name for metric in shown.container_metrics[0].metrics}
    assert all(name.startswith("container_spec_") for name in names - {
        "container_last_seen", "container_start_time_seconds",
    })  # fmt: skip
