# SPDX-License-Identifier: Apache-2.0
import signal

import pytest

from pycri.errors import InvalidRequest
from pycri.model.container import ContainerSpec
from pycri.model.image import ImageConfig
from pycri.plan.environment import process_args, process_env, stop_signal, working_directory
from tests.unit.plan.samples import container_spec

IMAGE = ImageConfig(entrypoint=("/entry", "-e"), cmd=("serve",))


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ("/entry", "-e", "serve")),
        ((), ("a",), ("/entry", "-e", "a")),
        (("/c",), (), ("/c",)),
        (("/c",), ("a",), ("/c", "a")),
    ],
)
def test_a_command_replaces_the_entrypoint_and_drops_cmd_and_args_replace_cmd(
    command: tuple[str, ...], args: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert process_args(container_spec(command=command, args=args), IMAGE) == expected


def test_an_entrypoint_of_one_empty_word_is_none() -> None:
    image = ImageConfig(entrypoint=("",), cmd=("/bin/serve",))
    assert process_args(container_spec(), image) == ("/bin/serve",)


def test_nothing_to_run_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        process_args(container_spec(), ImageConfig())
    assert caught.value.field == "config.command"


def env(spec: ContainerSpec, *image_env: str) -> dict[bytes, bytes]:
    entries = process_env(spec, ImageConfig(env=image_env), "web", "/home/web")
    return dict(entry.partition(b"=")[::2] for entry in entries)


def test_an_empty_image_gets_path_hostname_and_home_and_a_terminal_its_type() -> None:
    plain = env(container_spec())
    assert set(plain) == {b"PATH", b"HOSTNAME", b"HOME"}
    assert plain[b"HOSTNAME"] == b"web"
    assert plain[b"HOME"] == b"/home/web"
    assert plain[b"PATH"].endswith(b":/bin")
    assert env(container_spec(tty=True))[b"TERM"] == b"xterm"


def test_the_request_overrides_the_image_which_overrides_defaults() -> None:
    spec = container_spec(tty=True, env=(("A", b"2"), ("A", b"3"), ("HOME", b""), ("B", b"\xff=")))
    merged = env(spec, "A=1", "PATH=/p", "TERM=vt100", "HOSTNAME=of-the-build")
    assert merged == {
        b"A": b"3",
        b"PATH": b"/p",
        b"TERM": b"vt100",
        b"HOSTNAME": b"web",
        b"HOME": b"",
        b"B": b"\xff=",
    }


def test_an_entry_of_the_image_without_a_name_or_value_sign_is_dropped() -> None:
    assert set(env(container_spec(), "ALONE", "=x", "E=")) == {b"PATH", b"HOSTNAME", b"HOME", b"E"}


@pytest.mark.parametrize(
    ("asked", "image", "expected"),
    [("", "", "/"), ("", "app", "/app"), ("", "/a//b/./c/", "/a/b/c"), ("/x", "/y", "/x")],
)
def test_the_working_directory_is_absolute(asked: str, image: str, expected: str) -> None:
    found = working_directory(container_spec(working_dir=asked), ImageConfig(working_dir=image))
    assert found == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", signal.SIGTERM),
        ("SIGQUIT", signal.SIGQUIT),
        ("quit", signal.SIGQUIT),
        ("10", 10),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("RTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
    ],
)
def test_the_stop_signal_of_an_image_is_a_name_or_a_number(text: str, expected: int) -> None:
    assert stop_signal(container_spec(), ImageConfig(stop_signal=text)) == expected


@pytest.mark.parametrize(
    "text", ["SIGNONE", "0", "65", "1234567", "RTMIN+99", "RTMAX-99", "RTMIN+"]
)
def test_an_unknown_stop_signal_is_refused_unless_the_request_names_one(text: str) -> None:
    image = ImageConfig(stop_signal=text)
    with pytest.raises(InvalidRequest, match="stop signal"):
        stop_signal(container_spec(), image)
    assert stop_signal(container_spec(stop_signal=2), image) == signal.SIGINT
