# SPDX-License-Identifier: Apache-2.0
"""The images that tests run: built from Debian's packages, pushed to a registry when asked for.

busybox   a shell and its applets, named users and groups
nginx     busybox, and above it nginx-light with its libraries, on port 80 in the foreground
iperf3    busybox, and above it iperf3 with its libraries, a server on port 5201
layered   four layers that overwrite, hide and link each other's files
"""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tests.world import debian
from tests.world.oci import Image, Layer, build_image, build_index, host_architecture, write_layout
from tests.world.registry import Registry

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
www-data:x:33:33:www-data:/srv:/bin/false
kim:x:1000:1000:Kim:/home/kim:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
GROUP = """\
root:x:0:
daemon:x:1:
adm:x:4:kim
www-data:x:33:
audio:x:29:kim
kim:x:1000:
nogroup:x:65534:
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NGINX_CONF = """\
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr;
worker_processes 1;
events {}
http {
    access_log /dev/stdout;
    server {
        listen 80;
        root /srv;
    }
}
"""
INDEX_HTML = "hello from nginx\n"


@cache
def busybox_layer() -> bytes:
    """Return the layer with busybox, the name of each applet, users, and the usual folders."""
    (package,) = debian.unpack(["busybox-static"])
    binary = next(path for path in package.glob("**/bin/busybox"))
    applets = subprocess.run([binary, "--list"], capture_output=True, text=True, check=True).stdout
    layer = Layer()
    for folder in ("bin", "dev", "etc", "home", "proc", "run", "srv", "sys", "usr", "var"):
        layer.directory(folder)
    layer.directory("root", mode=0o700).directory("tmp", mode=0o1777)
    layer.directory("home/kim", uid=1000, gid=1000)
    layer.file("bin/busybox", binary.read_bytes(), mode=0o755)
    for applet in applets.split():
        if applet != "busybox":
            layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", PASSWD).file("etc/group", GROUP)
    return layer.tar()


@cache
def nginx_layer() -> bytes:
    """Return the layer with nginx and the shared objects it loads."""
    packages = ["nginx-light", "nginx", "nginx-common", *debian.list_libraries("nginx")]
    layer = Layer()
    with debian.staged(packages) as tree:
        layer.host_file("usr/sbin/nginx", tree / "usr/sbin/nginx")
        for path, source in debian.find_shared_objects(tree, "usr/sbin/nginx").items():
            layer.host_file(path, source)
        layer.host_file("etc/nginx/mime.types", tree / "etc/nginx/mime.types")
    layer.file("etc/nginx/nginx.conf", NGINX_CONF)
    for folder in ("var/lib/nginx/body", "var/log/nginx/none"):
        layer.parents(folder)
    layer.parents("srv/index.html").file("srv/index.html", INDEX_HTML)
    return layer.tar()


def iperf3_packages() -> list[str]:
    """Return iperf3 and all that it loads."""
    libraries = debian.list_libraries("iperf3")
    deeper = [name for library in libraries for name in debian.list_libraries(library)]
    return ["iperf3", *sorted({*libraries, *deeper})]


@cache
def iperf3_layer() -> bytes:
    """Return the layer with iperf3 and the shared objects it loads."""
    layer = Layer()
    with debian.staged(iperf3_packages()) as tree:
        layer.host_file("usr/bin/iperf3", tree / "usr/bin/iperf3")
        for path, source in debian.find_shared_objects(tree, "usr/bin/iperf3").items():
            layer.host_file(path, source)
    return layer.tar()


LAYERED_SCRIPT = """\
#!/bin/sh
cat /data/kept /data/replaced /fresh/only
"""


@cache
def layered_layers() -> list[bytes]:
    """Return the layers of the image that tries every rule of stacking.

    Seen at the end: /data/{kept,replaced,linked-a,linked-b}, /fresh/only, /setuid, /xattr,
    /as-file (was a directory), /as-directory/inside (was a file), /through -> data.
    Hidden: /data/removed, /gone, /fresh/old.
    """
    lowest = Layer().directory("data").directory("gone").directory("fresh").directory("as-file")
    lowest.file("data/kept", "kept\n", uid=1000, gid=1000, mode=0o640)
    lowest.file("data/replaced", "first\n").file("data/removed", "removed\n")
    lowest.file("gone/inside", "gone\n").file("fresh/old", "old\n").file("as-file/inside", "x")
    lowest.file("as-directory", "was a file\n").symlink("through", "data")
    middle = Layer().directory("data").file("data/replaced", "second\n").whiteout("data/removed")
    middle.whiteout("gone").directory("fresh").opaque("fresh").file("fresh/only", "only\n")
    middle.file("as-file", "is a file\n").directory("as-directory")
    middle.file("as-directory/inside", "inside\n")
    upper = Layer().directory("data").file("data/linked-a", "linked\n")
    upper.hardlink("data/linked-b", "data/linked-a")
    upper.file("setuid", "setuid\n", mode=0o4755, uid=1000)
    upper.file("xattr", "xattr\n", xattrs={"user.colour": "green"})
    upper.fifo("fifo").file("run.sh", LAYERED_SCRIPT, mode=0o755)
    return [busybox_layer(), lowest.tar(), middle.tar(), upper.tar()]


def build_busybox(compression: str = "gzip", **settings: Any) -> Image:
    """Build busybox; `settings` replace parts of the config: Cmd, Entrypoint, User, Env ..."""
    config: dict[str, Any] = {"Cmd": ["/bin/sh"], "Env": [f"PATH={PATH}"]}
    return build_image([busybox_layer()], config | settings, compression=compression)


def build_configured() -> Image:
    """Build busybox with every part of an image's config that a runtime uses."""
    return build_busybox(
        Entrypoint=["/bin/echo", "entry"],
        Cmd=["default", "words"],
        Env=[f"PATH={PATH}", "COLOUR=green", "FROM_IMAGE=yes"],
        WorkingDir="/home/kim/made",
        User="kim",
        StopSignal="SIGUSR1",
        Volumes={"/volume": {}},
        Labels={"team": "tests"},
    )


def build_nginx() -> Image:
    """Build nginx."""
    config = {
        "Entrypoint": ["/usr/sbin/nginx"],
        "Cmd": ["-c", "/etc/nginx/nginx.conf"],
        "Env": [f"PATH={PATH}"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    return build_image([busybox_layer(), nginx_layer()], config)


def build_iperf3() -> Image:
    """Build iperf3."""
    config = {"Entrypoint": ["/usr/bin/iperf3"], "Cmd": ["--server"], "Env": [f"PATH={PATH}"]}
    return build_image([busybox_layer(), iperf3_layer()], config)


def build_layered(compression: str = "gzip", *, docker: bool = False) -> Image:
    """Build the image of many layers."""
    config = {"Cmd": ["/run.sh"], "Env": [f"PATH={PATH}"]}
    return build_image(layered_layers(), config, compression=compression, docker=docker)


def build_platforms(*, docker: bool = False) -> Image:
    """Build an index whose images say in /platform which one was chosen."""
    config = {"Cmd": ["/bin/cat", "/platform"], "Env": [f"PATH={PATH}"]}
    foreign = "s390x"
    return build_index(
        [
            build_image(
                [busybox_layer(), Layer().file("platform", f"{architecture}\n").tar()],
                config,
                docker=docker,
                architecture=architecture,
            )
            for architecture in (foreign, host_architecture())
        ],
        docker=docker,
    )


BUILDERS: dict[str, Callable[[], Image]] = {
    "busybox": build_busybox,
    "busybox:zstd": lambda: build_busybox("zstd"),
    "busybox:plain": lambda: build_busybox(""),
    "configured": build_configured,
    "nginx": build_nginx,
    "iperf3": build_iperf3,
    "layered": build_layered,
    "layered:zstd": lambda: build_layered("zstd"),
    "layered:docker": lambda: build_layered(docker=True),
    "platforms": build_platforms,
    "platforms:docker": lambda: build_platforms(docker=True),
}


class Images:
    """The images above in one registry: `images["busybox"]` is a reference to pull."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._built: dict[str, Image] = {}

    def __getitem__(self, key: str) -> str:
        """Return the reference of an image of BUILDERS, pushed if it is not there yet."""
        name, _, tag = key.partition(":")
        if key not in self._built:
            image = BUILDERS[key]()
            self._registry.push(image, f"tests/{name}", tag or "latest")
            self._built[key] = image
        return self._registry.reference(f"tests/{name}", tag or "latest")

    def image(self, key: str) -> Image:
        """Return what `images[key]` refers to, for comparing digests and contents."""
        self[key]
        return self._built[key]

    def write_layout(self, key: str, folder: Path) -> None:
        """Write an image as an OCI layout folder, named "KEY"."""
        write_layout(folder, self.image(key), key)
