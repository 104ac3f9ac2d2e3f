# SPDX-License-Identifier: Apache-2.0
"""The image store while the daemon is killed, and while everybody wants something of it at once."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import grpc
import pytest

from pycri.cri.api import runtime_v1_pb2 as cri
from tests.world import session
from tests.world.daemon import Node, wait_until
from tests.world.images import Images
from tests.world.oci import Image, Layer, build_image, write_layout
from tests.world.registry import Registry

FILES = 1500


@pytest.fixture(scope="module")
def many_files() -> Image:
    """An image of two layers, of so many files that all one does with it takes a while."""
    layers = []
    for number in range(2):
        layer = Layer()
        for folder in range(FILES // 100):
            layer.directory(f"{number}-{folder}")
            for file in range(100):
                layer.file(f"{number}-{folder}/{file}", os.urandom(500))
        layers.append(layer.tar())
    return build_image(layers, {"Cmd": ["/none"]}, compression="")


@pytest.fixture(scope="module")
def many(many_files: Image, registry: Registry) -> str:
    registry.push(many_files, "tests/many")
    return registry.reference("tests/many")


def verb(node: Node, *words: str) -> subprocess.Popen[str]:
    """Start `pycri image WORDS`."""
    command = [sys.executable, "-m", "pycri", "image", *words]
    return subprocess.Popen(
        [*command, "--socket", f"{node.run_dir}/pycri.sock"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=session.environment(),
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def stored(node: Node) -> set[str]:
    """Return the names below the folders of layers and recipes."""
    images = node.state_dir / "images"
    return {
        f"{kind}/{name}" for kind in ("layers", "recipes") for name in os.listdir(images / kind)
    }


def rows(node: Node) -> set[str]:
    """Return the names that the database's layers should have there."""
    file = f"file:{node.state_dir}/pycri.db?mode=ro"
    with closing(sqlite3.connect(file, uri=True)) as database:
        found = [row[0] for row in database.execute("SELECT digest FROM layers")]
    names = [digest.removeprefix("sha256:") for digest in found]
    return {f"{kind}/{name}" for kind in ("layers", "recipes") for name in names}


def wait_consistent(node: Node) -> set[str]:
    """Wait until disk and database agree, and return what there is."""
    wait_until(lambda: stored(node) == rows(node), what="the disk holds what the database says")
    return stored(node)


def remove(node: Node, image: str) -> None:
    node.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=image)), timeout=30)


def assert_whole(node: Node) -> None:
    status, stdout, stderr = finish(verb(node, "check"))
    assert status == 0, stdout + stderr


@pytest.mark.parametrize("delay_s", [0.0, 0.003, 0.02])
def test_a_removal_that_is_cut_short_is_finished_or_has_not_begun(
    delay_s: float, own_node: Node, many: str
) -> None:
    node = own_node
    node.pull(many)
    whole = wait_consistent(node)
    caller = threading.Thread(target=lambda: _ignore(lambda: remove(node, many)))
    caller.start()
    time.sleep(delay_s)  # the instant at which it is killed: any will do
    node.kill("daemon")
    caller.join()
    node.start()
    left = wait_consistent(node)
    listed = finish(verb(node, "ls", "--json"))[1].splitlines()
    assert (len(listed), left) in ((1, whole), (0, set()))
    assert_whole(node)
    node.pull(many)
    assert wait_consistent(node) == whole


def _ignore(call: Callable[[], None]) -> None:
    with suppress(grpc.RpcError):
        call()


def test_the_daemon_answers_before_it_has_removed_what_was_left(own_node: Node, many: str) -> None:
    """Two-phase: a removal is a rename; the files go aside, and after a kill at the next start."""
    node = own_node
    node.pull(many)
    node.stop()
    layers = node.state_dir / "images/layers"
    for number, path in enumerate(sorted(layers.iterdir())):
        path.rename(layers / f".trash-{number}")
    node.start()
    assert not finish(verb(node, "ls"))[1]
    assert wait_consistent(node) == set()


def test_an_import_that_is_killed_leaves_nothing_and_can_be_made_again(
    own_node: Node, many_files: Image, tmp_path: Path
) -> None:
    node = own_node
    write_layout(tmp_path / "layout", many_files, "many:1")
    process = verb(node, "import", str(tmp_path / "layout"))
    wait_until(lambda: any("/.partial-" in name for name in stored(node)), what="a layer comes")
    node.kill("daemon")
    assert finish(process)[0] == 1
    node.start()
    assert wait_consistent(node) == set()
    status, stdout, stderr = finish(verb(node, "import", str(tmp_path / "layout")))
    assert (status, stdout) == (0, f"{many_files.config}\n"), stderr
    assert_whole(node)


def packers(node: Node) -> Iterator[int]:
    """Yield the pack processes of a node."""
    mark = str(node.state_dir).encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            command = path.read_bytes()
            if b"pycri.images.pack" in command and mark in command:
                yield int(path.parent.name)


@pytest.mark.parametrize("folder", [False, True])
def test_an_export_that_is_killed_leaves_no_archive_and_can_be_made_again(
    folder: bool, own_node: Node, many: str, many_files: Image, tmp_path: Path
) -> None:
    node = own_node
    node.pull(many)
    (tmp_path / "out").mkdir()
    target = f"{tmp_path}/out/image" + ("/" if folder else "")
    process = verb(node, "export", target, many)
    wait_until(lambda: any(packers(node)), what="a layer is packed")
    node.kill("daemon")
    assert finish(process)[0] == 1
    assert os.listdir(tmp_path / "out") == (["image"] if folder else [])
    assert not (tmp_path / "out/image/index.json").exists()
    wait_until(lambda: not any(packers(node)), what="the pack process ends")
    node.start()
    assert finish(verb(node, "export", target, many))[0] == 0
    status, stdout, stderr = finish(verb(node, "import", target.rstrip("/"), "again"))
    assert (status, stdout) == (0, f"{many_files.config}\n"), stderr


def test_a_pack_process_that_is_killed_fails_the_export(
    own_node: Node, many: str, tmp_path: Path
) -> None:
    node = own_node
    node.pull(many)
    process = verb(node, "export", str(tmp_path / "image.tar"), many)
    victim = wait_until(lambda: next(packers(node), None), what="a layer is packed")
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    status, _, stderr = finish(process)
    # It may have been done by then.
    assert (status == 1 and "pack a layer" in stderr) or (tmp_path / "image.tar").exists()
    assert set(os.listdir(tmp_path)) <= {"image.tar"}


def repeat(acts: list[Callable[[int], object]], for_s: float) -> list[str]:
    """Do all acts at once, again and again; return the errors that nobody expects."""
    deadline = time.monotonic() + for_s
    unexpected: list[str] = []

    def work(act: Callable[[int], object]) -> None:
        number = 0
        while time.monotonic() < deadline:
            number += 1
            try:
                act(number)
            except grpc.RpcError as error:
                # Only that an image is not there at the moment is an answer.
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    unexpected.append(f"{error.code()}: {error.details()}")

    threads = [threading.Thread(target=work, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return unexpected


def test_pulls_removals_and_creations_at_once_leave_a_store_that_is_whole(
    own_node: Node, images: Images, many: str
) -> None:
    node, layered = own_node, images["layered"]
    pod = node.run_pod("race")

    def create(number: int, name: str) -> None:
        config = node.container_config(f"{name}-{number}", layered, command=["/run.sh"])
        container = node.create_config(pod, config)
        node.start_container(container)
        assert node.wait_exited(container).exit_code == 0
        node.remove_container(container)

    acts: list[Callable[[int], object]] = [
        lambda _: node.pull(layered),
        lambda _: node.pull(images["busybox"]),
        lambda _: node.pull(many),
        lambda _: remove(node, layered),
        lambda _: remove(node, images.image("busybox").config),
        lambda _: remove(node, many),
        lambda number: create(number, "first"),
        lambda number: create(number, "second"),
    ]
    unexpected = repeat(acts, for_s=5)
    assert not unexpected, unexpected[:5]
    node.pull(layered)
    node.pull(many)
    assert_whole(node)
    assert node.run_to_end(pod, layered, command=["/run.sh"]) == "kept\nsecond\nonly\n"
    node.clear()
    for line in finish(verb(node, "ls", "--json"))[1].splitlines():
        remove(node, json.loads(line)["id"])
    assert wait_consistent(node) == set()
