# SPDX-License-Identifier: Apache-2.0
"""Exit records: one small file a task, /run/pycri/exits/ID, the truth about how it ended.

Written beside and renamed, so a reader sees a whole record or none. The folder is on a tmpfs and
dies with the boot, as the tasks do.
"""

import os

import msgspec

from pycri.model.ids import TaskId
from pycri.wire.messages import ExitRecord


def write_record(directory: str, record: ExitRecord) -> None:
    """Store a record; it is there when this returns."""
    path = f"{directory}/{record.id}"
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(record))
    os.rename(f"{path}.new", path)


def read_records(directory: str) -> list[ExitRecord]:
    """Return every whole record; leftovers of an interrupted write are removed."""
    records = []
    for name in os.listdir(directory):
        path = f"{directory}/{name}"
        if name.endswith(".new"):
            os.unlink(path)
            continue
        with open(path, "rb") as file:
            records.append(msgspec.json.decode(file.read(), type=ExitRecord))
    return records


def remove_record(directory: str, task: TaskId) -> None:
    """Remove a record; absent is fine."""
    try:
        os.unlink(f"{directory}/{task}")
    except FileNotFoundError:
        return
