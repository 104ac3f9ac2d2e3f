# SPDX-License-Identifier: Apache-2.0
"""Events: to whom they go, in which order, and what becomes of a reader that does not read."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pycri.errors import OutOfResources
from pycri.model.events import Event, EventKind
from pycri.model.network import Attachment
from pycri.pods import events as module
from pycri.pods.catalogue import Catalogue, with_facts
from pycri.pods.events import Events
from pycri.state.database import Database
from tests.unit.pods.test_catalogue import CONTAINER, POD


def event(name: str) -> Event:
    return Event(kind=EventKind.STARTED, id=name, timestamp_ns=0, pod=POD, containers=())


def run(scene: Callable[[Events], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(10):
            await scene(Events())

    asyncio.run(limited())


def test_every_reader_gets_every_event_in_order() -> None:
    async def scene(events: Events) -> None:
        with events.reading() as first, events.reading() as second:
            for name in "abc":
                events.publish(event(name))
            events.close()
            got = [[item async for item in reader] for reader in (first, second)]
        assert [item.id for item in got[0]] == list("abc")
        assert got[0] == got[1]
        times = [item.timestamp_ns for item in got[0]]
        assert times == sorted(set(times)), "two events of one time, or an older after a newer"

    run(scene)


def test_what_nobody_read_goes_to_the_first_who_comes_and_to_no_other() -> None:
    async def scene(events: Events) -> None:
        events.publish(event("early"))
        with events.reading() as first, events.reading() as second:
            events.publish(event("late"))
            events.close()
            assert [item.id async for item in first] == ["early", "late"]
            assert [item.id async for item in second] == ["late"]

    run(scene)


def test_events_that_nobody_read_are_kept_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(events: Events) -> None:
        monkeypatch.setattr(module, "MOST_UNREAD", 10)
        events = Events()
        for number in range(12):
            events.publish(event(str(number)))
        with events.reading() as reader:
            events.close()
            assert [item.id async for item in reader] == [str(one) for one in range(7, 12)]
        events = Events()
        events.publish(event("old"))
        monkeypatch.setattr(module, "KEPT_NS", -1)
        with events.reading() as reader:
            events.close()
            assert [item.id async for item in reader] == []

    run(scene)


def test_a_reader_that_falls_behind_is_ended_and_the_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_UNREAD", 3)

    async def scene(events: Events) -> None:
        with events.reading() as slow, events.reading() as quick:
            for number in range(5):
                events.publish(event(str(number)))
                assert (await anext(quick)).id == str(number)
            with pytest.raises(OutOfResources, match="3 events behind"):
                await anext(slow)

    run(scene)


def test_a_reader_waits_for_what_comes() -> None:
    async def scene(events: Events) -> None:
        with events.reading() as reader:
            waiting = asyncio.create_task(anext(reader))
            await asyncio.sleep(0)
            assert not waiting.done()
            events.publish(event("a"))
            assert (await waiting).id == "a"

    run(scene)


def told(tmp_path: Path, scene: Callable[[Catalogue], Coroutine[Any, Any, None]]) -> list[Event]:
    """Return the events that a scene's changes of records make."""
    found: list[Event] = []

    async def main() -> None:
        database = await Database.open(tmp_path / "pycri.db")
        try:
            await scene(Catalogue(database, found.append))
        finally:
            await database.close()

    asyncio.run(main())
    return found


def kinds(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.id[0], event.kind.name) for event in events]


def test_a_life_makes_each_event_once_with_the_records_of_the_moment(tmp_path: Path) -> None:
    async def scene(catalogue: Catalogue) -> None:
        await catalogue.add_pod(POD)
        await catalogue.change_pod(
            POD.id, lambda old: with_facts(old, ready_ns=2, attachment=Attachment())
        )
        await catalogue.add_container(CONTAINER)
        await catalogue.change_container(CONTAINER.id, lambda old: with_facts(old, timeline=()))
        await catalogue.change_container(CONTAINER.id, lambda old: with_facts(old, started_ns=3))
        await catalogue.change_pod(POD.id, lambda old: with_facts(old, stopped_ns=4))
        await catalogue.change_container(
            CONTAINER.id, lambda old: with_facts(old, finished_ns=5, reason="OOMKilled")
        )
        await catalogue.remove_container(CONTAINER.id)
        await catalogue.remove_pod(POD.id)

    events = told(tmp_path, scene)
    assert kinds(events) == [
        ("a", "CREATED"), ("a", "STARTED"),
        ("c", "CREATED"), ("c", "STARTED"),
        ("a", "STOPPED"), ("c", "STOPPED"),
        ("c", "DELETED"), ("a", "DELETED"),
    ]  # fmt: skip
    assert all(event.pod is not None for event in events)
    states = [[container.state.name for container in event.containers] for event in events]
    assert states == [[], [], ["CREATED"], ["RUNNING"], ["RUNNING"], ["EXITED"], [], []]
    assert events[5].containers[0].reason == "OOMKilled"


def test_a_pod_that_never_was_ready_has_no_events(tmp_path: Path) -> None:
    async def scene(catalogue: Catalogue) -> None:
        await catalogue.add_pod(POD)
        await catalogue.change_pod(POD.id, lambda old: with_facts(old, stopped_ns=4))
        await catalogue.remove_pod(POD.id)
        await catalogue.remove_pod(POD.id)

    assert told(tmp_path, scene) == []


def test_a_start_that_failed_is_a_stop(tmp_path: Path) -> None:
    async def scene(catalogue: Catalogue) -> None:
        await catalogue.add_container(CONTAINER)
        await catalogue.change_container(CONTAINER.id, lambda old: with_facts(old, finished_ns=5))

    assert kinds(told(tmp_path, scene)) == [("c", "CREATED"), ("c", "STOPPED")]
