# SPDX-License-Identifier: Apache-2.0
"""Traces, as a collector on loopback gets them over OTLP."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world import session
from tests.world.daemon import Node, refused
from tests.world.images import Images

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
NOT_SAMPLED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)


class Collector(otlp_grpc.TraceServiceServicer):
    """Keeps the spans it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        self._server = grpc.server(futures.ThreadPoolExecutor(1))
        otlp_grpc.add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def Export(  # noqa: N802
        self, request: otlp.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> otlp.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            for attribute in resource.resource.attributes:
                if attribute.key == "service.name":
                    self.services.add(attribute.value.string_value)
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return otlp.ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(0).wait()

    def named(self, name: str) -> Span:
        (found,) = (span for span in self.spans if span.name == name)
        return found

    def below(self, parent: Span) -> list[str]:
        return [span.name for span in self.spans if span.parent_span_id == parent.span_id]


@pytest.fixture(scope="module")
def shared_collector() -> Iterator[Collector]:
    """One for all: gRPC keeps descriptors of a server that has been."""
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def collector(shared_collector: Collector) -> Collector:
    shared_collector.spans.clear()
    return shared_collector


@pytest.fixture
def traced(make_node: Callable[..., Node], collector: Collector) -> Node:
    return make_node(f'tracing.endpoint = "127.0.0.1:{collector.port}"')


def attributes(span: Span) -> dict[str, str]:
    return {one.key: one.value.string_value for one in span.attributes}


def test_a_call_is_below_its_caller_s_span_and_its_stages_below_it(
    traced: Node, collector: Collector, images: Images
) -> None:
    request = cri.RunPodSandboxRequest(config=traced.pod_config("traced"))
    pod = traced.runtime.RunPodSandbox(request, metadata=SAMPLED).pod_sandbox_id
    container = traced.create_container(pod, images["busybox"], command=["sleep", "600"])
    start = cri.StartContainerRequest(container_id=container)
    traced.runtime.StartContainer(start, metadata=SAMPLED)
    traced.stop()  # which sends what has not been sent
    assert collector.services == {"pycri"}
    run = collector.named("runtime.v1/RunPodSandbox")
    assert (run.trace_id.hex(), run.parent_span_id.hex()) == (TRACE, PARENT)
    assert run.kind == Span.SPAN_KIND_SERVER
    assert attributes(run)["pycri.name"] == "traced"
    assert attributes(run)["rpc.grpc.status_code"] == "OK"
    assert f"request={attributes(run)['pycri.request']}" in traced.daemon_log()
    stages = collector.below(run)
    assert stages[0] == "intent"
    assert {"fork", "namespaces", "attach"} <= set(stages)
    for span in collector.spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.trace_id.hex() == TRACE
    attach = next(span for span in collector.spans if span.name == "attach")
    assert run.start_time_unix_nano <= attach.start_time_unix_nano
    assert attach.end_time_unix_nano <= run.end_time_unix_nano
    started = collector.below(collector.named("runtime.v1/StartContainer"))
    assert {"sources", "mounts", "identity"} <= set(started)


def test_a_call_that_fails_says_so_and_one_whose_caller_is_not_sampled_is_not(
    traced: Node, collector: Collector
) -> None:
    request = cri.PodSandboxStatusRequest(pod_sandbox_id="absent")
    with refused(grpc.StatusCode.NOT_FOUND):
        traced.runtime.PodSandboxStatus(request, metadata=SAMPLED)
    with refused(grpc.StatusCode.UNIMPLEMENTED):
        traced.runtime.CheckpointContainer(cri.CheckpointContainerRequest(), metadata=SAMPLED)
    traced.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), metadata=NOT_SAMPLED)
    traced.runtime.ListContainers(cri.ListContainersRequest())
    traced.stop()
    absent = collector.named("runtime.v1/PodSandboxStatus")
    assert attributes(absent)["rpc.grpc.status_code"] == "NOT_FOUND"
    assert absent.status.code == Status.STATUS_CODE_UNSET, "the caller's fault, not ours"
    lacking = collector.named("runtime.v1/CheckpointContainer")
    assert lacking.status.code == Status.STATUS_CODE_ERROR
    assert len(collector.spans) == 2


def test_calls_without_a_caller_s_trace_are_sampled_as_set(
    make_node: Callable[..., Node], collector: Collector
) -> None:
    endpoint = f'endpoint = "127.0.0.1:{collector.port}"'
    node = make_node(f"[tracing]\n{endpoint}\nsampling_per_million = 1000000")
    node.runtime.ListContainers(cri.ListContainersRequest())
    node.stop()
    assert not collector.named("runtime.v1/ListContainers").parent_span_id


def test_a_collector_that_is_away_hinders_nothing(make_node: Callable[..., Node]) -> None:
    node = make_node('tracing = { endpoint = "127.0.0.1:9", sampling_per_million = 1000000 }')
    node.remove_pod(node.run_pod("all-the-same"))


def test_without_the_library_the_daemon_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from pycri.config import TracingSettings; from pycri import daemon\n"
        "daemon._tracing(TracingSettings(endpoint='127.0.0.1:4317'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=False, env=session.environment(), cwd=tmp_path,
    )  # fmt: skip
    assert "install pycri[tracing]" in done.stderr
