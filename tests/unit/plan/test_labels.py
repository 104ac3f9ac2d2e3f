# SPDX-License-Identifier: Apache-2.0
"""SELinux labels: whose counts, and when none does."""

import pytest

from pycri.errors import Unsupported
from pycri.model.security import ContainerSecurity
from pycri.plan.container import plan_container
from pycri.plan.sandbox import plan_sandbox
from tests.unit.plan.samples import POD_ID, container_inputs, host_v2, pod_paths, pod_spec

OWN = ContainerSecurity(selinux_label="u:r:own:s0")
POD = pod_spec(selinux_label="u:r:pod:s0", privileged=True)
WITH = host_v2(selinux=True)
PATHS = pod_paths(POD)


def test_a_container_has_its_own_label_or_its_pod_s() -> None:
    own = plan_container(container_inputs(security=OWN, pod=POD, host=WITH))
    assert own.process.selinux_label == "u:r:own:s0"
    pods = plan_container(container_inputs(pod=POD, host=WITH))
    assert pods.process.selinux_label == "u:r:pod:s0"


def test_a_privileged_container_has_none() -> None:
    privileged = ContainerSecurity(selinux_label="u:r:own:s0", privileged=True)
    plan = plan_container(container_inputs(security=privileged, pod=POD, host=WITH))
    assert plan.process.selinux_label == ""


def test_a_label_is_refused_on_a_node_without_selinux() -> None:
    field = "config.linux.security_context.selinux_options"
    with pytest.raises(Unsupported, match=field):
        plan_container(container_inputs(security=OWN))
    with pytest.raises(Unsupported, match=field):
        plan_sandbox(POD_ID, pod_spec(selinux_label="u:r:pod:s0"), PATHS, host_v2(), "/pycri")
    plan_sandbox(POD_ID, POD, PATHS, host_v2(), "/pycri")
