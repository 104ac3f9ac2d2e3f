# SPDX-License-Identifier: Apache-2.0
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pycri import errors
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId, Digest, ImageId, PodId
from pycri.model.image import Image, ImageConfig, LayerRow
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodMetadata, PodRecord, PodSpec, Stage
from pycri.model.security import User
from pycri.state import records
from pycri.state.conversions import attachment_with_interfaces
from pycri.state.database import migrate

POD_ID = PodId("a" * 64)
METADATA = PodMetadata(name="web", uid="1234", namespace="default", attempt=2)
POD = PodRecord(
    id=POD_ID,
    spec=PodSpec(metadata=METADATA, labels={"app": "web"}, sysctls={"net.core.somaxconn": "9"}),
    created_ns=1,
    ready_ns=2,
    attachment=Attachment(
        interfaces=(Interface(name="eth0", addresses=("10.88.0.2/16",), host_interface="pc1"),)
    ),
    timeline=(Stage(name="network", start_ns=1, duration_ns=3),),
)
CONTAINER = ContainerRecord(
    id=ContainerId("c" * 64),
    pod_id=POD_ID,
    spec=ContainerSpec(
        metadata=ContainerMetadata(name="nginx"),
        image=ImageSpec(image="nginx:1"),
        env=(("A", b"\xff"),),
    ),
    image_id=ImageId("sha256:" + "1" * 64),
    user=User(uid=33, groups=(4, 5)),
    stop_signal=15,
    cgroup="/pycri/a/c",
    log_path="",
    created_ns=5,
)
IMAGE = Image(
    id=ImageId("sha256:" + "1" * 64),
    tags=("host/nginx:1",),
    layers=(Digest("sha256:" + "2" * 64),),
    size_bytes=7,
    config=ImageConfig(cmd=("nginx",)),
    architecture="amd64",
)


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection, Path(":memory:"))
    yield connection
    connection.close()


def test_every_kind_of_record_comes_back_as_it_was_saved(connection: sqlite3.Connection) -> None:
    layer = LayerRow(digest=Digest("sha256:" + "2" * 64), size_bytes=10, inodes=3)
    records.save_pod(connection, POD)
    records.save_container(connection, CONTAINER)
    records.save_image(connection, IMAGE)
    records.save_layer(connection, layer)
    assert records.load_pods(connection) == [POD]
    assert records.load_containers(connection) == [CONTAINER]
    assert records.load_images(connection) == [IMAGE]
    assert records.load_layers(connection) == [layer]


def test_saving_again_replaces_and_keeps_the_order(connection: sqlite3.Connection) -> None:
    other = msgspec.structs.replace(
        POD, id=PodId("b" * 64), spec=PodSpec(metadata=PodMetadata(name="x", uid="", namespace=""))
    )
    records.save_pod(connection, POD)
    records.save_pod(connection, other)
    stopped = msgspec.structs.replace(POD, stopped_ns=9)
    records.save_pod(connection, stopped)
    assert records.load_pods(connection) == [stopped, other]


def test_deleting_is_final_and_may_be_repeated(connection: sqlite3.Connection) -> None:
    records.save_pod(connection, POD)
    records.save_container(connection, CONTAINER)
    records.save_image(connection, IMAGE)
    for _ in range(2):
        records.delete_pod(connection, POD.id)
        records.delete_container(connection, CONTAINER.id)
        records.delete_image(connection, IMAGE.id)
        records.delete_layer(connection, Digest("sha256:none"))
    assert records.load_pods(connection) == []
    assert records.load_containers(connection) == []
    assert records.load_images(connection) == []


def test_two_pods_cannot_have_one_name(connection: sqlite3.Connection) -> None:
    records.save_pod(connection, POD)
    with pytest.raises(errors.AlreadyExists, match="web_default_1234_2"):
        records.save_pod(connection, msgspec.structs.replace(POD, id=PodId("b" * 64)))


def test_two_containers_of_a_pod_cannot_have_one_name(connection: sqlite3.Connection) -> None:
    records.save_container(connection, CONTAINER)
    second = msgspec.structs.replace(CONTAINER, id=ContainerId("d" * 64))
    with pytest.raises(errors.AlreadyExists, match="nginx"):
        records.save_container(connection, second)
    records.save_container(connection, msgspec.structs.replace(second, pod_id=PodId("b" * 64)))


def test_a_field_that_an_older_record_lacks_has_its_default(
    connection: sqlite3.Connection,
) -> None:
    fields = msgspec.to_builtins(IMAGE)
    del fields["pinned"], fields["tags"]
    blob = msgspec.msgpack.encode(fields)
    connection.execute("INSERT INTO images VALUES (?, ?)", (IMAGE.id, blob))
    (image,) = records.load_images(connection)
    assert image == msgspec.structs.replace(IMAGE, tags=())


@pytest.mark.parametrize("blob", [b"", b"\xff\x00", msgspec.msgpack.encode({"id": "x"})])
def test_a_damaged_record_is_refused_by_name(connection: sqlite3.Connection, blob: bytes) -> None:
    connection.execute("INSERT INTO pods VALUES (?, ?, ?)", (POD_ID, "name", blob))
    with pytest.raises(errors.Unsupported, match=POD_ID):
        records.load_pods(connection)


def test_a_named_fact_is_absent_until_saved_and_then_the_last_one(
    connection: sqlite3.Connection,
) -> None:
    assert records.load_meta(connection, "boot_id") is None
    records.save_meta(connection, "boot_id", "1")
    records.save_meta(connection, "boot_id", "2")
    assert records.load_meta(connection, "boot_id") == "2"


def test_an_attachment_of_the_first_version_becomes_one_interface() -> None:
    record = msgspec.to_builtins(POD)
    record["attachment"] = {
        "address": "10.88.0.2",
        "prefix_length": 16,
        "gateway": "10.88.0.1",
        "host_interface": "pc1",
    }
    converted = attachment_with_interfaces(msgspec.msgpack.encode(record))
    assert msgspec.msgpack.decode(converted, type=PodRecord) == POD
    without = msgspec.msgpack.encode(record | {"attachment": None})
    assert attachment_with_interfaces(without) == without
