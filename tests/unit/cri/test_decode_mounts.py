# SPDX-License-Identifier: Apache-2.0
"""Mounts and devices of a request, with everything that their fields say about each other."""

from typing import Any

import pytest

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.devices import decode_cdi_devices
from pycri.cri.decode.mounts import decode_mount
from pycri.errors import InvalidRequest
from pycri.model.cdi import CdiName

IMAGE = {"image": {"image": "example.org/data:1"}, "readonly": True, "host_path": ""}


def mount(**fields: Any) -> pb.Mount:
    return pb.Mount(**({"container_path": "/data", "host_path": "/srv/data"} | fields))


def test_an_image_takes_the_place_of_the_hosts_path() -> None:
    found = decode_mount(mount(**IMAGE, image_sub_path="a/b"), "m")
    assert found.image is not None
    assert (found.image.image, found.image_sub_path) == ("example.org/data:1", "a/b")
    assert (found.host_path, found.readonly) == ("", True)


def test_options_keep_their_order() -> None:
    found = decode_mount(mount(mount_options=["noexec", "nodev", "exec"]), "m")
    assert found.options == ("noexec", "nodev", "exec")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({**IMAGE, "readonly": False}, "m.readonly"),
        ({**IMAGE, "host_path": "/srv"}, "m.host_path"),
        ({**IMAGE, "propagation": pb.PROPAGATION_HOST_TO_CONTAINER}, "m.propagation"),
        ({**IMAGE, "image": {"image": "two words"}}, "m.image.image"),
        ({**IMAGE, "image_sub_path": "a\0b"}, "m.image_sub_path"),
        ({"image_sub_path": "a"}, "m.image_sub_path"),
        ({"host_path": ""}, "m.host_path"),
        ({"mount_options": ["nosuid", "noatime"]}, "m.mount_options[1]"),
        ({"mount_options": [""]}, "m.mount_options[0]"),
        ({"recursive_read_only": True}, "m.recursive_read_only"),
        (
            {
                "recursive_read_only": True,
                "readonly": True,
                "propagation": pb.PROPAGATION_BIDIRECTIONAL,
            },
            "m.recursive_read_only",
        ),
    ],
)
def test_what_does_not_go_together_is_named(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_mount(mount(**fields), "m")
    assert caught.value.field == wrong


def test_an_unknown_option_is_quoted() -> None:
    with pytest.raises(InvalidRequest, match="'noatime' is not among noexec, nodev"):
        decode_mount(mount(mount_options=["noatime"]), "m")


def cdi(names: list[str], annotations: dict[str, str] | None = None) -> tuple[CdiName, ...]:
    return decode_cdi_devices([pb.CDIDevice(name=name) for name in names], annotations or {})


def test_cdi_devices_of_field_and_annotations_come_once() -> None:
    found = cdi(
        ["acme.org/gpu=0", "acme.org/gpu=all"],
        {"cdi.k8s.io/plugin": "acme.org/gpu=all,acme.org/nic=eth-1", "other": "not/one=x"},
    )
    assert [(device.name, device.field) for device in found] == [
        ("acme.org/gpu=0", "config.CDI_devices[0].name"),
        ("acme.org/gpu=all", "config.CDI_devices[1].name"),
        ("acme.org/nic=eth-1", 'config.annotations["cdi.k8s.io/plugin"]'),
    ]


@pytest.mark.parametrize(
    "name", ["", "gpu", "acme.org/gpu", "acme.org/gpu=", "/gpu=0", "a/b/c=0", "a/b=0 ", "a/b=-"]
)
def test_a_name_that_is_no_cdi_device_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        cdi(["acme.org/gpu=0", name])
    assert caught.value.field == "config.CDI_devices[1].name"
    with pytest.raises(InvalidRequest) as caught:
        cdi([], {"cdi.k8s.io/x": name})
    assert caught.value.field == 'config.annotations["cdi.k8s.io/x"]'
