# SPDX-License-Identifier: Apache-2.0
"""The daemon's own metrics for Prometheus, over HTTP: the only user of prometheus-client.

What grows is counted as it happens: calls (`begin`), stages and ends (`observe_event`).
What is there is looked at when somebody asks (`_Levels`): the server's thread has the event loop do
it, so that nothing has to bear being read beside it. Names follow Prometheus' conventions and begin
with pycri_; those with process_ and python_ are the library's.
"""

import asyncio
import os
import platform
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import msgspec

# TID251: this module is prometheus-client's one home.
from prometheus_client import (  # noqa: TID251
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import (  # noqa: TID251
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector  # noqa: TID251

from pycri import __version__
from pycri.cri.account import Look
from pycri.images.store import ImageStore
from pycri.logs import Log
from pycri.model.events import Event, EventKind
from pycri.pods.catalogue import Catalogue
from pycri.pods.node import Node
from pycri.pods.ready_networks import ReadyNetworks
from pycri.pods.recovery import Recovery
from pycri.pods.timeline import Timeline

T = TypeVar("T", bound=tuple[str, ...])

_log = Log("exporter")

STALLED_S: Final = 10.0
"""A call that is longer under way counts as stalled; the kubelet gives up after minutes."""
_LOOK_TIMEOUT_S: Final = 10.0
_CALL_BUCKETS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
)  # fmt: skip
_STAGE_BUCKETS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 10, 60,
)  # fmt: skip


class Sources(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at when somebody asks."""

    catalogue: Catalogue
    images: ImageStore
    node: Node
    recovery: Recovery
    ready_networks: ReadyNetworks
    event_readers: Callable[[], int]


class Exporter:
    """The metrics of one daemon, of calls (as `pycri.cri.account.Observer`) and of events."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "pycri_rpcs", "Calls that have ended.", ("method", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "pycri_rpc_duration_seconds",
            "How long calls took.",
            ("method",),
            buckets=_CALL_BUCKETS,
            registry=self._registry,
        )
        self._in_progress = Gauge(
            "pycri_rpcs_in_progress", "Calls under way.", ("method",), registry=self._registry
        )
        self._stages = Histogram(
            "pycri_stage_duration_seconds",
            "How long each stage of making a pod or container took.",
            ("call", "stage"),
            buckets=_STAGE_BUCKETS,
            registry=self._registry,
        )
        self._ends = Counter(
            "pycri_container_ends",
            "Containers that have ended, by the reason their status shows.",
            ("reason",),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def begin(
        self, method: str, request: object, headers: Mapping[str, str]
    ) -> Callable[[str], None]:
        """Take note of a call, and then of its end."""
        in_progress = self._in_progress.labels(method)
        in_progress.inc()
        start = time.perf_counter()

        def end(code: str) -> None:
            in_progress.dec()
            self._count(method, code, time.perf_counter() - start)

        return end

    def looked(self, look: Look) -> None:
        """Take note of a call that is over."""
        self._count(look.method, look.code, look.duration_ns / 1e9)

    def _count(self, method: str, code: str, seconds: float) -> None:
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def observe_event(self, event: Event) -> None:
        """Take note of what an event's record tells: stages of a start, the reason of an end."""
        if event.kind not in (EventKind.STARTED, EventKind.STOPPED):
            return
        if event.pod is not None and event.id == event.pod.id:
            stages = event.pod.timeline
        else:
            record = next(one for one in event.containers if one.id == event.id)
            stages = record.timeline
            if event.kind is EventKind.STOPPED:
                self._ends.labels(record.reason).inc()
        for stage in stages if event.kind is EventKind.STARTED else ():
            call, _, name = stage.name.partition("/")
            if name:
                self._stages.labels(call, name).observe(stage.duration_ns / 1e9)

    def start(self, address: str, sources: Sources) -> Callable[[], None]:
        """Serve on "HOST:PORT" in a thread of its own; return what ends it.

        An address that cannot be had is logged: pods are more important than their metrics.
        """
        host, _, port = address.rpartition(":")
        self._registry.register(_Levels(sources, asyncio.get_running_loop()))
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), self._registry)
        except OSError as error:
            _log.error("no metrics for Prometheus", address=address, error=str(error))
            return lambda: None

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class _Levels(Collector):
    """What there is at the moment."""

    def __init__(self, sources: Sources, loop: asyncio.AbstractEventLoop) -> None:
        self._sources = sources
        self._loop = loop

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        """Return what the loop looks at; called in the server's thread."""
        return asyncio.run_coroutine_threadsafe(self._look(), self._loop).result(_LOOK_TIMEOUT_S)

    async def _look(self) -> list[Metric]:
        return list(self._collect())

    def _collect(self) -> Iterator[Metric]:
        yield _gauge(
            "pycri_build_info",
            "Always 1; what runs is in the labels.",
            ("version", "python", "kernel"),
            {(__version__, platform.python_version(), os.uname().release): 1},
        )
        yield from self._collect_records()
        yield from self._collect_images()
        yield _gauge(
            "pycri_ready",
            "Whether a condition that the kubelet watches is met.",
            ("condition",),
            {(one.type,): int(one.status) for one in self._sources.node.conditions()},
        )
        findings = CounterMetricFamily(
            "pycri_reconciler_findings",
            "What was found not to agree with the records, and was put right.",
            labels=("finding",),
        )
        for finding, count in self._sources.recovery.findings.items():
            findings.add_metric((finding,), count)
        yield findings
        yield _gauge(
            "pycri_ready_networks",
            "Networks made ahead of the pods that get them.",
            (),
            {(): self._sources.ready_networks.count},
        )

    def _collect_records(self) -> Iterator[Metric]:
        catalogue = self._sources.catalogue
        pods = Tally((pod.state.name.lower(),) for pod in catalogue.pods())
        yield _gauge("pycri_pods", "Pod sandboxes, by state.", ("state",), pods)
        containers = Tally((one.state.name.lower(),) for one in catalogue.containers())
        yield _gauge("pycri_containers", "Containers, by state.", ("state",), containers)
        yield _gauge(
            "pycri_resources_stalled_at_stage",
            f"Pods and containers whose making has taken more than {STALLED_S:.0f} s, by the stage"
            " it is at.",
            ("call", "stage"),
            Tally(Timeline.stalled(STALLED_S)),
        )
        readers = {(): self._sources.event_readers()}
        yield _gauge("pycri_event_readers", "Clients that read events.", (), readers)

    def _collect_images(self) -> Iterator[Metric]:
        images, usage = self._sources.images, self._sources.images.usage()
        yield _gauge("pycri_images", "Images.", (), {(): len(images.images())})
        yield _gauge(
            "pycri_image_layers_bytes", "Bytes of unpacked layers.", (), {(): usage.used_bytes}
        )
        yield _gauge(
            "pycri_image_layers_in_progress",
            "Layers being fetched or unpacked.",
            (),
            {(): images.transfers.under_way},
        )
        received = CounterMetricFamily(
            "pycri_image_received_bytes", "Bytes of layers that pulls have received."
        )
        received.add_metric((), images.transfers.total_bytes)
        yield received


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[T, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family
