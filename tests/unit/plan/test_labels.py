# SPDX-License-Identifier: Apache-2.0
"""SELinux labels: whose counts, when none does, and which files get one."""

import pytest

from pycri.errors import InvalidRequest, Unsupported
from pycri.model.container import Mount
from pycri.model.plan import BindMount, ContainerPlan, MountFilesystem, MountOverlay
from pycri.model.security import ContainerSecurity
from pycri.plan.container import plan_container
from pycri.plan.sandbox import plan_sandbox
from tests.unit.plan.samples import (
    POD_ID,
    container_inputs,
    container_spec,
    host_v2,
    pod_paths,
    pod_spec,
)

OWN = ContainerSecurity(selinux_label="u:r:own:s0:c1,c2")
POD = pod_spec(selinux_label="u:r:pod:s0", privileged=True)
WITH = host_v2(selinux=True)
PATHS = pod_paths(POD)
FILES = "u:object_r:container_file_t:s0:c1,c2"


def labelled_plan(*mounts: Mount) -> ContainerPlan:
    spec = container_spec(security=OWN, mounts=mounts)
    return plan_container(container_inputs(spec=spec, host=WITH))


def test_a_container_has_its_own_label_or_its_pod_s() -> None:
    own = plan_container(container_inputs(security=OWN, pod=POD, host=WITH))
    assert own.process.selinux_label == "u:r:own:s0:c1,c2"
    pods = plan_container(container_inputs(pod=POD, host=WITH))
    assert pods.process.selinux_label == "u:r:pod:s0"


def test_a_privileged_container_has_none() -> None:
    privileged = ContainerSecurity(selinux_label="u:r:own:s0", privileged=True)
    plan = plan_container(container_inputs(security=privileged, pod=POD, host=WITH))
    assert plan.process.selinux_label == ""
    assert "container_file_t" not in str(plan.steps)


def test_a_label_is_refused_on_a_node_without_selinux() -> None:
    field = "config.linux.security_context.selinux_options"
    with pytest.raises(Unsupported, match=field):
        plan_container(container_inputs(security=OWN))
    with pytest.raises(Unsupported, match=field):
        plan_sandbox(POD_ID, pod_spec(selinux_label="u:r:pod:s0"), PATHS, host_v2(), "/pycri")
    plan_sandbox(POD_ID, POD, PATHS, host_v2(), "/pycri")


def test_what_is_the_containers_own_gets_the_label_of_files() -> None:
    plan = labelled_plan()
    overlay = plan.steps[0]
    assert isinstance(overlay, MountOverlay)
    assert overlay.label == FILES
    made = {step.target: step for step in plan.steps if isinstance(step, MountFilesystem)}
    assert {made[target].label for target in ("/dev", "/dev/pts", "/dev/mqueue")} == {FILES}
    assert made["/proc"].label == ""
    binds = {step.target: step.relabel for step in plan.steps if isinstance(step, BindMount)}
    assert binds["/etc/hosts"] == binds["/dev/shm"] == FILES


def test_only_volumes_that_ask_for_it_are_relabelled() -> None:
    plan = labelled_plan(
        Mount(container_path="/own/", host_path="/data/own", selinux_relabel=True),
        Mount(container_path="/other", host_path="/data/other"),
    )
    binds = {step.target: step.relabel for step in plan.steps if isinstance(step, BindMount)}
    assert (binds["/own"], binds["/other"]) == (FILES, "")


@pytest.mark.parametrize("path", ["/", "/etc/", "/var/lib", "/usr/../usr"])
def test_what_the_host_lives_on_keeps_its_labels(path: str) -> None:
    with pytest.raises(InvalidRequest, match=r"config.mounts\[0\].selinux_relabel"):
        labelled_plan(Mount(container_path="/x", host_path=path, selinux_relabel=True))
