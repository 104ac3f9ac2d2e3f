# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.plan.cgroups import cgroup_path, check_cgroup_parent, plan_cgroup, plan_exec_cgroup
from tests.unit.plan.samples import POD_ID, host_v1, host_v2


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        ("", f"/pycri/{POD_ID}/c"),
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1/c"),
        ("kubepods//pod1/", "/kubepods/pod1/c"),
        ("/", "/c"),
        ("kubepods.slice", "/kubepods.slice/c"),
        (
            "kubepods-burstable-pod1.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/c",
        ),
        ("/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice/c"),
        ("-.slice", "/c"),
    ],
)
def test_a_group_lies_below_the_parent_as_its_driver_lays_it_out(
    parent: str, expected: str
) -> None:
    assert cgroup_path(parent, "/pycri", POD_ID, "c") == expected


@pytest.mark.parametrize("parent", ["/kubepods/../..", "..", "a--b.slice", ".slice", "a-.slice"])
def test_a_parent_that_climbs_or_is_no_slice_is_refused(parent: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cgroup_path(parent, "/pycri", POD_ID, "c")
    assert caught.value.field == "config.linux.cgroup_parent"


@pytest.mark.parametrize("parent", ["kubepods.slice", "/kubepods.slice/kubepods-pod1.slice"])
def test_a_slice_is_left_to_a_systemd_that_runs(parent: str) -> None:
    check_cgroup_parent(parent, host_v2())
    check_cgroup_parent("/kubepods/pod1", host_v2(systemd=True))
    with pytest.raises(Unsupported, match=r"^config\.linux\.cgroup_parent: .*cgroupDriver"):
        check_cgroup_parent(parent, host_v2(systemd=True))


def test_version_2_enables_the_controllers_the_host_has() -> None:
    host = host_v2(cgroup_controllers=frozenset(("memory", "cpu", "rdma")))
    plan = plan_cgroup("/pod/c", host)
    assert plan.directories == ("/sys/fs/cgroup/pod/c",)
    assert plan.controllers == ("cpu", "memory")


def test_an_exec_has_a_group_below_its_containers_on_version_2() -> None:
    plan = plan_exec_cgroup("/pod/c", "e" * 64, host_v2())
    assert plan.directories == ("/sys/fs/cgroup/pod/c/exec-eeeeeeeeeeee",)
    assert plan.controllers == ()


def test_an_exec_has_a_freezer_group_of_its_own_on_version_1() -> None:
    plan = plan_exec_cgroup("/pod/c", "e" * 64, host_v1())
    assert plan.nested
    assert plan.directories == ("/sys/fs/cgroup/freezer/pod/c/exec-eeeeeeeeeeee",)
    assert plan.existing == (
        "/sys/fs/cgroup/cpu,cpuacct/pod/c",
        "/sys/fs/cgroup/devices/pod/c",
        "/sys/fs/cgroup/memory/pod/c",
        "/sys/fs/cgroup/systemd/pod/c",
    )
    assert plan.device_rules is None
