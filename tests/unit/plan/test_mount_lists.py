# SPDX-License-Identifier: Apache-2.0
"""Properties of mount lists and CDI files, whatever they hold."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.devices import decode_cdi_devices
from pycri.cri.decode.mounts import decode_mount
from pycri.errors import PycriError
from pycri.model.cdi import CdiSpec
from pycri.model.container import Mount
from pycri.model.plan import PROC_TARGETS, BindMount, MountImage
from pycri.plan.cdi import FoundDevice, check_spec, merge_edits
from pycri.plan.container import plan_container
from pycri.plan.mounts import VolumeLayers, clean_path, is_beneath
from tests.unit.plan.samples import container_inputs, container_spec

NAMES = st.sampled_from(
    ["proc", "self", "dev", "null", "..", ".", "", "etc", "hosts", "a", "ä", "\x00", "\n", "net"]
)
PATHS = st.lists(NAMES, max_size=5).map(lambda names: "/" + "/".join(names)) | st.text(max_size=8)
MESSAGES = st.builds(
    pb.Mount,
    container_path=PATHS,
    host_path=PATHS,
    readonly=st.booleans(),
    recursive_read_only=st.booleans(),
    propagation=st.integers(0, 4),
    image=st.none() | st.builds(pb.ImageSpec, image=st.sampled_from(["", "x", "a b"])),
    image_sub_path=st.just("") | PATHS,
    mount_options=st.lists(st.sampled_from(["noexec", "exec", "dev", "nosuid", "ro", ""])),
)


def decoded(messages: list[pb.Mount]) -> tuple[Mount, ...]:
    """Return those of the mounts that are valid; the others must be refused by name."""
    found = []
    for i, message in enumerate(messages):
        try:
            found.append(decode_mount(message, f"config.mounts[{i}]"))
        except PycriError as error:
            assert f"config.mounts[{i}]." in str(error)
    return tuple(found)


@given(st.lists(MESSAGES, max_size=6))
def test_every_list_of_mounts_is_refused_by_name_or_planned_in_order(
    messages: list[pb.Mount],
) -> None:
    mounts = decoded(messages)
    volumes = VolumeLayers(layers=dict.fromkeys(range(len(mounts)), ("/layer",)), empty="/empty")
    spec = container_spec(mounts=mounts)
    try:
        plan = plan_container(container_inputs(spec=spec, volumes=volumes))
    except PycriError as error:
        assert "config.mounts[" in str(error)
        return
    targets = [step.target for step in plan.steps if isinstance(step, BindMount | MountImage)]
    asked = {clean_path(mount.container_path) for mount in mounts}
    assert asked <= set(targets)
    requested = [target for target in targets if target in asked]
    assert requested == sorted(requested, key=lambda target: target.count("/"))
    for target in requested:
        assert target == clean_path(target) != "/"
        assert target == "/proc" or target in PROC_TARGETS or not is_beneath(target, "/proc")


@given(st.lists(st.text(max_size=20) | st.just("acme.org/gpu=0")), st.text(max_size=40))
def test_every_name_of_a_cdi_device_is_refused_by_name_or_whole(
    names: list[str], annotation: str
) -> None:
    devices = [pb.CDIDevice(name=name) for name in names]
    try:
        found = decode_cdi_devices(devices, {"cdi.k8s.io/x": annotation})
    except PycriError as error:
        assert str(error).startswith(("config.CDI_devices[", "config.annotations["))
    else:
        assert len({device.name for device in found}) == len(found)
        assert all("/" in device.name and "=" in device.name for device in found)


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.text(max_size=6) | PATHS,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["env", "deviceNodes", "mounts", "hooks", "additionalGids", "intelRdt", "path", "type"]
)
EDITS = st.dictionaries(KEYS, VALUES, max_size=3) | st.fixed_dictionaries(
    {},
    optional={
        "env": st.lists(st.text(max_size=6) | st.just("A=b")),
        "deviceNodes": st.lists(
            st.fixed_dictionaries(
                {"path": PATHS},
                optional={
                    "type": st.sampled_from(["b", "c", "u", "p", ""]),
                    "major": st.integers(-1, 300),
                    "permissions": st.sampled_from(["", "r", "rwm", "x"]),
                    "fileMode": st.integers(-1, 0o7777),
                },
            )
        ),
        "mounts": st.lists(
            st.fixed_dictionaries(
                {"hostPath": PATHS, "containerPath": PATHS},
                optional={
                    "options": st.lists(st.sampled_from(["ro", "bind", "rslave", "size=1", "x"])),
                    "type": st.sampled_from(["", "bind", "tmpfs", "nfs"]),
                },
            )
        ),
        "additionalGids": st.lists(st.integers(-1, 1 << 33)),
    },
)


@given(EDITS, EDITS)
def test_every_cdi_file_is_refused_or_planned(
    edits: dict[str, Any], shared: dict[str, Any]
) -> None:
    file = {
        "cdiVersion": "0.8.0",
        "kind": "acme.org/gpu",
        "devices": [{"name": "0", "containerEdits": edits}],
        "containerEdits": shared,
    }
    try:
        spec = msgspec.json.decode(msgspec.json.encode(file), type=CdiSpec)
        check_spec(spec)
    except (msgspec.ValidationError, ValueError):
        return
    found = FoundDevice(
        field="config.CDI_devices[0].name", name="x", spec=spec, device=spec.devices[0]
    )
    try:
        merged = merge_edits((found,), {})
        plan = plan_container(container_inputs(device_edits=merged))
    except PycriError as error:
        assert str(error).startswith(found.field)
        return
    targets = {step.target for step in plan.steps if isinstance(step, BindMount)}
    assert {step.target for step in merged.mounts if isinstance(step, BindMount)} <= targets
    for node in merged.nodes:
        assert node.kind in "bc"
        assert set(node.access) <= set("rwm")
        assert 0 <= node.mode <= 0o777
        assert min(node.major, node.minor) >= 0
    assert all(0 <= gid < 1 << 32 for gid in merged.groups)
