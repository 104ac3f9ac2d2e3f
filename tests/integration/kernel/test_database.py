# SPDX-License-Identifier: Apache-2.0
"""The database on real file systems: full, locked, killed in the middle, of another version."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycri import errors
from pycri.kernel.syscalls import MNT_DETACH, MountFlag, mount, umount2
from pycri.state import database, records
from pycri.state.database import Database


def _count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM meta").fetchone()[0])


@pytest.fixture
def small_disk(scope: object, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("tmpfs", str(folder), "tmpfs", MountFlag.NOSUID, "size=512k")
    yield folder
    umount2(str(folder), MNT_DETACH)
    folder.rmdir()


def test_a_transaction_is_kept_over_close_and_open(tmp_path: Path) -> None:
    async def body() -> None:
        path = tmp_path / "new" / "pycri.db"
        for durable in (False, True):
            store = await Database.open(path)
            await store.transact(
                lambda c: records.save_meta(c, f"key {durable}", "v"),  # noqa: B023
                durable=durable,
            )
            await store.close()
            await store.close()
        store = await Database.open(path)
        assert await store.transact(_count) == 2
        await store.close()

    asyncio.run(body())


def test_a_transaction_that_fails_changes_nothing(tmp_path: Path) -> None:
    def work(connection: sqlite3.Connection) -> None:
        records.save_meta(connection, "a", "1")
        raise LookupError("no")

    async def body() -> None:
        store = await Database.open(tmp_path / "pycri.db")
        with pytest.raises(LookupError, match="no"):
            await store.transact(work)
        assert await store.transact(_count) == 0
        await store.close()

    asyncio.run(body())


def test_concurrent_transactions_run_one_after_the_other(tmp_path: Path) -> None:
    def increment(connection: sqlite3.Connection) -> None:
        value = int(records.load_meta(connection, "n") or "0")
        records.save_meta(connection, "n", str(value + 1))

    async def body() -> None:
        store = await Database.open(tmp_path / "pycri.db")
        await asyncio.gather(*(store.transact(increment) for _ in range(200)))
        assert await store.transact(lambda c: records.load_meta(c, "n")) == "200"
        await store.close()

    asyncio.run(body())


def test_a_full_disk_is_out_of_resources_and_the_database_lives_on(small_disk: Path) -> None:
    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO images VALUES ('big', zeroblob(2000000))")

    async def body() -> None:
        store = await Database.open(small_disk / "pycri.db")
        await store.transact(lambda c: records.save_meta(c, "a", "1"))
        with pytest.raises(errors.OutOfResources):
            await store.transact(fill)
        (small_disk / "other").write_bytes(b"")
        assert await store.transact(_count) == 1
        await store.transact(lambda c: records.save_meta(c, "b", "1"))
        await store.close()

    asyncio.run(body())


def test_a_disk_that_is_full_from_the_start_is_out_of_resources(small_disk: Path) -> None:
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))
    with pytest.raises(errors.OutOfResources):
        asyncio.run(Database.open(small_disk / "pycri.db"))


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pycri.db"
    newer = len(database.MIGRATIONS) + 1
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {newer}")
    connection.close()
    with pytest.raises(errors.Unsupported, match=rf"version {newer}, written by a newer"):
        asyncio.run(Database.open(path))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_an_older_file_is_migrated_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def open_and_count() -> int:
        store = await Database.open(tmp_path / "pycri.db")
        try:
            return await store.transact(_count)
        finally:
            await store.close()

    assert asyncio.run(open_and_count()) == 0
    step = "INSERT INTO meta VALUES ('migrated', '1');"
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, step))
    assert asyncio.run(open_and_count()) == 1
    assert asyncio.run(open_and_count()) == 1


def test_a_migration_that_fails_leaves_the_older_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pycri.db"
    steps = (*database.MIGRATIONS, "INSERT INTO meta VALUES ('half', '1'); INSERT INTO none;")
    monkeypatch.setattr(database, "MIGRATIONS", steps)
    with pytest.raises(sqlite3.OperationalError):
        asyncio.run(Database.open(path))
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(steps) - 1,)
    assert _count(connection) == 0
    connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pycri.db"
    path.write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(errors.Unsupported, match="damaged"):
        asyncio.run(Database.open(path))


def test_a_database_that_another_process_is_writing_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    path = tmp_path / "pycri.db"

    async def body() -> None:
        store = await Database.open(path)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.Unavailable, match="in use"):
            await store.transact(lambda c: records.save_meta(c, "a", "1"))
        other.execute("COMMIT")
        other.close()
        await store.transact(lambda c: records.save_meta(c, "a", "1"))
        await store.close()

    asyncio.run(body())


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from pycri.state import records
from pycri.state.database import Database

def half(connection):
    records.save_meta(connection, "half", "1")
    os.kill(os.getpid(), signal.SIGKILL)

async def body():
    store = await Database.open(Path(sys.argv[1]))
    await store.transact(lambda c: records.save_meta(c, "whole", "1"))
    await store.transact(half)

asyncio.run(body())
"""


def test_a_writer_killed_within_a_transaction_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "pycri.db"
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert result.returncode == -signal.SIGKILL

    async def body() -> None:
        store = await Database.open(path)
        assert await store.transact(lambda c: records.load_meta(c, "whole")) == "1"
        assert await store.transact(lambda c: records.load_meta(c, "half")) is None
        await store.close()

    asyncio.run(body())
