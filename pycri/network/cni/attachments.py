# SPDX-License-Identifier: Apache-2.0
"""What was asked of plugins for each pod, and what they answered: rows of `cni_attachments`.

    (none) ──save──▶ asked ──save, with a result──▶ attached
                        └──────── release ───────────────┴──▶ releasing ──forget──▶ (none)

A row is written before the first plugin is run, and forgotten when every plugin has agreed that
nothing is left: so a DEL can always be made as its ADD was, whatever became of the configuration,
the pod and its namespace. The functions run inside `Database.transact`.
"""

from collections.abc import Sequence
from sqlite3 import Connection

import msgspec

from pycri.errors import Unsupported
from pycri.model.ids import PodId
from pycri.network.cni.conflist import Json, Network


class CniAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a pod, and the network that it is on.

    netns: path of the namespace's pin. arguments: pairs of CNI_ARGS; capability_arguments: by
    capability. result: of the last plugin's ADD, None before. releasing: DEL is due.
    """

    pod_id: PodId
    interface: str
    network: Network
    netns: str
    arguments: tuple[tuple[str, str], ...] = ()
    capability_arguments: Json = {}
    result: Json | None = None
    releasing: bool = False


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(CniAttachment)


def save(connection: Connection, entries: Sequence[CniAttachment]) -> None:
    connection.executemany(
        "INSERT INTO cni_attachments (pod_id, interface, record) VALUES (?, ?, ?)"
        " ON CONFLICT (pod_id, interface) DO UPDATE SET record = excluded.record",
        [(entry.pod_id, entry.interface, _encode(entry)) for entry in entries],
    )


def release(connection: Connection, pod_id: PodId) -> list[CniAttachment]:
    """Note that DEL is due for all of the pod's attachments; return them as they were made."""
    found = load(connection, pod_id)
    save(connection, [msgspec.structs.replace(entry, releasing=True) for entry in found])
    return found


def forget(connection: Connection, attachment: CniAttachment) -> None:
    connection.execute(
        "DELETE FROM cni_attachments WHERE pod_id = ? AND interface = ?",
        (attachment.pod_id, attachment.interface),
    )


def load(connection: Connection, pod_id: PodId | None = None) -> list[CniAttachment]:
    """Return the attachments of a pod, or all, in the order in which they were made."""
    query = "SELECT pod_id, record FROM cni_attachments WHERE ?1 IS NULL OR pod_id = ?1"
    attachments = []
    for holder, blob in connection.execute(f"{query} ORDER BY rowid", (pod_id,)):
        try:
            attachments.append(_decoder.decode(blob))
        except msgspec.DecodeError as error:
            reason = f"the stored attachment of pod {holder} is damaged: {error}"
            raise Unsupported(reason) from error
    return attachments
