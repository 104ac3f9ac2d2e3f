# SPDX-License-Identifier: Apache-2.0
"""Records changed by several calls at once: none is lost, none comes back."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pycri.errors import NotFound
from pycri.model.container import ContainerMetadata, ContainerRecord, ContainerSpec, ImageSpec
from pycri.model.ids import ContainerId, ImageId, PodId
from pycri.model.pod import PodMetadata, PodRecord, PodSpec, PodState, Stage
from pycri.model.security import User
from pycri.pods.catalogue import Catalogue, with_facts
from pycri.state.database import Database

CHANGES = 40
POD = PodRecord(
    id=PodId("a" * 64),
    spec=PodSpec(metadata=PodMetadata(name="web", uid="1", namespace="tests")),
    created_ns=1,
)
CONTAINER = ContainerRecord(
    id=ContainerId("c" * 64),
    pod_id=POD.id,
    spec=ContainerSpec(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="web")),
    image_id=ImageId("sha256:" + "1" * 64),
    user=User(uid=0),
    stop_signal=15,
    cgroup="/a/c",
    log_path="",
    created_ns=1,
)


def with_catalogue(path: Path, body: Callable[[Catalogue], Awaitable[None]]) -> Catalogue:
    """Run `body` on the records of a pod and a container; return what is read back afterwards."""

    async def run() -> Catalogue:
        database = await Database.open(path / "pycri.db")
        try:
            catalogue = Catalogue(database)
            await catalogue.add_pod(POD)
            await catalogue.add_container(CONTAINER)
            await body(catalogue)
        finally:
            await database.close()
        database = await Database.open(path / "pycri.db")
        try:
            stored = Catalogue(database)
            await stored.load()
        finally:
            await database.close()
        assert list(stored.pods()) == list(catalogue.pods())
        assert list(stored.containers()) == list(catalogue.containers())
        return stored

    return asyncio.run(run())


def stage(number: int) -> Stage:
    return Stage(name=str(number), start_ns=number, duration_ns=1)


def numbers(record: PodRecord | ContainerRecord) -> set[int]:
    return {stage.start_ns for stage in record.timeline}


def test_changes_at_once_are_all_kept(tmp_path: Path) -> None:
    async def body(catalogue: Catalogue) -> None:
        async def change(number: int) -> None:
            await catalogue.change_pod(
                POD.id, lambda old: with_facts(old, timeline=(*old.timeline, stage(number)))
            )
            await catalogue.change_container(
                CONTAINER.id, lambda old: with_facts(old, timeline=(*old.timeline, stage(number)))
            )

        await asyncio.gather(*(change(number) for number in range(CHANGES)))

    stored = with_catalogue(tmp_path, body)
    assert numbers(stored.pod(POD.id)) == set(range(CHANGES))
    assert numbers(stored.container(CONTAINER.id)) == set(range(CHANGES))


def test_a_pod_stopped_while_it_gets_ready_is_both(tmp_path: Path) -> None:
    async def body(catalogue: Catalogue) -> None:
        await asyncio.gather(
            catalogue.change_pod(POD.id, lambda old: with_facts(old, ready_ns=2)),
            catalogue.change_pod(POD.id, lambda old: with_facts(old, stopped_ns=3)),
        )

    pod = with_catalogue(tmp_path, body).pod(POD.id)
    assert (pod.ready_ns, pod.stopped_ns, pod.state) == (2, 3, PodState.NOTREADY)


def test_a_change_that_fails_lets_the_next_one_in(tmp_path: Path) -> None:
    def fail(_: PodRecord) -> PodRecord:
        raise LookupError("no")

    async def body(catalogue: Catalogue) -> None:
        failed, _ = await asyncio.gather(
            catalogue.change_pod(POD.id, fail),
            catalogue.change_pod(POD.id, lambda old: with_facts(old, stopped_ns=3)),
            return_exceptions=True,
        )
        assert isinstance(failed, LookupError)

    assert with_catalogue(tmp_path, body).pod(POD.id).stopped_ns == 3


@pytest.mark.parametrize("removed_first", [True, False])
def test_a_record_that_is_changed_while_it_is_removed_does_not_come_back(
    tmp_path: Path, *, removed_first: bool
) -> None:
    """The change was made from the record that was still there, and stored after the removal."""

    async def body(catalogue: Catalogue) -> None:
        calls = [
            catalogue.remove_container(CONTAINER.id),
            catalogue.change_container(CONTAINER.id, lambda old: with_facts(old, exit_code=1)),
            catalogue.remove_pod(POD.id),
            catalogue.change_pod(POD.id, lambda old: with_facts(old, stopped_ns=3)),
        ]
        tasks = [asyncio.ensure_future(call) for call in (calls if removed_first else calls[::-1])]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                assert isinstance(result, NotFound)
        assert not list(catalogue.pods())
        assert not list(catalogue.containers())
        assert catalogue.containers_of(POD.id) == []

    with_catalogue(tmp_path, body)
