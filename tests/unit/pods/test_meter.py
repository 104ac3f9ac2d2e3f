# SPDX-License-Identifier: Apache-2.0
"""Rates from samples, and a pod's network from the host's end of its link."""

import msgspec

from pycri.model.ids import PodId
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodMetadata, PodRecord, PodSpec
from pycri.model.stats import InterfaceCounters
from pycri.pods.meter import CpuRates, pod_network

SECOND = 1_000_000_000
HOST_END = InterfaceCounters(
    name="pc0",
    rx_bytes=1, rx_packets=2, rx_errors=3, rx_dropped=4,
    tx_bytes=5, tx_packets=6, tx_errors=7, tx_dropped=8,
)  # fmt: skip


def test_a_rate_is_over_the_time_since_the_last_sample() -> None:
    rates = CpuRates()
    assert rates.rate("c", 0, 0) is None
    rates.sample("c", 0, 0)
    rates.sample("c", 10 * SECOND, 4 * SECOND)
    assert rates.rate("c", 20 * SECOND, 9 * SECOND) == SECOND // 2


def test_a_sample_too_fresh_is_passed_over_for_the_one_before() -> None:
    rates = CpuRates()
    rates.sample("c", 0, 0)
    rates.sample("c", 10 * SECOND, 4 * SECOND)
    assert rates.rate("c", 10 * SECOND + 1, 5 * SECOND) == 5 * SECOND**2 // (10 * SECOND + 1)


def test_old_samples_make_no_rate_and_a_counter_that_fell_makes_0() -> None:
    rates = CpuRates()
    rates.sample("c", 0, 9)
    assert rates.rate("c", 61 * SECOND, 10) is None
    assert rates.rate("c", 5 * SECOND, 3) == 0


def test_samples_of_what_is_gone_are_forgotten() -> None:
    rates = CpuRates()
    rates.sample("a", 0, 0)
    rates.sample("b", 0, 0)
    rates.keep_only(["b", "c"])
    assert rates.rate("a", 5 * SECOND, 5) is None
    assert rates.rate("b", 5 * SECOND, 5) == 1


def pod(*interfaces: Interface) -> PodRecord:
    spec = PodSpec(metadata=PodMetadata(name="n", uid="u", namespace="s"))
    attachment = Attachment(interfaces=interfaces) if interfaces else None
    return PodRecord(id=PodId("p"), spec=spec, created_ns=1, attachment=attachment)


def nothing_inside() -> dict[str, InterfaceCounters]:
    return {}


def test_what_the_host_s_end_sent_the_pod_received() -> None:
    eth0 = Interface(name="eth0", host_interface="pc0")
    network = pod_network(pod(eth0), {"pc0": HOST_END}, nothing_inside)
    assert network is not None
    assert msgspec.structs.astuple(network.default) == ("eth0", 5, 6, 7, 8, 1, 2, 3, 4)
    assert network.others == ()
    assert pod_network(pod(eth0), {}, nothing_inside) is None
    assert pod_network(pod(), {"pc0": HOST_END}, nothing_inside) is None


def test_an_interface_without_a_host_s_end_is_counted_inside() -> None:
    eth0 = Interface(name="eth0", host_interface="pc0")
    inside = {"macvlan0": msgspec.structs.replace(HOST_END, name="macvlan0")}
    both = pod_network(pod(eth0, Interface(name="macvlan0")), {"pc0": HOST_END}, lambda: inside)
    assert both is not None
    assert both.default.name == "eth0"
    assert both.others == (inside["macvlan0"],)
    assert pod_network(pod(Interface(name="macvlan0")), {}, nothing_inside) is None
