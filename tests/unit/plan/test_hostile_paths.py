# SPDX-License-Identifier: Apache-2.0
"""Whatever paths a request and an image name: a plan, or a named error; and no path in the plan
that climbs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.container import decode_container_spec
from pycri.errors import PycriError
from pycri.model.container import ContainerSpec, Device, Mount, Propagation
from pycri.model.host import HostFacts
from pycri.model.image import ImageConfig
from pycri.model.plan import BindMount, ContainerPlan, Step
from pycri.model.security import ContainerSecurity, NamespaceMode, NamespaceModes
from pycri.plan.container import ContainerInputs, plan_container
from pycri.plan.devices import HostDevice
from pycri.plan.mounts import clean_path, is_beneath
from pycri.plan.oci import Bundle, render_config
from tests.unit.plan.samples import container_inputs, container_spec, host_v1, host_v2, pod_spec

NAMES = ["", ".", "..", "...", "a", "b", "proc", "sys", "dev", "fs", "cgroup", "self", "fd", "etc"]
NAMES += ["hosts", "null", "shm", "pts", "console", "a b", "\\040", "é", "x" * 300]
PATHS = st.lists(st.sampled_from(NAMES) | st.text(max_size=3), max_size=6).map(
    lambda names: "/" + "/".join(names)
)
HOSTS = st.sampled_from([host_v1(), host_v2()])
OWN_PID = NamespaceModes(pid=NamespaceMode.CONTAINER)
FUSE = HostDevice(path="/dev/fuse", kind="c", major=10, minor=229)

MOUNTS = st.builds(
    Mount,
    container_path=PATHS,
    host_path=PATHS,
    readonly=st.booleans(),
    recursive_read_only=st.booleans(),
    propagation=st.sampled_from(Propagation),
)
DEVICES = st.builds(
    Device, container_path=PATHS, host_path=PATHS | st.just("/dev/fuse"), permissions=st.just("rw")
)
SECURITY = st.builds(
    ContainerSecurity,
    namespaces=st.just(OWN_PID),
    privileged=st.booleans(),
    readonly_rootfs=st.booleans(),
    masked_paths=st.lists(PATHS, max_size=3).map(tuple),
    readonly_paths=st.lists(PATHS, max_size=3).map(tuple),
)


def target(step: Step) -> str:
    """Return where in the container a step takes place."""
    return str(getattr(step, "target", None) or getattr(step, "path", "/"))


def check_paths(plan: ContainerPlan) -> None:
    for step in plan.steps:
        path = target(step)
        assert path.startswith("/"), step
        assert ".." not in path.split("/"), step
    assert ".." not in plan.process.cwd.split("/")


def plan_or_refuse(inputs: ContainerInputs) -> ContainerPlan | None:
    try:
        plan = plan_container(inputs)
        render_config(plan, Bundle(rootfs="/root", cgroup="/group"))
    except PycriError:
        return None
    return plan


@given(
    st.lists(MOUNTS, max_size=5), st.lists(DEVICES, max_size=2), SECURITY, PATHS, HOSTS,
    st.lists(PATHS | st.text(max_size=5), max_size=3),
)  # fmt: skip
def test_no_list_of_mounts_makes_a_plan_that_climbs(
    mounts: list[Mount],
    devices: list[Device],
    security: ContainerSecurity,
    working_dir: str,
    host: HostFacts,
    volumes: list[str],
) -> None:
    spec = container_spec(
        mounts=tuple(mounts), devices=tuple(devices), security=security, working_dir=working_dir
    )
    plan = plan_or_refuse(
        container_inputs(
            pod=pod_spec(namespaces=OWN_PID, privileged=True),
            spec=spec,
            image=ImageConfig(cmd=("x",), volumes=tuple(volumes), working_dir=working_dir),
            host=host,
            host_devices=(FUSE,),
        )
    )
    if plan is not None:
        check_paths(plan)
        check_order(plan, spec)


def check_order(plan: ContainerPlan, spec: ContainerSpec) -> None:
    """A mount never hides one that was asked for below it."""
    asked = {clean_path(mount.container_path) for mount in spec.mounts}
    made = [step.target for step in plan.steps if isinstance(step, BindMount)]
    made = [path for path in made if path in asked]
    for index, path in enumerate(made):
        assert not any(is_beneath(path, later) and path != later for later in made[index + 1 :])


@pytest.mark.parametrize("host", [host_v1(), host_v2()], ids=["v1", "v2"])
@given(st.data())
def test_what_the_decoder_lets_through_makes_a_plan_or_a_named_error(
    host: HostFacts, data: st.DataObject
) -> None:
    words: dict[str, Any] = {
        "metadata": {"name": "c"},
        "image": {"image": "busybox"},
        "working_dir": data.draw(PATHS),
        "log_path": data.draw(PATHS).lstrip("/"),
        "command": ["x"],
        "mounts": [
            {
                "container_path": data.draw(PATHS),
                "host_path": data.draw(PATHS),
                "readonly": data.draw(st.booleans()),
                "propagation": data.draw(st.integers(0, 3)),
            }
            for _ in range(data.draw(st.integers(0, 4)))
        ],
    }
    context = {name: data.draw(st.lists(PATHS)) for name in ("masked_paths", "readonly_paths")}
    request = pb.CreateContainerRequest(config=pb.ContainerConfig(**words))
    request.config.linux.security_context.masked_paths.extend(context["masked_paths"])
    request.config.linux.security_context.readonly_paths.extend(context["readonly_paths"])
    try:
        spec = decode_container_spec(request)
    except PycriError:
        return
    pod = pod_spec(namespaces=OWN_PID)
    plan = plan_or_refuse(container_inputs(pod=pod, spec=spec, host=host))
    if plan is not None:
        check_paths(plan)
        assert plan.log_path == "" or is_beneath(clean_path(plan.log_path), pod.log_directory)
