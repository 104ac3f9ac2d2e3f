# SPDX-License-Identifier: Apache-2.0
"""Changes of resources on plain files laid out like a group of version 2, with a real database.

A plain file is written over, not replaced: old and new values are of one length.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycri.config import Settings
from pycri.errors import InvalidRequest, WrongState
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.resources import Resources
from pycri.model.security import User
from pycri.pods.catalogue import Catalogue, with_facts
from pycri.pods.endings import Endings
from pycri.pods.events import Events
from pycri.pods.foundation import Foundation
from pycri.pods.groups import Groups
from pycri.pods.layout import Layout
from pycri.pods.planning import Planner
from pycri.pods.updates import Updates
from pycri.pods.watch import ExitWatch
from pycri.runtimes.client import SpawnerClient
from pycri.state.database import Database
from tests.unit.plan.samples import host_v2

MIB = 1 << 20
RECORD = ContainerRecord(
    id=ContainerId("c" * 64),
    pod_id=PodId("a" * 64),
    spec=ContainerSpec(
        metadata=ContainerMetadata(name="app"),
        image=ImageSpec(image="app:1"),
        resources=Resources(cpu_shares=1024, memory_limit_bytes=64 * MIB),
    ),
    image_id=ImageId("sha256:" + "1" * 64),
    user=User(),
    stop_signal=15,
    cgroup="/pod/c",
    log_path="",
    created_ns=1,
    started_ns=2,
)
FILES = {
    "cpu.weight": "100\n",
    "cpu.max": "50000 100000\n",
    "cpuset.cpus": "0\n",
    "memory.max": f"{64 * MIB}\n",
    "memory.swap.max": "0\n",
    "memory.current": f"{48 * MIB}\n",
    "memory.stat": f"anon 1\ninactive_file {4 * MIB}\nactive_file {4 * MIB}\n",
    "cgroup.procs": "",
}
ASKED = Resources(
    cpu_shares=2048, cpu_quota_us=25_000, memory_limit_bytes=80 * MIB, oom_score_adj=700
)


@pytest.fixture
def group(tmp_path: Path) -> Path:
    folder = tmp_path / "cgroup/pod/c"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def process(group: Path) -> Iterator[int]:
    """A process that the group's list names."""
    command = [sys.executable, "-S", "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
        (group / "cgroup.procs").write_text(f"{child.pid}\n")
        yield child.pid
        child.kill()


def oom_score(pid: int) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def update(
    folder: Path, asked: Resources, record: ContainerRecord = RECORD, *, store: bool = True
) -> ContainerRecord:
    """Change a recorded container, with a database that can store the change or not."""

    async def run() -> ContainerRecord:
        database = await Database.open(folder / "state.db")
        catalogue = Catalogue(database)
        await catalogue.add_container(record)
        settings, host = Settings(), host_v2(cgroup_root=str(folder / "cgroup"))
        foundation = Foundation(
            settings=settings,
            host=host,
            catalogue=catalogue,
            events=Events(),
            spawner=SpawnerClient(settings, host),
            exits=ExitWatch(),
            layout=Layout(settings),
            groups=Groups(host),
        )
        images = None
        planner = Planner(foundation, images)  # type: ignore[arg-type]  # no image is looked up
        if not store:
            await database.close()
        try:
            await Updates(foundation, planner, Endings(foundation)).update_container("c", asked)
            return catalogue.container("c")
        finally:
            await database.close()

    return asyncio.run(run())


def contents(group: Path) -> dict[str, str]:
    return {name: (group / name).read_text().rstrip("\n") for name in FILES}


def test_all_that_is_asked_is_written_and_recorded(
    group: Path, process: int, tmp_path: Path
) -> None:
    before = contents(group)
    changed = update(tmp_path, ASKED)
    assert contents(group) == before | {
        "cpu.weight": "174",
        "cpu.max": "25000 100000",
        "memory.max": str(80 * MIB),
    }
    assert oom_score(process) == 700
    assert changed.resources.cpu_shares == 2048
    assert changed.spec == RECORD.spec


def test_nothing_stays_changed_when_the_record_cannot_be_written(
    group: Path, process: int, tmp_path: Path
) -> None:
    before = contents(group), oom_score(process)
    with pytest.raises(RuntimeError):
        update(tmp_path, ASKED, store=False)
    assert (contents(group), oom_score(process)) == before


def test_nothing_stays_changed_when_a_limit_is_not_there(
    group: Path, process: int, tmp_path: Path
) -> None:
    (group / "cpuset.cpus").unlink()
    before = {path.name: path.read_text() for path in group.iterdir()}
    with pytest.raises(InvalidRequest) as caught:
        update(tmp_path, Resources(cpu_shares=2048, cpuset_cpus="0"))
    assert caught.value.field == "linux.cpuset_cpus"
    assert {path.name: path.read_text() for path in group.iterdir()} == before


def test_pages_of_files_do_not_keep_memory_from_being_lowered(group: Path, tmp_path: Path) -> None:
    update(tmp_path, Resources(memory_limit_bytes=40 * MIB))
    assert (group / "memory.max").read_text() == f"{40 * MIB}\n"
    with pytest.raises(InvalidRequest) as caught:
        update(tmp_path, Resources(memory_limit_bytes=40 * MIB - 1))
    assert caught.value.field == "linux.memory_limit_in_bytes"


def test_a_container_that_has_not_started_is_only_recorded(group: Path, tmp_path: Path) -> None:
    before = contents(group)
    created = with_facts(RECORD, started_ns=None)
    assert update(tmp_path, ASKED, created).resources.memory_limit_bytes == 80 * MIB
    assert contents(group) == before


def test_a_container_whose_group_is_gone_is_ending(group: Path, tmp_path: Path) -> None:
    for path in group.iterdir():
        path.unlink()
    group.rmdir()
    with pytest.raises(WrongState, match="ending"):
        update(tmp_path, Resources(cpu_shares=2048))
