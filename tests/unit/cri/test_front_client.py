# SPDX-License-Identifier: Apache-2.0
"""What the front is told of containers."""

from pycri.cri.encode.records import (
    encode_container,
    encode_container_info,
    encode_container_status,
)
from pycri.cri.front_client import without_what_is_not_shown
from pycri.model.cdi import DeviceEdits
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId, Digest, ImageId, PodId
from pycri.model.image import ImageConfig
from pycri.model.security import User

SECRET = b"hunter2"

RECORD = ContainerRecord(
    id=ContainerId("c" * 64),
    pod_id=PodId("a" * 64),
    spec=ContainerSpec(
        metadata=ContainerMetadata(name="app", attempt=2),
        image=ImageSpec(image="app:1", user_specified_image="app"),
        env=(("PASSWORD", SECRET),),
        labels={"a": "b"},
        annotations={"c": "d"},
    ),
    image_id=ImageId("sha256:" + "e" * 64),
    image_layers=(Digest("sha256:" + "f" * 64),),
    image_config=ImageConfig(env=("TOKEN=hunter2",)),
    device_edits=DeviceEdits(env=(("TOKEN", SECRET),)),
    seccomp_text=b"{}",
    user=User(uid=5, gid=6, groups=(7,)),
    stop_signal=10,
    cgroup="/pods/c",
    log_path="/log",
    created_ns=1,
    started_ns=2,
    pid=77,
)


def test_lists_and_statuses_are_the_same_without_what_they_do_not_show() -> None:
    less = without_what_is_not_shown(RECORD)
    assert encode_container(less) == encode_container(RECORD)
    assert encode_container_status(less) == encode_container_status(RECORD)
    assert encode_container_info(less) == encode_container_info(RECORD)


def test_environments_stay_in_the_daemon() -> None:
    assert "hunter2" in repr(RECORD)
    assert "hunter2" not in repr(without_what_is_not_shown(RECORD))
