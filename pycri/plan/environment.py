# SPDX-License-Identifier: Apache-2.0
"""What is executed, where, with which variables: the request merged with the image's config.

Rules: CRI ContainerConfig (command, args, working_dir, envs, stop_signal); OCI image-spec
config.md (Entrypoint, Cmd, Env, WorkingDir, StopSignal).
"""

import signal

from pycri.errors import InvalidRequest
from pycri.model.container import ContainerSpec
from pycri.model.image import ImageConfig
from pycri.plan.mounts import clean_path

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def process_args(spec: ContainerSpec, image: ImageConfig) -> tuple[str, ...]:
    """Return the command line: `command` replaces the entrypoint and drops the image's cmd.

    Raises: InvalidRequest when neither the request nor the image names anything to run.
    """
    if spec.command:
        return spec.command + spec.args
    # An entrypoint of one empty word is how a Dockerfile takes back that of its base image.
    entrypoint = () if image.entrypoint == ("",) else image.entrypoint
    args = entrypoint + (spec.args or image.cmd)
    if not args:
        raise InvalidRequest("config.command", "neither the request nor the image names a command")
    return args


def process_env(
    spec: ContainerSpec, image: ImageConfig, hostname: str, home: str
) -> tuple[bytes, ...]:
    """Return the environment, each name once, in the order in which names first came up.

    The image's; then HOSTNAME, and PATH and TERM where the image has none; then the request's;
    HOME (from passwd(5)) only where nobody has set it. A variable of the image without "=" is
    no variable.
    """
    env: dict[bytes, bytes] = {}
    for entry in image.env:
        name, equals, value = entry.encode("utf-8", "surrogateescape").partition(b"=")
        if name and equals:
            env[name] = value
    env[b"HOSTNAME"] = hostname.encode()
    env.setdefault(b"PATH", DEFAULT_PATH)
    if spec.tty:
        env.setdefault(b"TERM", b"xterm")
    env.update((name.encode("utf-8", "surrogateescape"), value) for name, value in spec.env)
    env.setdefault(b"HOME", home.encode("utf-8", "surrogateescape"))
    return tuple(name + b"=" + value for name, value in env.items())


def working_directory(spec: ContainerSpec, image: ImageConfig) -> str:
    """Return where the process starts: the request's folder, the image's, or "/"."""
    return clean_path(spec.working_dir or image.working_dir)


def stop_signal(spec: ContainerSpec, image: ImageConfig) -> int:
    """Return the signal that asks the container to stop: the request's, the image's, or SIGTERM.

    The image's is text: "SIGTERM", "TERM", "15", "SIGRTMIN+3" or "RTMAX-1".
    Raises: InvalidRequest if the image's is none of these.
    """
    if spec.stop_signal:
        return spec.stop_signal
    if not image.stop_signal:
        return int(signal.SIGTERM)
    number = _parse_signal(image.stop_signal.upper())
    if number is None:
        reason = f"the image's stop signal {image.stop_signal!r} is unknown"
        raise InvalidRequest("config.image", reason)
    return number


def _parse_signal(text: str) -> int | None:
    if _is_number(text):
        number = int(text)
        return number if 1 <= number <= signal.SIGRTMAX else None
    name = text.removeprefix("SIG")
    for base, sign, step in (("RTMIN", "+", 1), ("RTMAX", "-", -1)):
        head, found, offset = name.partition(sign)
        if head == base and found and _is_number(offset):
            number = signal.Signals[f"SIG{base}"] + step * int(offset)
            return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else None
    known = signal.Signals.__members__.get(f"SIG{name}")
    return int(known) if known is not None else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 3
