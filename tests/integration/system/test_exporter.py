# SPDX-License-Identifier: Apache-2.0
"""Metrics of the daemon for Prometheus: what its HTTP server says after things were done."""

import json
import os
import re
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

DASHBOARD = Path(__file__).parents[3] / "docs/grafana-dashboard.json"

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def exporting(make_node: Callable[..., Node], port: int) -> Node:
    return make_node(f'prometheus.address = "127.0.0.1:{port}"')


def scrape(port: int) -> Samples:
    """Return the values by name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get(name, {}).get(tuple(sorted(labels.items())), 0)


def test_calls_stages_and_levels_are_told(exporting: Node, port: int, images: Images) -> None:
    node = exporting
    pod = node.run_pod("told")
    running = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    ended = node.run_container(pod, images["busybox"], name="ended", command="exit 1")
    node.wait_exited(ended)
    with pytest.raises(grpc.RpcError):
        node.status("absent")
    node.exec(running, "true")
    samples = scrape(port)
    calls = "pycri_rpcs_total"
    assert value(samples, calls, method="RunPodSandbox", code="OK") == 1
    assert value(samples, calls, method="StartContainer", code="OK") == 2
    assert value(samples, calls, method="ContainerStatus", code="NOT_FOUND") == 1
    assert value(samples, "pycri_rpc_duration_seconds_count", method="ExecSync") == 1
    assert value(samples, "pycri_rpcs_in_progress", method="RunPodSandbox") == 0
    stages = samples["pycri_stage_duration_seconds_count"]
    counts = {dict(key)["call"] + "/" + dict(key)["stage"]: n for key, n in stages.items()}
    assert counts["RunPodSandbox/attach"] == 1
    assert counts["StartContainer/sources"] == counts["CreateContainer/intent"] == 2
    assert value(samples, "pycri_pods", state="ready") == 1
    assert value(samples, "pycri_containers", state="running") == 1
    assert value(samples, "pycri_containers", state="exited") == 1
    assert value(samples, "pycri_container_ends_total", reason="Error") == 1
    assert value(samples, "pycri_ready", condition="NetworkReady") == 1
    assert value(samples, "pycri_ready_networks") == 0
    assert value(samples, "pycri_images") == 1
    assert value(samples, "pycri_image_layers_bytes") > 100_000
    assert value(samples, "pycri_image_received_bytes_total") > 100_000
    assert list(samples["pycri_build_info"].values()) == [1]
    assert samples["process_resident_memory_bytes"][()] > 10_000_000


def test_readers_of_events_and_findings_are_told(
    exporting: Node, port: int, images: Images
) -> None:
    node = exporting
    stream = node.runtime.GetContainerEvents(cri.GetEventsRequest())
    stream.initial_metadata()
    assert value(scrape(port), "pycri_event_readers") == 1
    stream.cancel()  # type: ignore[no-untyped-call]
    wait_until(lambda: value(scrape(port), "pycri_event_readers") == 0, what="it is gone")
    assert not scrape(port).get("pycri_reconciler_findings_total")
    node.stop()
    (node.state_dir / "pods" / "leftover").mkdir(parents=True)
    node.start()
    finding = "folder without a record"
    assert value(scrape(port), "pycri_reconciler_findings_total", finding=finding) == 1


def test_a_pod_that_hangs_is_stalled_at_a_stage(exporting: Node, port: int, images: Images) -> None:
    """The spawner stands still; after some seconds the pod counts as stalled, by its child."""

    node = exporting
    spawner = node.pid_of("spawner")
    os.kill(spawner, signal.SIGSTOP)
    try:
        config = node.pod_config("hangs")
        future = node.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config))
        labels = {"call": "RunPodSandbox", "stage": "child"}
        wait_until(
            lambda: value(scrape(port), "pycri_resources_stalled_at_stage", **labels) == 1,
            what="it counts as stalled",
        )
        assert value(scrape(port), "pycri_rpcs_in_progress", method="RunPodSandbox") == 1
    finally:
        os.kill(spawner, signal.SIGCONT)
    assert future.result(30).pod_sandbox_id
    assert not scrape(port).get("pycri_resources_stalled_at_stage")


def test_a_port_that_is_taken_keeps_no_pod_from_running(
    make_node: Callable[..., Node], port: int, images: Images
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        node = make_node(f'prometheus.address = "127.0.0.1:{port}"')
        assert "no metrics for Prometheus" in node.daemon_log()
        node.run_pod("all-the-same")


def test_the_dashboard_asks_for_nothing_that_is_not_there(
    exporting: Node, port: int, images: Images
) -> None:
    """Every metric in it has samples, or at least a type, on a node that has done something."""
    exporting.run_container(exporting.run_pod("seen"), images["busybox"], command=["sleep", "600"])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    described = set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    described |= {f"{name}_{part}" for name in described for part in ("bucket", "sum", "count")}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(queries) >= 12
    asked = {name for query in queries for name in re.findall(r"(?:pycri|process)_\w+", query)}
    assert asked <= described, asked - described
    # And the other way round: what pycri tells is worth a look.
    own = set(re.findall(r"^# TYPE (pycri_\S+) ", text, re.M))
    whole = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert own <= asked | whole, own - asked - whole
