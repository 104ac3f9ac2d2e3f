# SPDX-License-Identifier: Apache-2.0
"""What attacks need: images that lie, and a folder of the host that must stay as it is."""

from pathlib import Path
from typing import Any

import grpc

from tests.world.daemon import Node
from tests.world.images import PATH, busybox_layer
from tests.world.oci import Layer, build_image
from tests.world.registry import Registry

SECRET = "the host's secret\n"


class Canary:
    """A folder of the host with one file, `secret`, that no container may read or change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret"
        folder.mkdir()
        self.secret.write_text(SECRET)
        self._before = self._look()

    def check(self) -> None:
        """Fail if anything in the folder has changed."""
        assert self._look() == self._before
        assert self.secret.read_text() == SECRET

    def _look(self) -> list[tuple[str, int, int, int]]:
        found = [self.folder, *sorted(self.folder.rglob("*"))]
        states = [(str(path), path.lstat()) for path in found]
        return [(path, state.st_mode, state.st_mtime_ns, state.st_ino) for path, state in states]


def push_image(
    registry: Registry, name: str, layer: Layer, *, base: bool = True, **settings: Any
) -> str:
    """Push busybox with `layer` above it and return the reference. settings: of the config."""
    layers = [busybox_layer()] if base else []
    image = build_image([*layers, layer.tar()], {"Env": [f"PATH={PATH}"]} | settings)
    registry.push(image, f"hostile/{name}")
    return registry.reference(f"hostile/{name}")


def try_to_end(node: Node, pod: str, image: str, **words: Any) -> tuple[bool, str]:
    """Run a container to its end. Returns whether it could be started, and its output or why not.

    Only what is refused in an orderly way counts: another failure of the call is raised.
    """
    try:
        container = node.run_container(pod, image, **words)
    except grpc.RpcError as error:
        orderly = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
        assert error.code() in orderly, error
        return False, str(error.details())
    node.wait_exited(container)
    return True, "".join(line.content + "\n" for line in node.log(container))
