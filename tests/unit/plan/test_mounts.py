# SPDX-License-Identifier: Apache-2.0
import pytest

from pycri.errors import InvalidRequest, RecursiveReadOnlyUnsupported
from pycri.model.container import ImageSpec, Mount, Propagation
from pycri.model.image import ImageConfig
from pycri.model.plan import (
    BindMount,
    ContainerPlan,
    MakeDirectory,
    MountFilesystem,
    MountImage,
    ReadOnlyRoot,
    WritablePath,
)
from pycri.model.security import ContainerSecurity
from pycri.plan.container import plan_container
from pycri.plan.mounts import VolumeLayers, clean_path, is_beneath
from tests.unit.plan.samples import container_inputs, container_spec, host_v1, host_v2


def plan_with(*mounts: Mount, volumes: tuple[str, ...] = (), version: int = 2) -> ContainerPlan:
    host = host_v2() if version == 2 else host_v1()
    image = ImageConfig(cmd=("x",), volumes=volumes)
    return plan_container(
        container_inputs(spec=container_spec(mounts=mounts), image=image, host=host)
    )


def mount(path: str, source: str = "/srv/x", **changes: object) -> Mount:
    return Mount(container_path=path, host_path=source, **changes)  # type: ignore[arg-type]


def binds(plan: ContainerPlan) -> dict[str, BindMount]:
    return {step.target: step for step in plan.steps if isinstance(step, BindMount)}


@pytest.mark.parametrize(
    ("path", "clean"),
    [("", "/"), ("/", "/"), ("//a", "/a"), ("a/b", "/a/b"), ("/a/../../b/./", "/b"), ("/..", "/")],
)
def test_paths_are_compared_clean(path: str, clean: str) -> None:
    assert clean_path(path) == clean


def test_beneath_goes_by_whole_names() -> None:
    assert is_beneath("/dev", "/dev")
    assert is_beneath("/dev/x", "/dev")
    assert is_beneath("/dev", "/")
    assert not is_beneath("/device", "/dev")


def test_shallow_mounts_come_before_deep_ones_and_else_keep_their_order() -> None:
    plan = plan_with(mount("/z/b/c"), mount("/z"), mount("/a"), mount("/z/b"))
    asked = [target for target in binds(plan) if target.startswith(("/z", "/a"))]
    assert asked == ["/z", "/a", "/z/b", "/z/b/c"]


def test_a_mount_of_the_request_takes_the_place_of_the_pods_file() -> None:
    assert binds(plan_with(mount("/etc//hosts", "/kubelet/hosts")))["/etc/hosts"].source == (
        "/kubelet/hosts"
    )
    assert "/etc/hostname" in binds(plan_with(mount("/etc")))


def test_the_hosts_dev_leaves_nothing_of_ours_in_it() -> None:
    steps = [str(step) for step in plan_with(mount("/dev", "/dev")).steps if "/dev" in str(step)]
    assert steps == ["bind /dev -> /dev (private)"]


@pytest.mark.parametrize("version", [1, 2])
def test_a_mount_over_sys_covers_the_control_groups_too(version: int) -> None:
    steps = [str(step) for step in plan_with(mount("/sys", "/sys"), version=version).steps]
    assert [step for step in steps if "/sys" in step] == ["bind /sys -> /sys (private)"]


def test_read_only_and_propagation_are_as_asked() -> None:
    plan = plan_with(
        mount("/ro", readonly=True),
        mount("/rro", readonly=True, recursive_read_only=True),
        mount("/slave", propagation=Propagation.HOST_TO_CONTAINER),
        mount("/shared", propagation=Propagation.BIDIRECTIONAL),
    )
    found = binds(plan)
    assert found["/ro"].attributes == ("ro",)
    assert found["/rro"].attributes == ("rro",)
    assert found["/slave"].propagation == "slave"
    assert found["/shared"].propagation == "shared"
    assert all(found[path].create_source for path in ("/ro", "/rro", "/slave", "/shared"))


@pytest.mark.parametrize(
    "wrong",
    [
        mount("/x", recursive_read_only=True),
        mount(
            "/x",
            readonly=True,
            recursive_read_only=True,
            propagation=Propagation.HOST_TO_CONTAINER,
        ),
    ],
)
def test_recursive_read_only_needs_read_only_and_private(wrong: Mount) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_with(mount("/ok"), wrong)
    assert caught.value.field == "config.mounts[1].recursive_read_only"


def test_a_mount_over_the_root_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_with(mount("/a/.."))
    assert caught.value.field == "config.mounts[0].container_path"


def test_the_later_of_two_mounts_at_one_path_is_seen() -> None:
    steps = [s for s in plan_with(mount("/x", "/1"), mount("//x/", "/2")).steps if "/x" in str(s)]
    assert [str(step) for step in steps] == ["bind /1 -> /x (private)", "bind /2 -> /x (private)"]


@pytest.mark.parametrize(
    "path", ["/proc/1", "/proc/self/attr", "/a/../proc/sys", "/proc/meminfo/x"]
)
def test_a_mount_inside_proc_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_with(mount("/ok"), mount(path))
    assert caught.value.field == "config.mounts[1].container_path"


@pytest.mark.parametrize("path", ["/proc", "/proc/meminfo", "/proc/net/dev", "/processes"])
def test_proc_itself_and_files_that_lxcfs_replaces_may_be_mounted(path: str) -> None:
    assert path in binds(plan_with(mount(path)))


@pytest.mark.parametrize(
    ("options", "attributes"),
    [
        (("noexec", "nodev", "nosuid"), ("noexec", "nodev", "nosuid")),
        (("noexec", "exec"), ("exec",)),
        (("suid", "nosuid"), ("nosuid",)),
    ],
)
def test_of_an_option_and_its_opposite_the_later_one_counts(
    options: tuple[str, ...], attributes: tuple[str, ...]
) -> None:
    plan = plan_with(mount("/a", options=options), mount("/b", options=options, readonly=True))
    assert binds(plan)["/a"].attributes == attributes
    assert binds(plan)["/b"].attributes == ("ro", *attributes)


def test_an_image_is_mounted_read_only_in_its_turn() -> None:
    image = Mount(
        container_path="/a/b",
        host_path="",
        image=ImageSpec(image="x"),
        image_sub_path="/etc/",
        readonly=True,
        options=("noexec",),
    )
    spec = container_spec(mounts=(mount("/a/b/c"), image, mount("/a")))
    volumes = VolumeLayers(layers={1: ("/layers/2", "/layers/1")}, empty="/empty")
    steps = plan_container(container_inputs(spec=spec, volumes=volumes)).steps
    assert [str(step) for step in steps if "-> /a" in str(step)] == [
        "bind /srv/x -> /a (private)",
        "image /etc of 2 layers -> /a/b (ro,noexec)",
        "bind /srv/x -> /a/b/c (private)",
    ]
    step = next(step for step in steps if isinstance(step, MountImage))
    assert (step.layers, step.empty) == (("/layers/2", "/layers/1"), "/empty")


def test_recursive_read_only_needs_a_kernel_that_has_it() -> None:
    asked = mount("/x", readonly=True, recursive_read_only=True)
    inputs = container_inputs(spec=container_spec(mounts=(asked,)), host=host_v2(kernel=(5, 11)))
    with pytest.raises(RecursiveReadOnlyUnsupported, match=r"config.mounts\[0\].*this is 5.11"):
        plan_container(inputs)


def test_volumes_of_the_image_are_folders_of_the_writable_layer_unless_mounted() -> None:
    plan = plan_with(mount("/data"), volumes=("/var/lib/db", "data", "/cache/", "/cache", "/"))
    made = [step.path for step in plan.steps if isinstance(step, MakeDirectory)]
    assert made == ["/cache", "/var/lib/db"]
    assert binds(plan)["/data"].source == "/srv/x"


def test_volumes_of_the_image_stay_writable_below_a_read_only_root() -> None:
    spec = container_spec(security=ContainerSecurity(readonly_rootfs=True))
    image = ImageConfig(cmd=("x",), volumes=("/cache",))
    steps = plan_container(container_inputs(spec=spec, image=image)).steps
    assert WritablePath(path="/cache") in steps
    assert steps[-1] == ReadOnlyRoot()


def test_control_groups_mounted_together_are_found_by_each_name() -> None:
    mounts = {"cpu,cpuacct": "/cg/cpu", "memory": "/cg/memory", "name=systemd": "/cg/systemd"}
    plan = plan_container(container_inputs(host=host_v1(cgroup1_mounts=mounts)))
    assert [str(step) for step in plan.steps if str(step).startswith("symlink /sys")] == [
        "symlink /sys/fs/cgroup/cpuacct -> cpu"
    ]


def test_every_kernel_file_system_but_dev_is_closed_to_programs() -> None:
    for step in plan_with().steps:
        if isinstance(step, MountFilesystem):
            assert "nosuid" in step.attributes
            assert "noexec" in step.attributes or step.target == "/dev"
