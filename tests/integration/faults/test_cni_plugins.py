# SPDX-License-Identifier: Apache-2.0
"""CNI with plugins that fail in every way: the daemon goes on, and nothing they took is lost."""

import asyncio
import os
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pycri import errors
from pycri.model.ids import PodId
from pycri.model.network import Attachment
from pycri.model.pod import PodMetadata, PodSpec
from pycri.network.cni.network import CniNetwork
from pycri.network.cni.plugins import MARK
from pycri.state.database import Database
from tests.integration.kernel.netns import Namespace, run_as_host, until
from tests.world import session
from tests.world.cni import CniFolders

SPEC = PodSpec(metadata=PodMetadata(name="web", uid="web-uid", namespace="shop"))
NO_PODS: frozenset[PodId] = frozenset()


def new_id() -> PodId:
    return PodId(secrets.token_hex(32))


@asynccontextmanager
async def network(folders: CniFolders, *, timeout_s: int = 20) -> AsyncIterator[CniNetwork]:
    """A CNI network as a daemon has it: a second one on the same folder is the next daemon."""
    database = await Database.open(folders.folder / "pycri.db")
    cni = CniNetwork(folders.settings(timeout_s), database, mark=str(folders.folder))
    try:
        yield cni
    finally:
        await cni.close()
        await database.close()


async def attach(cni: CniNetwork, pod: Namespace, pod_id: PodId, **fields: Any) -> Attachment:
    spec = msgspec.structs.replace(SPEC, **fields)
    return await cni.attach(pod_id, spec, pod.path, pod.netlink_fd)


def as_host(body: Callable[[CniFolders], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    """Make a coroutine a test that runs in a host of its own."""

    def test(tmp_path: Path) -> None:
        run_as_host(lambda: body(CniFolders(tmp_path / "cni")))

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("fail", ["told to fail; really; stderr: a word on standard error (code 7)"]),
        ("garbage", ["no JSON was printed: 'no JSON at all"]),
        ("silent", ["no result was printed"]),
        ("die", ["killed by signal 9"]),
        ("hang", ["did not end within 1 s"]),
        ("child", ["did not end within 1 s"]),
        ("flood", ["printed more than 1048576 bytes"]),
    ],
)
def test_a_chain_that_fails_in_its_middle_is_undone_from_its_end(
    tmp_path: Path, behaviour: str, words: list[str]
) -> None:
    async def body() -> None:
        folders = CniFolders(tmp_path / "cni")
        folders.write_chain("first", "second", "third")
        folders.behave({"second/ADD": behaviour})
        with Namespace() as pod:
            async with network(folders, timeout_s=1) as cni:
                with pytest.raises(errors.SetupFailed) as caught:
                    await attach(cni, pod, new_id())
        for word in ["CNI ADD of plugin second, network pods", *words]:
            assert word in str(caught.value)
        assert folders.order() == [
            "ADD first eth0",
            "ADD second eth0",
            "DEL third eth0",
            "DEL second eth0",
            "DEL first eth0",
        ]
        assert folders.held() == []

    run_as_host(body)


@as_host
async def test_what_a_hanging_plugin_started_ends_with_it(folders: CniFolders) -> None:
    folders.write_chain("only")
    folders.behave({"ADD": "child"})
    with Namespace() as pod:
        async with network(folders, timeout_s=1) as cni:
            with pytest.raises(errors.SetupFailed):
                await attach(cni, pod, new_id())
    assert find_marked(folders) == []


@as_host
async def test_a_failed_del_is_tried_again_until_it_succeeds_without_the_namespace(
    folders: CniFolders,
) -> None:
    folders.write_chain("first", "second")
    pod_id = new_id()
    async with network(folders) as cni:
        with Namespace() as pod:
            await attach(cni, pod, pod_id)
            folders.behave({"second/DEL": "fail"})
            await cni.detach(pod_id)
            # What stands on another's work goes before it, or not at all.
            assert folders.order("DEL") == ["DEL second eth0"]
        await cni.reconcile(NO_PODS)
        await until(lambda: cni.idle, "the second try ends")
        assert len(folders.calls("DEL")) == 2
        folders.behave({})
        await cni.reconcile(NO_PODS)
        await until(lambda: cni.idle, "the third try ends")
        assert folders.held() == []
        assert folders.calls("DEL")[0]["environment"]["CNI_NETNS"] == pod.path
        assert folders.calls("DEL")[-1]["environment"]["CNI_NETNS"] == ""
        count = len(folders.calls())
        await cni.reconcile(NO_PODS)
        await until(lambda: cni.idle, "nothing to do")
        assert len(folders.calls()) == count


@as_host
async def test_a_plugin_that_does_not_know_the_pod_has_nothing_to_free(folders: CniFolders) -> None:
    folders.write_chain("only")
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folders) as cni:
            await attach(cni, pod, pod_id)
            folders.behave({"DEL": "unknown"})
            await cni.detach(pod_id)
            await cni.detach(pod_id)
    assert folders.order("DEL") == ["DEL only eth0"]


@as_host
async def test_del_is_asked_as_add_was_whatever_became_of_the_configuration(
    folders: CniFolders,
) -> None:
    folders.write_chain("old", name="before", special="kept")
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folders) as cni:
            await attach(cni, pod, pod_id)
        folders.write_chain("new", name="after")
        async with network(folders) as cni:
            await cni.detach(pod_id)
    (call,) = folders.calls("DEL")
    assert (call["plugin"], call["request"]["name"]) == ("old", "before")
    assert call["request"]["special"] == "kept"
    assert call["request"]["prevResult"]["ips"] == [{"address": "10.1.2.3/24", "interface": 1}]
    assert folders.held() == []


@as_host
async def test_an_add_that_outlives_its_daemon_is_ended_before_it_is_undone(
    folders: CniFolders,
) -> None:
    folders.write_chain("only")
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folders) as cni:
            folders.behave({"ADD": "fail", "DEL": "die"})
            with pytest.raises(errors.SetupFailed):
                await attach(cni, pod, pod_id)
        folders.behave({})
        async with network(folders) as cni:
            with start_orphan(folders, subprocess.PIPE) as orphan:
                await cni.start()
                await until(lambda: orphan.poll() is not None, "the orphan ends")
                assert orphan.returncode == -9
            await cni.reconcile(NO_PODS)
            await until(lambda: cni.idle, "the attachment is undone")
    assert folders.order("DEL") == ["DEL only eth0", "DEL only eth0"]


def start_orphan(folders: CniFolders, stdout: int) -> subprocess.Popen[bytes]:
    """What a plugin of a former daemon left running; a plugin's own standard output is a pipe."""
    environment = session.environment() | {MARK: str(folders.folder)}
    return subprocess.Popen(["sleep", "1000"], env=environment, stdout=stdout)


def find_marked(folders: CniFolders) -> list[str]:
    """Return the processes that carry the mark of a plugin of ours."""
    mark, found = f"{MARK}={folders.folder}".encode(), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                found.append(Path(f"/proc/{name}/cmdline").read_text())
        except OSError:  # it has ended, or is none of ours
            continue
    return found


@as_host
async def test_what_a_plugin_started_to_stay_is_left_alone(folders: CniFolders) -> None:
    with start_orphan(folders, subprocess.DEVNULL) as service:
        folders.write_chain("only")
        async with network(folders) as cni:
            await cni.start()
        assert service.poll() is None
        service.kill()


@as_host
async def test_a_plugin_that_is_being_replaced_is_waited_for(folders: CniFolders) -> None:
    folders.write_chain("only")
    with Namespace() as pod:
        async with network(folders) as cni:
            with folders.writing("only"):
                attaching = asyncio.create_task(attach(cni, pod, new_id()))
                _, pending = await asyncio.wait([attaching], timeout=0.3)
                assert pending
            await attaching


@as_host
async def test_plugins_are_asked_for_their_status_and_a_hanging_one_keeps_nobody_waiting(
    folders: CniFolders,
) -> None:
    folders.write_chain("only", version="1.1.0")
    async with network(folders, timeout_s=1) as cni:
        await cni.start()
        assert "have not told their status yet" in str(cni.problem())
        await until(lambda: cni.problem() is None, "ready")
        folders.behave({"STATUS": "fail"})
        folders.write_chain("only", version="1.1.0", name="again")
        await until(lambda: "told to fail" in str(cni.problem()), "not ready")
        folders.behave({"STATUS": "hang"})
        folders.write_chain("only", version="1.1.0", name="once-more")
        await until(lambda: "not told" in str(cni.problem()), "the new network is seen")
        await until(lambda: "did not end" in str(cni.problem()), "the time-out")


@as_host
async def test_another_network_is_seen_while_the_status_of_the_former_hangs(
    folders: CniFolders,
) -> None:
    folders.write_chain("old", version="1.1.0")
    folders.behave({"old/STATUS": "hang"})
    async with network(folders) as cni:
        await cni.start()
        await until(lambda: folders.order("STATUS") == ["STATUS old"], "it is asked")
        folders.write_chain("new", version="1.1.0", name="new")
        await until(lambda: cni.problem() is None, "ready")
        folders.write_chain("absent", name="newest")
        (folders.bin_dir / "absent").unlink()
        await until(lambda: "plugin absent is not in" in str(cni.problem()), "not ready")
    assert find_marked(folders) == []


@as_host
async def test_plugins_may_free_at_start_what_no_attachment_holds(folders: CniFolders) -> None:
    folders.write_chain("only", version="1.1.0")
    pod_id = new_id()
    with Namespace() as pod:
        async with network(folders) as cni:
            await attach(cni, pod, pod_id)
            assert folders.calls("GC") == []
        async with network(folders) as cni:
            await cni.start()
            await cni.start()
            await until(lambda: cni.idle, "GC")
    (call,) = folders.calls("GC")
    valid = [{"containerID": pod_id, "ifname": "eth0"}]
    assert call["request"]["cni.dev/valid-attachments"] == valid
    assert call["request"]["cni.dev/attachments"] == valid
