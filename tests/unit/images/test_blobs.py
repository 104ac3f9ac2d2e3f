# SPDX-License-Identifier: Apache-2.0
import contextlib
import gzip
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator

import pytest
import zstandard

from pycri.errors import CorruptImage
from pycri.images.blobs import BlobInput, Hashed, PlainInput, decompressed

CONTENT = os.urandom(300_000) + b"0123456789" * 300_000


def unpacked(blob: bytes, limit: int = 1 << 30) -> tuple[bytes, str, str]:
    """Return the plain bytes, the digest of the blob and the diff id."""
    with tempfile.TemporaryFile() as file:
        file.write(blob)
        file.seek(0)
        source = BlobInput(file.fileno())
        pieces: list[bytes] = []

        def kept() -> Iterator[bytes]:
            for piece in decompressed(source):
                assert len(piece) <= 1024 * 1024
                pieces.append(piece)
                yield piece

        hashed = Hashed(kept())
        PlainInput(iter(hashed), limit).finish()
        while source.read():
            pass
        return b"".join(pieces), source.digest, hashed.digest


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "compress",
    [
        bytes,
        gzip.compress,
        zstandard.compress,
        lambda content: gzip.compress(content) + bytes(1000),
        lambda content: gzip.compress(content[:5]) + gzip.compress(content[5:]),
        lambda content: b"".join(
            gzip.compress(content[at : at + 9000]) for at in range(0, len(content), 9000)
        ),
        lambda content: zstandard.compress(content[:5]) + zstandard.compress(content[5:]),
        lambda content: b"\x50\x2a\x4d\x18\4\0\0\0skip" + zstandard.compress(content),
    ],
)
def test_a_blob_is_decompressed_and_hashed_twice(compress: Callable[[bytes], bytes]) -> None:
    blob = compress(CONTENT)
    assert unpacked(blob) == (CONTENT, sha256(blob), sha256(CONTENT))


def test_an_empty_blob_is_an_empty_layer() -> None:
    assert unpacked(b"")[0] == b""


@pytest.mark.parametrize(
    "blob",
    [
        gzip.compress(CONTENT)[:-10],
        gzip.compress(CONTENT)[:1000],
        gzip.compress(CONTENT)[:1000] + bytes(1000) + gzip.compress(CONTENT)[2000:],
        gzip.compress(CONTENT)[:-8] + bytes(8),
        gzip.compress(CONTENT) + b"garbage",
        zstandard.compress(CONTENT)[:1000],
        zstandard.compress(CONTENT)[:1000] + bytes(1000),
    ],
)
def test_a_damaged_stream_is_refused_or_changes_the_digest(blob: bytes) -> None:
    """A digest tells of every damage; an error only says it sooner."""
    with contextlib.suppress(CorruptImage):
        assert unpacked(blob)[2] != sha256(CONTENT)


def test_what_unpacks_to_more_than_the_limit_is_refused() -> None:
    with pytest.raises(CorruptImage, match="more than 1000000 bytes"):
        unpacked(gzip.compress(bytes(10_000_000)), limit=1_000_000)


def test_a_zstd_window_beyond_reason_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    blob = zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(CONTENT)
    with pytest.raises(CorruptImage):
        unpacked(blob or b"\x28\xb5\x2f\xfd\x00\xa0" + bytes(100))
