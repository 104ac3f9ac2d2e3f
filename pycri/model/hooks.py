# SPDX-License-Identifier: Apache-2.0
"""Hooks: programs that are run at points of a container's life, as CDI devices ask for them.

Source: OCI runtime-spec 1.1, config.md "POSIX-platform Hooks" and runtime.md "State"; CDI SPEC.md.
"""

import msgspec

OCI_VERSION = "1.1.0"
DEFAULT_ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",)
"""What a hook gets that names no variables."""


class Hook(msgspec.Struct, frozen=True, kw_only=True):
    """One program. path: absolute; args: with the program's name first.

    env: whole `NAME=value` entries, all it gets.
    timeout_s: None waits for ever.
    """

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...] = DEFAULT_ENV
    timeout_s: int | None = None


class Hooks(msgspec.Struct, frozen=True, kw_only=True):
    """The hooks of a container by when they are run, each list in its order.

    create_runtime: in the host's namespaces, the root in place ("prestart" ones too, first).
    create_container: in the container's namespaces, the host's files in sight.
    start_container: in the container, as its user, right before its program.
    poststart, poststop: on the host, once it runs, once it has ended.
    """

    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()

    def __bool__(self) -> bool:
        return self != _NONE


_NONE = Hooks()

HOOK_NAMES = {
    "prestart": "create_runtime",
    "createRuntime": "create_runtime",
    "createContainer": "create_container",
    "startContainer": "start_container",
    "poststart": "poststart",
    "poststop": "poststop",
}
"""The OCI's names, and which list of Hooks they are in."""


class ContainerState(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a hook reads from its standard input, as JSON.

    status: "creating", "created", "running" or "stopped". pid: the host's, 0 once it has ended.
    bundle: a host folder with `config.json` and `rootfs`, "" for a container without one.
    """

    oci_version: str = OCI_VERSION
    id: str
    status: str
    pid: int
    bundle: str
    annotations: dict[str, str] = {}
