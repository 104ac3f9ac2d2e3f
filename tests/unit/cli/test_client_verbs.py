# SPDX-License-Identifier: Apache-2.0
"""Verbs that talk to a daemon, against a real socket served from another thread."""

import asyncio
import json
import tempfile
import threading
from collections.abc import Iterator

import msgspec
import pytest
from click.testing import CliRunner, Result

from pycri.cli.main import main
from pycri.cli.timeline import render_bar
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId
from pycri.model.network import Attachment, Interface
from pycri.model.pod import PodMetadata, PodRecord, PodSpec, PortMapping, Stage
from pycri.model.security import User
from tests.world.fake_application import IMAGE, POD, FakeDaemon

WAIT_S = 10
CONTAINER = ContainerId("b" * 64)
ETH0 = Interface(
    name="eth0",
    mac="0a:58:0a:58:00:02",
    addresses=("10.88.0.2/16", "fd00::2/64"),
    host_interface="pc1",
)
PORTS = (PortMapping(host_port=8080, container_port=80), PortMapping(container_port=81))


def stages(call: str) -> tuple[Stage, ...]:
    return (
        Stage(name=call, start_ns=0, duration_ns=8_000_000),
        Stage(name=f"{call}/attach", start_ns=2_000_000, duration_ns=4_000_000),
    )


def put_pod(daemon: FakeDaemon) -> None:
    metadata = PodMetadata(name="web", uid="u", namespace="ns")
    pod = PodRecord(
        id=POD,
        spec=PodSpec(metadata=metadata, port_mappings=PORTS),
        created_ns=1,
        attachment=Attachment(interfaces=(ETH0,)),
        timeline=stages("RunPodSandbox"),
    )
    container = ContainerRecord(
        id=CONTAINER,
        pod_id=POD,
        spec=ContainerSpec(metadata=ContainerMetadata(name="app"), image=ImageSpec(image="app:1")),
        image_id=IMAGE,
        user=User(),
        stop_signal=15,
        cgroup="/x",
        log_path="",
        created_ns=2,
        timeline=stages("CreateContainer"),
    )
    daemon.records.put_pod(pod)
    daemon.records.put_container(container)


async def serve(path: str, ready: threading.Event, ends: list[asyncio.Event]) -> None:
    """Serve until the event in `ends` is set from outside."""
    daemon = FakeDaemon(path)
    put_pod(daemon)
    ends.append(asyncio.Event())
    async with daemon.serve():
        ready.set()
        await ends[0].wait()


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    ready, ends, loop = threading.Event(), list[asyncio.Event](), asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(prefix="pycri-") as folder:
        path = f"{folder}/pycri.sock"
        work = serve(path, ready, ends)
        thread = threading.Thread(target=loop.run_until_complete, args=(work,))
        thread.start()
        assert ready.wait(WAIT_S)
        yield path
        loop.call_soon_threadsafe(ends[0].set)
        thread.join(WAIT_S)
        assert not thread.is_alive()
        loop.close()


def run(socket_path: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--socket", socket_path])


@pytest.mark.parametrize("name", [POD, POD[:8], "web"])
def test_a_timeline_shows_each_stage_of_pod_and_containers(socket_path: str, name: str) -> None:
    result = run(socket_path, "timeline", name)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[1][:4] == ["pod", "web", "RunPodSandbox", "8.00"]
    assert lines[2][:2] == ["attach", "4.00"]
    assert lines[3][:4] == ["container", "app", "CreateContainer", "8.00"]
    assert lines[4][:2] == ["attach", "4.00"]


def test_a_timeline_is_there_for_scripts_too(socket_path: str) -> None:
    parts = json.loads(run(socket_path, "timeline", "web", "--json").stdout)
    assert [part["name"] for part in parts] == ["pod web", "container app"]
    assert parts[0]["timeline"] == msgspec.to_builtins(list(stages("RunPodSandbox")))


def test_a_bar_lies_where_the_stage_lay_in_its_call() -> None:
    call, stage = stages("x")
    assert render_bar(call, call) == "█" * 28
    assert render_bar(stage, call) == " " * 7 + "█" * 14
    late = Stage(name="x/y", start_ns=8_000_000, duration_ns=0)
    assert render_bar(late, call) == " " * 27 + "█"


def test_an_unknown_pod_is_a_failure_with_one_line(socket_path: str) -> None:
    result = run(socket_path, "timeline", "nobody")
    assert (result.exit_code, result.stderr) == (1, "Error: pod 'nobody' not found\n")


def test_images_are_listed_imported_and_removed(socket_path: str) -> None:
    listed = run(socket_path, "image", "ls")
    assert listed.stdout.split() == ["c" * 12, "0.0", "MB", "-"]
    assert json.loads(run(socket_path, "image", "ls", "--json").stdout)["id"] == IMAGE
    imported = run(socket_path, "image", "import", "/", "app:1")
    assert imported.stdout == "/ as app:1\n"
    assert run(socket_path, "image", "rm", "app").exit_code == 0


def test_disk_use_is_shown_for_people_and_for_scripts(socket_path: str) -> None:
    lines = run(socket_path, "image", "df").stdout.splitlines()
    assert lines[1].split() == ["c" * 12, "3.0", "2.0", "0.0", "-"]
    assert lines[2].split()[-3:] == ["in", "3", "files"]
    (line,) = run(socket_path, "image", "df", "--json").stdout.splitlines()
    assert json.loads(line)["shared_bytes"] == 2_000_000


def test_a_check_names_what_is_broken_and_fails(socket_path: str) -> None:
    found = run(socket_path, "image", "check")
    assert found.exit_code == 1
    ok, broken, problem = found.stdout.splitlines()
    assert (ok.split()[0], broken.split()[0]) == ("ok", "broken")
    assert problem.strip() == "layer sha256:e: 'bin/sh' is missing"
    repaired = run(socket_path, "image", "check", "--repair")
    assert repaired.exit_code == 0 and repaired.stdout.splitlines()[-1].startswith("unlisted")


def test_an_export_names_the_image_that_is_not_there(socket_path: str) -> None:
    assert run(socket_path, "image", "export", "x.tar", "app").exit_code == 0
    assert run(socket_path, "image", "export", "x.tar").exit_code == 2
    missing = run(socket_path, "image", "export", "x.tar", "other")
    assert missing.exit_code == 1 and "image 'other' not found" in missing.stderr


def test_a_pull_prints_the_id_and_nothing_else_to_stdout(socket_path: str) -> None:
    result = run(socket_path, "pull", "app:1")
    assert (result.stdout, result.exit_code) == (f"{IMAGE}\n", 0)


def test_credentials_come_from_the_environment_or_from_who_types_them(
    socket_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = CliRunner().invoke(
        main, ["pull", "app:1", "--creds", "--socket", socket_path], input="kim\nhunter2\n"
    )
    assert (typed.exit_code, typed.stdout) == (0, f"{IMAGE}\n")
    monkeypatch.setenv("PYCRI_CREDENTIALS", "kim:hunter2")
    assert run(socket_path, "pull", "app:1", "--creds").stdout == f"{IMAGE}\n"
    monkeypatch.setenv("PYCRI_CREDENTIALS", "kim")
    result = run(socket_path, "pull", "app:1", "--creds")
    assert result.exit_code == 2 and "not of the form user:password" in result.stderr


def test_the_daemons_refusal_is_shown_with_its_code(socket_path: str) -> None:
    result = run(socket_path, "image", "import", "/", "two words")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: name: 'two words' is empty or holds white space")
    assert result.stderr.endswith("(INVALID_ARGUMENT)\n")


def test_no_daemon_is_said_so() -> None:
    result = run("/nonexistent/pycri.sock", "image", "ls")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no daemon answers on /nonexistent/pycri.sock")


def test_network_ls_shows_pods_with_addresses_links_and_ports(socket_path: str) -> None:
    line = run(socket_path, "network", "ls").output.split()
    assert line == [
        POD[:13],
        "stopped",
        "ns/web",
        "10.88.0.2/16,fd00::2/64",
        "pc1",
        "*:8080/TCP->80",
    ]
    shown = json.loads(run(socket_path, "network", "ls", "--json").output)
    assert shown["interfaces"][0]["mac"] == "0a:58:0a:58:00:02"
    assert (shown["name"], shown["ready"]) == ("web", False)


def test_network_check_tells_what_is_wrong_until_it_is_collected(socket_path: str) -> None:
    result = run(socket_path, "network", "check")
    assert (result.exit_code, result.output) == (1, "pod a: its link pc1 is not there\n")
    assert run(socket_path, "network", "gc").exit_code == 0
    result = run(socket_path, "network", "check")
    assert (result.exit_code, result.output) == (0, "")
