# SPDX-License-Identifier: Apache-2.0
"""Typed rows: pods, containers, images, layers, and a few named facts (meta).

    save_*(connection, record)     insert or replace the row with the record's id
    delete_*(connection, id)       delete it; one that is absent is fine
    load_*(connection)             all rows, in the order in which they were first saved

All are to be called inside `Database.transact`. A record is one MessagePack map; beside it stand
only the columns that must be unique. Its version is that of the file (see `database.py`): a field
it lacks has its default, and a record that does not fit its type is refused, never half read.
"""

import sqlite3
from typing import TypeVar

import msgspec

from pycri import errors
from pycri.model.container import ContainerRecord
from pycri.model.ids import ContainerId, Digest, ImageId, PodId
from pycri.model.image import Image, LayerRow
from pycri.model.pod import PodMetadata, PodRecord

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode
_pods = msgspec.msgpack.Decoder(PodRecord)
_containers = msgspec.msgpack.Decoder(ContainerRecord)
_images = msgspec.msgpack.Decoder(Image)
_layers = msgspec.msgpack.Decoder(LayerRow)


def pod_name_key(metadata: PodMetadata) -> str:
    """Return what is unique among pods; Kubernetes names hold no underscore."""
    return f"{metadata.name}_{metadata.namespace}_{metadata.uid}_{metadata.attempt}"


def save_pod(connection: sqlite3.Connection, record: PodRecord) -> None:
    """Raises: AlreadyExists if another pod has the name."""
    name = pod_name_key(record.spec.metadata)
    try:
        connection.execute(
            "INSERT INTO pods (id, name, record) VALUES (?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
            (record.id, name, _encode(record)),
        )
    except sqlite3.IntegrityError as error:
        raise errors.AlreadyExists(f"the pod name {name} is in use") from error


def delete_pod(connection: sqlite3.Connection, pod_id: PodId) -> None:
    connection.execute("DELETE FROM pods WHERE id = ?", (pod_id,))


def load_pods(connection: sqlite3.Connection) -> list[PodRecord]:
    return _decoded(connection, "SELECT id, record FROM pods ORDER BY rowid", _pods)


def save_container(connection: sqlite3.Connection, record: ContainerRecord) -> None:
    """Raises: AlreadyExists if another container of the pod has the name and attempt."""
    metadata = record.spec.metadata
    try:
        connection.execute(
            "INSERT INTO containers (id, pod_id, name, attempt, record) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            (record.id, record.pod_id, metadata.name, metadata.attempt, _encode(record)),
        )
    except sqlite3.IntegrityError as error:
        raise errors.AlreadyExists(
            f"the container name {metadata.name} (attempt {metadata.attempt}) is in use"
            f" in pod {record.pod_id}"
        ) from error


def delete_container(connection: sqlite3.Connection, container_id: ContainerId) -> None:
    connection.execute("DELETE FROM containers WHERE id = ?", (container_id,))


def load_containers(connection: sqlite3.Connection) -> list[ContainerRecord]:
    return _decoded(connection, "SELECT id, record FROM containers ORDER BY rowid", _containers)


def save_image(connection: sqlite3.Connection, image: Image) -> None:
    connection.execute(
        "INSERT INTO images (id, record) VALUES (?, ?)"
        " ON CONFLICT (id) DO UPDATE SET record = excluded.record",
        (image.id, _encode(image)),
    )


def save_image_config(connection: sqlite3.Connection, image_id: ImageId, body: bytes) -> None:
    """Keep the config of an image as it came: the id is its digest."""
    connection.execute(
        "INSERT OR REPLACE INTO image_configs (id, body) VALUES (?, ?)", (image_id, body)
    )


def load_image_config(connection: sqlite3.Connection, image_id: ImageId) -> bytes | None:
    query = "SELECT body FROM image_configs WHERE id = ?"
    row = connection.execute(query, (image_id,)).fetchone()
    return None if row is None else bytes(row[0])


def delete_image(connection: sqlite3.Connection, image_id: ImageId) -> None:
    """Delete its config, too."""
    connection.execute("DELETE FROM images WHERE id = ?", (image_id,))
    connection.execute("DELETE FROM image_configs WHERE id = ?", (image_id,))


def load_images(connection: sqlite3.Connection) -> list[Image]:
    return _decoded(connection, "SELECT id, record FROM images ORDER BY rowid", _images)


def save_layer(connection: sqlite3.Connection, layer: LayerRow) -> None:
    connection.execute(
        "INSERT INTO layers (digest, record) VALUES (?, ?)"
        " ON CONFLICT (digest) DO UPDATE SET record = excluded.record",
        (layer.digest, _encode(layer)),
    )


def delete_layer(connection: sqlite3.Connection, digest: Digest) -> None:
    connection.execute("DELETE FROM layers WHERE digest = ?", (digest,))


def load_layers(connection: sqlite3.Connection) -> list[LayerRow]:
    return _decoded(connection, "SELECT digest, record FROM layers ORDER BY rowid", _layers)


def save_meta(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))


def delete_meta(connection: sqlite3.Connection, key: str) -> None:
    connection.execute("DELETE FROM meta WHERE key = ?", (key,))


def load_meta(connection: sqlite3.Connection, key: str) -> str | None:
    """Return the fact named `key` ("boot_id", "pod_cidr"), or None if it was never saved."""
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _decoded(
    connection: sqlite3.Connection, query: str, decoder: msgspec.msgpack.Decoder[T]
) -> list[T]:
    records = []
    for row_id, blob in connection.execute(query):
        try:
            records.append(decoder.decode(blob))
        except msgspec.DecodeError as error:  # also ValidationError, its subclass
            raise errors.Unsupported(
                f"the stored record of {row_id} is damaged: {error}"
            ) from error
    return records
