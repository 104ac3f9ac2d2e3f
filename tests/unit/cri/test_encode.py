# SPDX-License-Identifier: Apache-2.0
"""Records as answers: what was asked comes back unchanged, what the kubelet needs is there."""

import json

from pycri.cri.api import runtime_v1_pb2 as pb
from pycri.cri.decode.container import decode_container_spec
from pycri.cri.decode.pod import decode_pod_spec
from pycri.cri.encode import records as encode
from pycri.model.container import ContainerRecord
from pycri.model.host import Condition
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.image import FilesystemUsage, Image, ImageConfig
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodRecord, Stage
from pycri.model.security import User

POD = PodId("a" * 64)
CONTAINER = ContainerId("b" * 64)
IMAGE = ImageId("sha256:" + "c" * 64)
STAGES = (Stage(name="network", start_ns=10, duration_ns=5),)


def pod_request() -> pb.RunPodSandboxRequest:
    message = pb.RunPodSandboxRequest(runtime_handler="pycri")
    config = message.config
    config.metadata.name, config.metadata.uid = "web", "u"
    config.metadata.namespace, config.metadata.attempt = "ns", 2
    config.labels["a"] = "b"
    config.annotations["c"] = "d\n"
    options = config.linux.security_context.namespace_options
    options.pid, options.ipc = pb.CONTAINER, pb.NODE
    return message


def pod_record(ready_ns: int | None = 2, stopped_ns: int | None = None) -> PodRecord:
    return PodRecord(
        id=POD,
        spec=decode_pod_spec(pod_request()),
        created_ns=1,
        ready_ns=ready_ns,
        stopped_ns=stopped_ns,
        attachment=Attachment(
            interfaces=(
                Interface(
                    name="eth0",
                    addresses=("10.88.0.2/16", "fd00::2/64"),
                    host_interface="veth0",
                ),
                Interface(name="net1", addresses=("192.0.2.2/24",)),
            )
        ),
        timeline=STAGES,
    )


def container_request() -> pb.CreateContainerRequest:
    message = pb.CreateContainerRequest()
    config = message.config
    config.metadata.name, config.metadata.attempt = "app", 1
    config.image.image = IMAGE
    config.image.user_specified_image = "example.test/app:1"
    config.labels["a"] = "b"
    config.annotations["c"] = "d"
    config.envs.add(key="TOKEN", value=b"hunter2")
    config.stop_signal = pb.SIGNAL_SIGINT
    config.mounts.add(
        container_path="/m",
        host_path="/h",
        readonly=True,
        recursive_read_only=True,
        selinux_relabel=True,
    )
    config.mounts.add(container_path="/n", host_path="/h", propagation=pb.PROPAGATION_BIDIRECTIONAL)
    limits = config.linux.resources
    limits.cpu_period, limits.cpu_quota, limits.cpu_shares = 100_000, 50_000, 512
    limits.memory_limit_in_bytes, limits.memory_swap_limit_in_bytes = 1 << 20, 1 << 21
    limits.oom_score_adj, limits.cpuset_cpus, limits.cpuset_mems = -5, "0-1", "0"
    limits.hugepage_limits.add(page_size="2MB", limit=4 << 20)
    limits.unified["memory.high"] = "max"
    return message


def container_record(**changes: object) -> ContainerRecord:
    given: dict[str, object] = {
        "id": CONTAINER,
        "pod_id": POD,
        "spec": decode_container_spec(container_request()),
        "image_id": IMAGE,
        "user": User(uid=1, gid=2, groups=(3, 4)),
        "stop_signal": 2,
        "cgroup": "/pycri/x",
        "log_path": "/var/log/x",
        "created_ns": 5,
        "timeline": STAGES,
        **changes,
    }
    return ContainerRecord(**given)  # type: ignore[arg-type]


def test_a_pod_comes_back_as_it_was_asked() -> None:
    config = pod_request().config
    record = pod_record()
    for shown in (encode.encode_pod(record), encode.encode_pod_status(record)):
        assert shown.id == POD
        assert shown.metadata == config.metadata
        assert dict(shown.labels) == dict(config.labels)
        assert dict(shown.annotations) == dict(config.annotations)
        assert shown.runtime_handler == "pycri"
        assert shown.created_at == 1
        assert shown.state == pb.SANDBOX_READY
    status = encode.encode_pod_status(record)
    assert status.network.ip == "10.88.0.2"
    assert [a.ip for a in status.network.additional_ips] == ["fd00::2", "192.0.2.2"]
    assert status.linux.namespaces.options == config.linux.security_context.namespace_options


def test_a_stopped_or_unfinished_pod_is_not_ready() -> None:
    assert encode.encode_pod(pod_record(ready_ns=None)).state == pb.SANDBOX_NOTREADY
    assert encode.encode_pod(pod_record(stopped_ns=9)).state == pb.SANDBOX_NOTREADY


def test_a_container_comes_back_as_it_was_asked() -> None:
    config = container_request().config
    record = container_record()
    for shown in (encode.encode_container(record), encode.encode_container_status(record)):
        assert shown.metadata == config.metadata
        assert dict(shown.labels) == dict(config.labels)
        assert dict(shown.annotations) == dict(config.annotations)
        assert shown.image.image == "example.test/app:1"
        assert (shown.image_ref, shown.image_id) == (IMAGE, IMAGE)
        assert shown.state == pb.CONTAINER_CREATED
    status = encode.encode_container_status(record)
    assert list(status.mounts) == list(config.mounts)
    assert status.resources.linux == config.linux.resources
    assert status.stop_signal == pb.SIGNAL_SIGINT
    user = status.user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (1, 2, [3, 4])
    assert (status.started_at, status.finished_at) == (0, 0)


def test_an_ended_container_tells_how() -> None:
    record = container_record(
        started_ns=6, finished_ns=7, exit_code=137, reason="OOMKilled", message="m"
    )
    status = encode.encode_container_status(record)
    assert status.state == pb.CONTAINER_EXITED
    assert (status.created_at, status.started_at, status.finished_at) == (5, 6, 7)
    assert (status.exit_code, status.reason, status.message) == (137, "OOMKilled", "m")


def test_verbose_maps_are_json_with_the_timeline_and_without_the_environment() -> None:
    pod = json.loads(encode.encode_pod_info(pod_record())["info"])
    assert pod["sandboxID"] == POD
    assert pod["network"]["interfaces"][0]["host_interface"] == "veth0"
    assert pod["timeline"] == [{"name": "network", "start_ns": 10, "duration_ns": 5}]
    text = encode.encode_container_info(container_record(pid=42))["info"]
    assert json.loads(text)["pid"] == 42
    assert json.loads(text)["sandboxID"] == POD
    assert "hunter2" not in text


def image(user: str) -> Image:
    return Image(
        id=IMAGE,
        tags=("example.test/app:1",),
        size_bytes=10,
        config=ImageConfig(user=user),
        architecture="amd64",
    )


def test_an_image_shows_a_number_or_a_name_but_not_both() -> None:
    numbered = encode.encode_image(image("1002:5"))
    assert (numbered.uid.value, numbered.username) == (1002, "")
    named = encode.encode_image(image("www-data:www"))
    assert (named.HasField("uid"), named.username) == (False, "www-data")
    empty = encode.encode_image(image(""))
    assert (empty.HasField("uid"), empty.username) == (False, "")
    assert encode.encode_image(image("0")).HasField("uid")


def test_an_image_config_with_a_huge_number_is_no_uid() -> None:
    assert encode.encode_image(image("9" * 30)).username == "9" * 30


def test_verbose_image_map_is_json() -> None:
    info = json.loads(encode.encode_image_info(image("u"))["info"])
    assert info["imageSpec"]["config"]["User"] == "u"


def test_conditions_and_usage_are_carried_over() -> None:
    condition = Condition(type="NetworkReady", status=False, reason="NoBridge", message="gone")
    shown = encode.encode_conditions([condition]).conditions[0]
    assert (shown.type, shown.status, shown.reason, shown.message) == (
        "NetworkReady",
        False,
        "NoBridge",
        "gone",
    )
    usage = encode.encode_filesystem(
        FilesystemUsage(timestamp_ns=1, mountpoint="/v", used_bytes=2, inodes_used=3)
    )
    assert (usage.timestamp, usage.fs_id.mountpoint) == (1, "/v")
    assert (usage.used_bytes.value, usage.inodes_used.value) == (2, 3)
