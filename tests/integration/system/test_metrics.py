# SPDX-License-Identifier: Apache-2.0
"""Metrics for the kubelet, from real containers."""

import os
from collections.abc import Iterable

import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world.daemon import Node, wait_until
from tests.world.images import Images

IS_V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
MEBIBYTE = 1 << 20
BASE = 6
"""How many labels all metrics have."""

# What this kernel, this machine or this container has no number for.
MAY_LACK = ("hugetlb", "fs_reads", "fs_writes", "blkio_device", "spec_cpu_quota")
V1_LACKS = ("pressure",)


def descriptors(node: Node) -> dict[str, list[str]]:
    answer = node.runtime.ListMetricDescriptors(cri.ListMetricDescriptorsRequest())
    return {one.name: list(one.label_keys) for one in answer.descriptors}


def read(node: Node, pod: str) -> cri.PodSandboxMetrics:
    answer = node.runtime.ListPodSandboxMetrics(cri.ListPodSandboxMetricsRequest())
    (found,) = (one for one in answer.pod_metrics if one.pod_sandbox_id == pod)
    return found


def of_container(node: Node, pod: str) -> dict[str, dict[tuple[str, ...], int]]:
    """Return the values of the pod's one container by name and by the labels of each metric."""
    (container,) = read(node, pod).container_metrics
    return by_name(container.metrics)


def by_name(metrics: Iterable[cri.Metric]) -> dict[str, dict[tuple[str, ...], int]]:
    found: dict[str, dict[tuple[str, ...], int]] = {}
    for metric in metrics:
        labels = tuple(metric.label_values[BASE:])
        found.setdefault(metric.name, {})[labels] = metric.value.value
    return found


def test_a_container_has_every_metric_that_is_described(node: Node, images: Images) -> None:
    pod = node.run_pod("all")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    described = descriptors(node)
    wait_until(
        lambda: "container_fs_limit_bytes" in of_container(node, pod), what="the first round"
    )
    shown = read(node, pod)
    (of_one,) = shown.container_metrics
    assert of_one.container_id == container
    found = [*shown.metrics, *of_one.metrics]
    for metric in found:
        assert len(metric.label_values) == len(described[metric.name]), metric.name
    lacking = MAY_LACK if IS_V2 else MAY_LACK + V1_LACKS
    missing = set(described) - {metric.name for metric in found}
    assert not [name for name in missing if not name.removeprefix("container_").startswith(lacking)]
    labels = dict(zip(described["container_last_seen"], of_one.metrics[0].label_values))  # noqa: B905
    assert labels["pod"] == "all"
    assert labels["namespace"] == "tests"
    assert labels["container"] == "main"
    assert labels["name"] == container
    assert labels["id"].endswith(f"/{container}")


def test_processes_descriptors_and_sockets_are_counted(node: Node, images: Images) -> None:
    pod = node.run_pod("counts")
    container = node.run_container(
        pod,
        images["busybox"],
        command="nc -l -p 8000 & exec 7</etc/passwd; sleep 600 & echo ready; wait",
    )
    node.wait_log(container, "ready")
    values = wait_until(lambda: with_socket(of_container(node, pod)), what="nc listens")
    assert values["container_processes"] == {(): 3}
    assert values["container_threads"] == {(): 3}
    # Three standard ones each, and the files of the shell and of its children.
    assert 10 <= values["container_file_descriptors"][()] <= 14
    with open(f"/proc/{node.pid(container)}/limits") as file:
        soft = next(line.split()[3] for line in file if line.startswith("Max open files"))
    assert values["container_ulimits_soft"][("max_open_files",)] == int(soft)


def with_socket(
    values: dict[str, dict[tuple[str, ...], int]],
) -> dict[str, dict[tuple[str, ...], int]] | None:
    return values if values["container_sockets"] == {(): 1} else None


def test_a_quota_and_what_it_held_back_are_told(node: Node, images: Images) -> None:
    pod = node.run_pod("throttled")
    node.run_container(
        pod,
        images["busybox"],
        command="while :; do :; done",
        resources={"cpu_period": 20_000, "cpu_quota": 5_000, "cpu_shares": 512},
    )
    values = wait_until(lambda: throttled(of_container(node, pod)), what="it is throttled")
    assert values["container_spec_cpu_period"] == {(): 20_000}
    assert values["container_spec_cpu_quota"] == {(): 5_000}
    assert values["container_spec_cpu_shares"] == {(): 512}
    periods = values["container_cpu_cfs_periods_total"][()]
    assert periods >= values["container_cpu_cfs_throttled_periods_total"][()]


def throttled(
    values: dict[str, dict[tuple[str, ...], int]],
) -> dict[str, dict[tuple[str, ...], int]] | None:
    return values if values["container_cpu_cfs_throttled_seconds_total"][()] >= 1 else None


def test_a_child_killed_for_lack_of_memory_is_counted(node: Node, images: Images) -> None:
    pod = node.run_pod("oom")
    container = node.run_container(
        pod,
        images["busybox"],
        command="sh -c 'x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done'; echo killed; sleep 600",
        resources={"memory_limit_in_bytes": 32 * MEBIBYTE},
    )
    node.wait_log(container, "killed")
    values = of_container(node, pod)
    assert values["container_oom_events_total"] == {(): 1}
    # Newer kernels do not count it in version 1, and say 0.
    assert values["container_memory_failcnt"][()] > 0 or not IS_V2
    assert values["container_spec_memory_limit_bytes"] == {(): 32 * MEBIBYTE}
    if "container_memory_max_usage_bytes" in values:  # Linux 5.19, with version 2
        assert values["container_memory_max_usage_bytes"][()] > 16 * MEBIBYTE


def test_a_pod_s_own_metrics_are_of_its_network_and_its_group(node: Node, images: Images) -> None:
    pod = node.run_pod("own")
    container = node.run_container(pod, images["busybox"], command=["sleep", "600"])
    node.exec(container, "ping", "-c", "2", "-i", "0.1", node.pod_ip(pod))
    shown = read(node, pod)
    values = by_name(shown.metrics)
    assert set(values["container_network_receive_bytes_total"]) == {("eth0",)}
    assert values["container_network_transmit_errors_total"] == {("eth0",): 0}
    used = values["container_memory_usage_bytes"][()]
    assert used >= by_name(shown.container_metrics[0].metrics)["container_memory_rss"][()]
    assert not shown.metrics[0].label_values[0], "a container's label on what is the pod's"


@pytest.mark.parametrize("number", [0, 3])
def test_the_stream_has_every_pod_and_the_list_none_that_is_stopped(
    number: int, node: Node, images: Images
) -> None:
    pods = [node.run_pod(f"pod-{one}") for one in range(number)]
    stopped = node.run_pod("stopped")
    node.stop_pod(stopped)
    stream = node.runtime.StreamPodSandboxMetrics(cri.StreamPodSandboxMetricsRequest())
    found = [one.pod_sandbox_id for message in stream for one in message.pod_sandbox_metrics]
    assert sorted(found) == sorted(pods)
