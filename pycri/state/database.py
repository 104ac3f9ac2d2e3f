# SPDX-License-Identifier: Apache-2.0
"""The database: one SQLite file, one writer thread, short transactions.

What the tables hold is in `records.py`, `network/ipam.py` and `network/cni/attachments.py`; here is
how they are kept.

The journal is a write-ahead log with synchronous=NORMAL: a commit survives the death of the daemon,
and loss of power may take the last commits back but never tears one. That is enough for pods, since
everything of a former boot is freed at start; what must outlive a loss of power (images) commits
with `durable=True`.

`user_version` of the file is the version of the tables and of every record in them: an older file
is migrated when it is opened, a newer one is refused.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, Self, TypeVar

from pycri import errors
from pycri.kernel.priority import go_first
from pycri.state import conversions

T = TypeVar("T")

MIGRATIONS: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE pods (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record BLOB NOT NULL
    ) STRICT;
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, pod_id TEXT NOT NULL, name TEXT NOT NULL, attempt INTEGER NOT NULL,
        record BLOB NOT NULL, UNIQUE (pod_id, name, attempt)
    ) STRICT;
    CREATE TABLE images (id TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE layers (digest TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT;
    CREATE TABLE addresses (
        address INTEGER PRIMARY KEY, pod_id TEXT NOT NULL UNIQUE, releasing INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE image_configs (id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
    """,
    "UPDATE pods SET record = attachment_with_interfaces(record);",
    """
    CREATE TABLE cni_attachments (
        pod_id TEXT NOT NULL, interface TEXT NOT NULL, record BLOB NOT NULL,
        UNIQUE (pod_id, interface)
    ) STRICT;
    """,
    """
    CREATE TABLE endpoints (
        pod_id TEXT PRIMARY KEY, mac TEXT NOT NULL UNIQUE, releasing INTEGER NOT NULL
    ) STRICT;
    INSERT INTO endpoints SELECT pod_id, mac_of_ipv4(address), releasing FROM addresses;
    ALTER TABLE addresses RENAME TO addresses_of_ipv4;
    CREATE TABLE addresses (
        version INTEGER NOT NULL, address BLOB NOT NULL, pod_id TEXT NOT NULL,
        PRIMARY KEY (version, address)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX addresses_by_pod ON addresses (pod_id);
    INSERT INTO addresses SELECT 4, packed_ipv4(address), pod_id FROM addresses_of_ipv4;
    DROP TABLE addresses_of_ipv4;
    CREATE TABLE host_ports (
        protocol INTEGER NOT NULL, host_port INTEGER NOT NULL, host_ip TEXT NOT NULL,
        container_port INTEGER NOT NULL, pod_id TEXT NOT NULL,
        PRIMARY KEY (protocol, host_port, host_ip)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX host_ports_by_pod ON host_ports (pod_id);
    """,
    "",  # layers have claims and stacks
    "",  # images have annotations
)
"""Element N turns version N into N + 1. A field added to a record needs a step as well, if only an
empty one: it is what makes an older pycri refuse the file instead of dropping the field."""

BUSY_TIMEOUT_S: Final = 5.0


class Database:
    """An open database. All statements run in one thread, in the order of the calls."""

    def __init__(self, connection: sqlite3.Connection, writer: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the database at `path`, made with its folder if missing, and migrate it.

        Raises: Unsupported if it was written by a newer version or is not a database;
            OutOfResources if the disk is full; Unavailable if another process is writing it.
        """
        writer = ThreadPoolExecutor(1, "database", initializer=go_first)
        try:
            connection = await _run(writer, lambda: _open(path))
        except BaseException:
            writer.shutdown(wait=False)
            raise
        return cls(connection, writer)

    async def transact(
        self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False
    ) -> T:
        """Run `work` in one transaction and return its result; any exception rolls back.

        durable: the commit has reached the disk when this returns.
        A caller that is cancelled does not stop the transaction.
        Raises: OutOfResources if the disk is full; what `work` raises.
        """
        return await _run(self._writer, lambda: _transact(self._connection, work, durable=durable))

    async def close(self) -> None:
        """Finish the calls under way and close the file. Closing twice is harmless."""
        try:
            await _run(self._writer, self._connection.close)
        except RuntimeError:  # the executor was shut down: closed before
            return
        self._writer.shutdown()


async def _run(writer: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(writer, call)


def read_database(path: Path, work: Callable[[sqlite3.Connection], T]) -> T | None:
    """Return what `work` reads from the file at `path`, which a daemon may be writing.

    None where there is no such file. Raises: Unsupported, if another version has written it.
    """
    if not path.exists():
        return None
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with (
        _translated(),
        closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)) as connection,
    ):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != len(MIGRATIONS):
            raise errors.Unsupported(f"{path} has version {version}, not {len(MIGRATIONS)}")
        return work(connection)


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        with _translated():
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the tables to this version. Raises: Unsupported if they are of a newer one."""
    conversions.register(connection)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise errors.Unsupported(
            f"{path} has version {version}, written by a newer pycri; "
            f"this one knows versions up to {len(MIGRATIONS)}"
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        )


def _transact(
    connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T], *, durable: bool
) -> T:
    with _translated():
        if durable:
            connection.execute("PRAGMA synchronous = FULL")
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = work(connection)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if durable:
                connection.execute("PRAGMA synchronous = NORMAL")
    return result


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what SQLite says about the disk and the file into pycri's errors."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", 0):
            case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR_SHMSIZE | sqlite3.SQLITE_IOERR_WRITE:
                raise errors.OutOfResources(f"the state database cannot grow: {error}") from error
            case sqlite3.SQLITE_BUSY:
                raise errors.Unavailable(f"the state database is in use: {error}") from error
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                raise errors.Unsupported(f"the state database is damaged: {error}") from error
        raise
