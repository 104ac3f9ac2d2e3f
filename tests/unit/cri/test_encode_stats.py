# SPDX-License-Identifier: Apache-2.0
"""Statistics as answers: absent stays absent."""

from pycri.cri.encode.stats import encode_container_stats, encode_pod_stats
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.image import FilesystemUsage
from pycri.model.pod import PodMetadata, PodRecord, PodSpec
from pycri.model.security import User
from pycri.model.stats import (
    ContainerStats,
    CpuUsage,
    GroupUsage,
    InterfaceCounters,
    MemoryUsage,
    NetworkUsage,
    PodStats,
    Pressure,
    PressureLine,
    SwapUsage,
)

CONTAINER = ContainerRecord(
    id=ContainerId("c"),
    pod_id=PodId("p"),
    spec=ContainerSpec(
        metadata=ContainerMetadata(name="app", attempt=2),
        image=ImageSpec(image="i"),
        labels={"a": "b"},
        annotations={"c": "d"},
    ),
    image_id=ImageId("i"),
    user=User(uid=0, gid=0, groups=()),
    stop_signal=15,
    cgroup="/x",
    log_path="",
    created_ns=1,
)
POD = PodRecord(
    id=PodId("p"),
    spec=PodSpec(
        metadata=PodMetadata(name="n", uid="u", namespace="s", attempt=1), labels={"e": "f"}
    ),
    created_ns=1,
)
PRESSURE = Pressure(some=PressureLine(avg10=1.5, total_ns=7), full=PressureLine(total_ns=3))
MEMORY = MemoryUsage(
    used_bytes=100,
    limit_bytes=None,
    inactive_file_bytes=30,
    rss_bytes=50,
    page_faults=8,
    major_page_faults=0,
)
LINK = InterfaceCounters(
    name="eth0",
    rx_bytes=1, rx_packets=2, rx_errors=3, rx_dropped=4,
    tx_bytes=5, tx_packets=6, tx_errors=7, tx_dropped=8,
)  # fmt: skip


def test_a_container_that_does_not_run_shows_its_layer_alone() -> None:
    layer = FilesystemUsage(timestamp_ns=9, mountpoint="/m", used_bytes=4096, inodes_used=1)
    shown = encode_container_stats(ContainerStats(container=CONTAINER, writable_layer=layer))
    assert (shown.attributes.id, shown.attributes.metadata.name) == ("c", "app")
    assert shown.attributes.metadata.attempt == 2
    assert dict(shown.attributes.labels) == {"a": "b"}
    assert dict(shown.attributes.annotations) == {"c": "d"}
    assert shown.writable_layer.used_bytes.value == 4096
    assert not any(shown.HasField(name) for name in ("cpu", "memory", "swap", "io"))


def test_a_number_that_is_0_is_shown_and_one_that_is_unknown_is_not() -> None:
    usage = GroupUsage(timestamp_ns=5, cpu=CpuUsage(used_ns=0), memory=MEMORY)
    shown = encode_container_stats(ContainerStats(container=CONTAINER, usage=usage))
    assert shown.cpu.timestamp == shown.memory.timestamp == 5
    assert shown.cpu.HasField("usage_core_nano_seconds")
    assert shown.memory.HasField("major_page_faults")
    assert shown.memory.working_set_bytes.value == 70
    assert not shown.memory.HasField("available_bytes")
    assert not shown.cpu.HasField("usage_nano_cores")
    assert not shown.cpu.HasField("psi")
    assert not any(shown.HasField(name) for name in ("swap", "io", "writable_layer"))


def test_pressure_goes_where_the_cri_has_it() -> None:
    usage = GroupUsage(
        timestamp_ns=5,
        cpu=CpuUsage(used_ns=1, pressure=PRESSURE),
        swap=SwapUsage(used_bytes=1, limit_bytes=3),
        io_pressure=PRESSURE,
    )
    shown = encode_container_stats(ContainerStats(container=CONTAINER, usage=usage, nano_cores=12))
    assert shown.cpu.usage_nano_cores.value == 12
    assert shown.swap.swap_available_bytes.value == 2
    for psi in (shown.cpu.psi, shown.io.psi):
        assert (psi.Some.Total, psi.Some.Avg10, psi.Full.Total) == (7, 1.5, 3)


def test_a_pod_s_statistics_hold_those_of_its_containers() -> None:
    stats = PodStats(
        pod=POD,
        usage=GroupUsage(timestamp_ns=5, cpu=CpuUsage(used_ns=1), io_pressure=PRESSURE),
        network=NetworkUsage(timestamp_ns=6, default=LINK),
        processes=3,
        containers=(ContainerStats(container=CONTAINER),),
    )
    shown = encode_pod_stats(stats)
    assert (shown.attributes.metadata.uid, dict(shown.attributes.labels)) == ("u", {"e": "f"})
    assert shown.linux.process.process_count.value == 3
    assert [container.attributes.id for container in shown.linux.containers] == ["c"]
    eth0 = shown.linux.network.default_interface
    assert (eth0.name, eth0.rx_bytes.value, eth0.rx_errors.value) == ("eth0", 1, 3)
    assert (eth0.tx_bytes.value, eth0.tx_errors.value) == (5, 7)
    assert shown.linux.io.psi.Full.Total == 3
    host_network = encode_pod_stats(PodStats(pod=POD, usage=GroupUsage(timestamp_ns=5)))
    assert not host_network.linux.HasField("network")
