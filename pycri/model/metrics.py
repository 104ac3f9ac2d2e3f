# SPDX-License-Identifier: Apache-2.0
"""What a metric of ListPodSandboxMetrics is, and the readers that several of them share.

The labels are cAdvisor's, so that dashboards and alerts made for it go on:

    id              the control group's path
    name            the container's id
    image, container, pod, namespace     as Kubernetes names them; "" for a pod as a whole

CRI values are whole numbers: durations are cut to seconds. A metric without a value is left out.
"""

import enum
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import msgspec

from pycri.model.resources import Resources
from pycri.model.stats import InterfaceCounters, MemoryUsage, Pressure, PressureLine, Reading

T = TypeVar("T")

Value = tuple[tuple[str, ...], int]
"""The values of the labels that the metric has besides BASE_LABELS, and the number."""
Reader = Callable[[Reading], Iterable[Value]]

BASE_LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")
_SECOND_NS: Final = 1_000_000_000


class MetricKind(enum.Enum):
    """CRI MetricType."""

    COUNTER = 0
    GAUGE = 1


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. labels: besides BASE_LABELS."""

    name: str
    help: str
    kind: MetricKind
    labels: tuple[str, ...]
    read: Reader


def base_values(reading: Reading) -> tuple[str, ...]:
    """Return the values of BASE_LABELS."""
    pod, container = reading.pod.spec.metadata, reading.container
    if container is None:
        return ("", reading.group, "", "", pod.namespace, pod.name)
    image = container.spec.image
    return (
        container.spec.metadata.name,
        reading.group,
        image.user_specified_image or image.image,
        container.id,
        pod.namespace,
        pod.name,
    )


def counter(name: str, text: str, read: Reader, *labels: str) -> Metric:
    return Metric(name=name, help=text, kind=MetricKind.COUNTER, labels=labels, read=read)


def gauge(name: str, text: str, read: Reader, *labels: str) -> Metric:
    return Metric(name=name, help=text, kind=MetricKind.GAUGE, labels=labels, read=read)


def one(value: int | None, *labels: str) -> tuple[Value, ...]:
    return () if value is None else ((labels, value),)


def seconds(value_ns: int | None, *labels: str) -> tuple[Value, ...]:
    return one(None if value_ns is None else value_ns // _SECOND_NS, *labels)


def of_memory(value: Callable[[MemoryUsage], int]) -> Reader:
    return lambda r: one(value(r.usage.memory) if r.usage.memory else None)


def of_pressure(
    part: Callable[[Reading], Pressure | None], line: Callable[[Pressure], PressureLine]
) -> Reader:
    def read(reading: Reading) -> Iterable[Value]:
        pressure = part(reading)
        return seconds(line(pressure).total_ns if pressure else None)

    return read


def of_interfaces(value: Callable[[InterfaceCounters], int]) -> Reader:
    def read(reading: Reading) -> Iterable[Value]:
        network = reading.network
        for interface in (network.default, *network.others) if network else ():
            yield (interface.name,), value(interface)

    return read


def of_spec(value: Callable[[Resources], int | None]) -> Reader:
    return lambda r: one(value(r.container.resources) if r.container else None)


def read_faults(reading: Reading) -> Iterable[Value]:
    memory = reading.usage.memory
    if memory is not None:
        for scope in ("container", "hierarchy"):
            yield ("pgfault", scope), memory.page_faults
            yield ("pgmajfault", scope), memory.major_page_faults


def read_device_usage(reading: Reading) -> Iterable[Value]:
    for io in reading.detail.devices:
        for operation, value in (("Read", io.read_bytes), ("Write", io.write_bytes)):
            yield (io.device, str(io.major), str(io.minor), operation), value


def read_soft_limits(reading: Reading) -> Iterable[Value]:
    limits = reading.processes.soft_limits if reading.processes else {}
    return (((name,), value) for name, value in limits.items())


def reserved_bytes(resources: Resources) -> int:
    text = resources.unified.get("memory.min", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def stalled(pressure: Pressure) -> PressureLine:
    return pressure.full


def waiting(pressure: Pressure) -> PressureLine:
    return pressure.some


def cpu_pressure(reading: Reading) -> Pressure | None:
    return reading.usage.cpu.pressure if reading.usage.cpu else None


def memory_pressure(reading: Reading) -> Pressure | None:
    return reading.usage.memory.pressure if reading.usage.memory else None


def io_pressure(reading: Reading) -> Pressure | None:
    return reading.usage.io_pressure
