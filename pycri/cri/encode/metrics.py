# SPDX-License-Identifier: Apache-2.0
"""Readings to the metrics of the CRI, by the table. Takes a while: to be called in a thread."""

from collections.abc import Iterator

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.model.metric_table import METRICS
from pycri.model.metrics import BASE_LABELS, MetricKind, base_values
from pycri.model.stats import PodReading, Reading

_KINDS = {MetricKind.COUNTER: pb.COUNTER, MetricKind.GAUGE: pb.GAUGE}


def encode_metric_descriptors() -> list[pb.MetricDescriptor]:
    """Return every metric there may be; the kubelet drops others."""
    return [
        pb.MetricDescriptor(
            name=metric.name, help=metric.help, label_keys=(*BASE_LABELS, *metric.labels)
        )
        for metric in METRICS
    ]


def encode_pod_metrics(reading: PodReading) -> pb.PodSandboxMetrics:
    """Return the metrics of a pod and of its containers."""
    return pb.PodSandboxMetrics(
        pod_sandbox_id=reading.pod.pod.id,
        metrics=_metrics(reading.pod),
        container_metrics=[
            pb.ContainerMetrics(
                container_id=container.container.id if container.container else "",
                metrics=_metrics(container),
            )
            for container in reading.containers
        ],
    )


def _metrics(reading: Reading) -> Iterator[pb.Metric]:
    base = base_values(reading)
    for metric in METRICS:
        for labels, value in metric.read(reading):
            yield pb.Metric(
                name=metric.name,
                timestamp=reading.usage.timestamp_ns,
                metric_type=_KINDS[metric.kind],
                label_values=(*base, *labels),
                value=pb.UInt64Value(value=value),
            )
