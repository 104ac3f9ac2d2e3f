# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest
from pycri.model.container import Device
from pycri.model.plan import MakeDevice, Step
from pycri.plan.devices import HostDevice, plan_device_rules, plan_devices


def node(path: str, minor: int = 1, **changes: int) -> HostDevice:
    return HostDevice(path=path, kind="c", major=226, minor=minor, **changes)


def nodes(steps: tuple[Step, ...]) -> dict[str, MakeDevice]:
    found = [step for step in steps if isinstance(step, MakeDevice)]
    assert len({step.path for step in found}) == len(found)
    return {step.path: step for step in found}


def test_a_requested_device_keeps_the_hosts_mode_and_owner() -> None:
    asked = (Device(host_path="/dev/a", container_path="/dev/b", permissions="r"),)
    made = nodes(plan_devices(asked, (node("/dev/a", mode=0o660, gid=44),), privileged=False))
    assert made["/dev/b"] == MakeDevice(
        path="/dev/b", kind="c", major=226, minor=1, mode=0o660, gid=44
    )
    assert "/dev/a" not in made


def test_a_requested_folder_brings_all_its_devices() -> None:
    asked = (Device(host_path="/dev/dri", container_path="/dev/gpu/", permissions="rw"),)
    host = (node("/dev/dri/card0", 0), node("/dev/dri/by/x", 1), node("/dev/driver", 2))
    assert set(nodes(plan_devices(asked, host, privileged=False))) >= {
        "/dev/gpu/card0",
        "/dev/gpu/by/x",
    }
    rules = plan_device_rules(asked, host, privileged=False)
    assert [str(rule) for rule in rules[-2:]] == ["c 226:0 rw", "c 226:1 rw"]


def test_a_requested_device_takes_the_place_of_a_default_one() -> None:
    asked = (
        Device(host_path="/dev/a", container_path="/dev/null", permissions="rwm"),
        Device(host_path="/dev/a", container_path="/dev/core", permissions="rwm"),
    )
    steps = plan_devices(asked, (node("/dev/a"),), privileged=False)
    assert nodes(steps)["/dev/null"].major == 226
    assert [str(step) for step in steps if "/dev/core" in str(step)] == [
        "device /dev/core c 226:1 0666"
    ]


def test_no_container_path_means_that_of_the_host() -> None:
    asked = (Device(host_path="/dev/a", container_path="", permissions="r"),)
    assert "/dev/a" in nodes(plan_devices(asked, (node("/dev/a"),), privileged=False))


def test_a_path_without_a_device_is_refused() -> None:
    asked = (Device(host_path="/dev/none", container_path="/dev/x", permissions="r"),)
    for plan in (plan_devices, plan_device_rules):
        with pytest.raises(InvalidRequest) as caught:
            plan(asked, (node("/dev/a"),), privileged=False)
        assert caught.value.field == "config.devices[0].host_path"


def test_a_privileged_container_has_the_hosts_devices_but_ptys_and_shm_of_its_own() -> None:
    host = tuple(node(f"/dev/{name}") for name in ("sda", "pts/3", "ptmx", "console", "shm/x"))
    steps = plan_devices((), (*host, node("/srv/odd")), privileged=True)
    added = set(nodes(steps)) - set(nodes(plan_devices((), (), privileged=False)))
    assert added == {"/dev/sda"}
    assert [str(rule) for rule in plan_device_rules((), host, privileged=True)] == ["a *:* rwm"]


def test_a_rule_is_listed_once() -> None:
    asked = tuple(
        Device(host_path="/dev/a", container_path=path, permissions="r") for path in ("/x", "/y")
    )
    rules = plan_device_rules(asked, (node("/dev/a"),), privileged=False)
    assert len(rules) == len(set(rules))


def test_a_folder_may_be_written_with_a_slash_at_its_end() -> None:
    asked = (Device(host_path="/dev/dri/", container_path="/dev/dri", permissions="r"),)
    made = nodes(plan_devices(asked, (node("/dev/dri//card0"),), privileged=False))
    assert "/dev/dri/card0" in made
