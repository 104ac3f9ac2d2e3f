# SPDX-License-Identifier: Apache-2.0
"""The verbs about images, as a person at the node uses them: a real daemon, a real registry."""

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world import session
from tests.world.daemon import Node, wait_until
from tests.world.images import Images, build_busybox, layered_layers
from tests.world.oci import Layer, build_image, digest_of
from tests.world.registry import PASSWORD, USERNAME, Registry


def start(node: Node, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pycri", *words, "--socket", f"{node.run_dir}/pycri.sock"]
    environment = session.environment() | options.pop("env", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen(command, env=environment, text=True, **streams)


def run(node: Node, *words: str, **options: Any) -> tuple[int, str, str]:
    """Run a verb; return its exit status, stdout and stderr."""
    process = start(node, *words, **options)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def succeed(node: Node, *words: str, **options: Any) -> str:
    status, stdout, stderr = run(node, *words, **options)
    assert status == 0, stderr
    return stdout


def test_a_pull_tells_a_log_which_layers_have_come(own_node: Node, images: Images) -> None:
    status, stdout, stderr = run(own_node, "pull", images["layered"])
    assert (status, stdout) == (0, images.image("layered").config + "\n")
    lines = sorted(stderr.splitlines())
    assert [line.split()[0] for line in lines] == sorted(
        digest.removeprefix("sha256:")[:12] for digest in images.image("layered").layers
    )
    assert all(re.fullmatch(r"[0-9a-f]{12} +\d+\.\d MB  done", line) for line in lines)


def test_a_pull_shows_a_terminal_a_bar_for_each_layer(own_node: Node, images: Images) -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as terminal:
        process = start(own_node, "pull", images["layered"], stderr=follower, env={"TERM": "linux"})
        os.close(follower)
        shown = b""
        try:
            while piece := terminal.read(4096):
                shown += piece
        except OSError:  # EIO: the other end is closed
            pass
        assert process.communicate()[0] == images.image("layered").config + "\n"
    for digest in images.image("layered").layers:
        assert digest.removeprefix("sha256:")[:12].encode() in shown
    assert b"done" in shown


def test_credentials_are_asked_for_and_used(own_node: Node, tmp_path: Path) -> None:
    with Registry.start(tmp_path, auth=True) as registry:
        registry.push(build_busybox(), "tests/private")
        reference = registry.reference("tests/private")
        status, _, stderr = run(own_node, "pull", reference)
        assert status == 1 and "PERMISSION_DENIED" in stderr
        environment = {"PYCRI_CREDENTIALS": f"{USERNAME}:{PASSWORD}"}
        pulled = succeed(own_node, "pull", reference, "--creds", env=environment)
        assert pulled.startswith("sha256:")
    assert PASSWORD not in own_node.daemon_log()


def layer_folder(node: Node, diff_id: str) -> Path:
    return node.state_dir / "images/layers" / diff_id.removeprefix("sha256:")


def top_layer(node: Node) -> Path:
    """Return the folder of the topmost layer of the image `layered`."""
    return layer_folder(node, digest_of(layered_layers()[-1]))


def spoil(folder: Path) -> None:
    """Do to a file what a power cut does: its name is there, its content is not."""
    os.truncate(folder / "run.sh", 0)


def test_a_broken_layer_is_named_unlisted_and_fetched_again_alone(
    own_node: Node, images: Images
) -> None:
    node = own_node
    node.pull(images["layered"])
    node.pull(images["busybox"])
    assert [line.split()[0] for line in succeed(node, "image", "check").splitlines()] == ["ok"] * 2
    others = {path.name: path.stat().st_ino for path in top_layer(node).parent.iterdir()}
    spoil(top_layer(node))
    status, stdout, _ = run(node, "image", "check")
    assert status == 1 and "'run.sh' is not the file of" in stdout
    assert f"broken    {images.image('layered').config[7:19]}" in stdout
    assert f"ok        {images.image('busybox').config[7:19]}" in stdout
    assert "unlisted" in succeed(node, "image", "check", "--repair")
    assert images["layered"] not in succeed(node, "image", "ls")
    wait_until(lambda: not top_layer(node).exists(), what="the broken layer is gone")
    node.pull(images["layered"])
    assert succeed(node, "image", "check").count("ok  ") == 2
    again = {path.name: path.stat().st_ino for path in top_layer(node).parent.iterdir()}
    assert again.keys() == others.keys()
    assert {name for name in again if again[name] != others[name]} <= {top_layer(node).name}


def test_a_broken_layer_that_a_container_uses_is_named_and_stays(
    own_node: Node, images: Images
) -> None:
    node = own_node
    pod = node.run_pod("user")
    node.create_container(pod, images["layered"])
    spoil(top_layer(node))
    status, stdout, stderr = run(node, "image", "check", "--repair")
    assert status == 1 and "broken" in stdout and "unlisted" not in stdout
    assert "containers use" in stderr
    assert images["layered"] in succeed(node, "image", "ls")
    assert top_layer(node).exists()


def test_a_config_that_is_damaged_is_named(own_node: Node, images: Images) -> None:
    node = own_node
    node.pull(images["busybox"])
    node.stop()
    with sqlite3.connect(node.state_dir / "pycri.db") as database:
        database.execute("UPDATE image_configs SET body = x'7b7d'")
    database.close()
    node.start()
    status, stdout, _ = run(node, "image", "check")
    assert status == 1 and "its config is not what it was" in stdout
    succeed(node, "image", "check", "--repair")
    node.pull(images["busybox"])
    assert succeed(node, "image", "check").startswith("ok")


def test_df_tells_what_a_removal_gives_back(own_node: Node, images: Images) -> None:
    node = own_node
    node.pull(images["layered"])
    node.pull(images["busybox"])
    usage = {
        line["id"]: line
        for line in map(json.loads, succeed(node, "image", "df", "--json").splitlines())
    }
    layered = usage[images.image("layered").config]
    busybox = usage[images.image("busybox").config]
    assert busybox["shared_bytes"] == busybox["size_bytes"] == layered["shared_bytes"]
    assert busybox["reclaimable_bytes"] == 0
    assert layered["reclaimable_bytes"] == layered["size_bytes"] - layered["shared_bytes"] > 0
    before = fs_bytes(node)
    assert before == layered["size_bytes"]
    succeed(node, "image", "rm", images["layered"])
    assert fs_bytes(node) == before - layered["reclaimable_bytes"]
    assert "all layers" in succeed(node, "image", "df").splitlines()[-1]


def fs_bytes(node: Node) -> int:
    (usage,) = node.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
    return int(usage.used_bytes.value)


def test_disk_use_is_what_the_disk_says(own_node: Node, images: Images) -> None:
    """In ImageFsInfo there is no walk over the disk; here there is."""
    node = own_node
    node.pull(images["layered"])
    (usage,) = node.images.ImageFsInfo(cri.ImageFsInfoRequest()).image_filesystems
    layers = list((node.state_dir / "images/layers").iterdir())
    # The folder of a layer itself is not counted.
    paths = [*(node.state_dir / "images/recipes").iterdir()]
    paths += [path for layer in layers for path in layer.iterdir()]
    assert len(layers) == 4
    assert usage.used_bytes.value == du("-B1", *paths)
    assert usage.inodes_used.value == du("--inodes", *paths)


def du(unit: str, *paths: Path) -> int:
    command = ["du", "-s", unit, "--total", *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1].split()[0])


def test_what_one_node_exports_another_runs(
    make_node: Callable[..., Node], images: Images, tmp_path: Path
) -> None:
    first, second = make_node(), make_node()
    image_id = first.pull(images["busybox"])
    succeed(first, "image", "export", str(tmp_path / "image.tar"), images["busybox"])
    assert succeed(second, "image", "import", str(tmp_path / "image.tar")) == f"{image_id}\n"
    pod = second.run_pod("imported")
    assert second.run_to_end(pod, images["busybox"], command="echo runs") == "runs\n"
    succeed(second, "image", "export", f"{tmp_path}/layout/", image_id)
    assert succeed(first, "image", "import", f"{tmp_path}/layout", "copy") == f"{image_id}\n"


def test_a_layer_whose_folder_is_gone_is_fetched_again_after_a_repair(
    own_node: Node, images: Images
) -> None:
    node = own_node
    node.pull(images["layered"])
    shutil.rmtree(top_layer(node))
    status, stdout, _ = run(node, "image", "check", "--repair")
    assert status == 0 and "its folder is missing" in stdout and "unlisted" in stdout
    node.pull(images["layered"])
    assert succeed(node, "image", "check").startswith("ok")


def test_writable_layers_are_counted_beside_the_images(own_node: Node, images: Images) -> None:
    node = own_node
    pod = node.run_pod("writer")
    node.run_container(
        pod, images["busybox"], command="head -c 5000000 /dev/zero >/file; sleep 600"
    )

    def written() -> int:
        answer = node.images.ImageFsInfo(cri.ImageFsInfoRequest())
        (layers,), (upper,) = answer.image_filesystems, answer.container_filesystems
        assert layers.fs_id == upper.fs_id and layers.used_bytes.value < 5_000_000
        return int(upper.used_bytes.value) >= 5_000_000

    wait_until(written, what="the file is counted", timeout_s=60)


def test_annotations_of_a_manifest_are_shown_exported_and_imported(
    own_node: Node, registry: Registry, tmp_path: Path
) -> None:
    node, annotations = own_node, {"org.opencontainers.image.source": "https://code.test/web"}
    built = build_image([Layer().file("a").tar()], {}, annotations=annotations)
    registry.push(built, "tests/annotated")
    reference = registry.reference("tests/annotated")

    def shown() -> dict[str, str]:
        request = cri.ImageStatusRequest(image=cri.ImageSpec(image=reference))
        return dict(node.images.ImageStatus(request).image.spec.annotations)

    node.pull(reference)
    assert shown() == annotations
    succeed(node, "image", "export", f"{tmp_path}/out.tar", reference)
    node.restart()
    assert shown() == annotations
    succeed(node, "image", "rm", reference)
    succeed(node, "image", "import", f"{tmp_path}/out.tar")
    assert shown() == annotations
    # The manifest that was written is another one, with other blobs.
    raw = ["skopeo", "inspect", "--raw", f"oci-archive:{tmp_path}/out.tar"]
    manifest = json.loads(subprocess.run(raw, capture_output=True, check=True).stdout)
    assert manifest["annotations"] == annotations
