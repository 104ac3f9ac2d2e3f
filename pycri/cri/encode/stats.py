# SPDX-License-Identifier: Apache-2.0
"""Statistics to protobuf. What the kernel does not tell is left out, never shown as 0."""

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.encode.records import encode_filesystem
from pycri.model.container import ContainerRecord
from pycri.model.pod import PodRecord
from pycri.model.stats import (
    ContainerStats,
    GroupUsage,
    InterfaceCounters,
    MemoryUsage,
    NetworkUsage,
    PodStats,
    Pressure,
    PressureLine,
    SwapUsage,
)


def encode_container_stats(stats: ContainerStats) -> pb.ContainerStats:
    """Return a container's statistics; of one that does not run only its layer."""
    usage, layer = stats.usage, stats.writable_layer
    message = pb.ContainerStats(attributes=_container(stats.container))
    if layer is not None:
        message.writable_layer.CopyFrom(encode_filesystem(layer))
    if usage is None:
        return message
    message.cpu.CopyFrom(_cpu(usage, stats.nano_cores))
    message.memory.CopyFrom(_memory(usage.memory, usage.timestamp_ns))
    if usage.swap is not None:
        message.swap.CopyFrom(_swap(usage.swap, usage.timestamp_ns))
    if usage.io_pressure is not None:
        message.io.CopyFrom(_io(usage.io_pressure, usage.timestamp_ns))
    return message


def encode_pod_stats(stats: PodStats) -> pb.PodSandboxStats:
    """Return a pod's statistics."""
    usage = stats.usage
    linux = pb.LinuxPodSandboxStats(
        cpu=_cpu(usage, stats.nano_cores),
        memory=_memory(usage.memory, usage.timestamp_ns),
        process=pb.ProcessUsage(
            timestamp=usage.timestamp_ns, process_count=_number(stats.processes)
        ),
        containers=[encode_container_stats(container) for container in stats.containers],
    )
    if stats.network is not None:
        linux.network.CopyFrom(_network(stats.network))
    if usage.io_pressure is not None:
        linux.io.CopyFrom(_io(usage.io_pressure, usage.timestamp_ns))
    return pb.PodSandboxStats(attributes=_pod(stats.pod), linux=linux)


def _container(record: ContainerRecord) -> pb.ContainerAttributes:
    metadata = record.spec.metadata
    return pb.ContainerAttributes(
        id=record.id,
        metadata=pb.ContainerMetadata(name=metadata.name, attempt=metadata.attempt),
        labels=record.spec.labels,
        annotations=record.spec.annotations,
    )


def _pod(record: PodRecord) -> pb.PodSandboxAttributes:
    metadata = record.spec.metadata
    return pb.PodSandboxAttributes(
        id=record.id,
        metadata=pb.PodSandboxMetadata(
            name=metadata.name,
            uid=metadata.uid,
            namespace=metadata.namespace,
            attempt=metadata.attempt,
        ),
        labels=record.spec.labels,
        annotations=record.spec.annotations,
    )


def _cpu(usage: GroupUsage, nano_cores: int | None) -> pb.CpuUsage:
    if usage.cpu is None:
        return pb.CpuUsage(timestamp=usage.timestamp_ns)
    return pb.CpuUsage(
        timestamp=usage.timestamp_ns,
        usage_core_nano_seconds=_number(usage.cpu.used_ns),
        usage_nano_cores=_optional(nano_cores),
        psi=_pressure(usage.cpu.pressure),
    )


def _memory(memory: MemoryUsage | None, timestamp_ns: int) -> pb.MemoryUsage:
    if memory is None:
        return pb.MemoryUsage(timestamp=timestamp_ns)
    return pb.MemoryUsage(
        timestamp=timestamp_ns,
        working_set_bytes=_number(memory.working_set_bytes),
        available_bytes=_optional(memory.available_bytes),
        usage_bytes=_number(memory.used_bytes),
        rss_bytes=_number(memory.rss_bytes),
        page_faults=_number(memory.page_faults),
        major_page_faults=_number(memory.major_page_faults),
        psi=_pressure(memory.pressure),
    )


def _swap(swap: SwapUsage, timestamp_ns: int) -> pb.SwapUsage:
    return pb.SwapUsage(
        timestamp=timestamp_ns,
        swap_available_bytes=_optional(swap.available_bytes),
        swap_usage_bytes=_number(swap.used_bytes),
    )


def _io(pressure: Pressure, timestamp_ns: int) -> pb.IoUsage:
    return pb.IoUsage(timestamp=timestamp_ns, psi=_pressure(pressure))


def _network(network: NetworkUsage) -> pb.NetworkUsage:
    return pb.NetworkUsage(
        timestamp=network.timestamp_ns,
        default_interface=_interface(network.default),
        interfaces=[_interface(interface) for interface in network.others],
    )


def _interface(interface: InterfaceCounters) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=_number(interface.rx_bytes),
        rx_errors=_number(interface.rx_errors),
        tx_bytes=_number(interface.tx_bytes),
        tx_errors=_number(interface.tx_errors),
    )


def _pressure(pressure: Pressure | None) -> pb.PsiStats | None:
    if pressure is None:
        return None
    return pb.PsiStats(Some=_pressure_line(pressure.some), Full=_pressure_line(pressure.full))


def _pressure_line(line: PressureLine) -> pb.PsiData:
    return pb.PsiData(Total=line.total_ns, Avg10=line.avg10, Avg60=line.avg60, Avg300=line.avg300)


def _number(value: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=value)


def _optional(value: int | None) -> pb.UInt64Value | None:
    return None if value is None else pb.UInt64Value(value=value)
