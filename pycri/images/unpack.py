# SPDX-License-Identifier: Apache-2.0
"""A layer blob to a folder that overlay can mount. Run as a process of its own:

    python -m pycri.images.unpack FOLDER BLOB-DIGEST DIFF-ID RECIPE  < blob  > one JSON object

    thread    read, hash the blob, decompress
    thread    hash the tar
    thread    make the files (the first one)
    thread    now and then, and at the end: have it written to disk

A process, because tar is Python's work: in a thread it would take turns with the daemon's event
loop; and because a process can be killed at any instant and gives all its memory back. It knows
nothing of the daemon and imports little, to start fast; `unpacker.py` is the other side.
RECIPE is the file to make for `recipes.py`; there is none of an archive that cannot be made again.
Beside it are the layer's claims (claims.py), if it has any.
"""

import contextlib
import os
import sys
from typing import Final, NamedTuple

from pycri.errors import CorruptImage
from pycri.images.ahead import ahead
from pycri.images.answering import answer
from pycri.images.blobs import BlobInput, Hashed, PlainInput, decompressed
from pycri.images.claims import claims_path, write_claims
from pycri.images.recipes import RecipeWriter
from pycri.images.tree_digest import digest_tree
from pycri.images.unpacking import MOST_BYTES, Unpacking
from pycri.images.writeback import sync_and_measure, written_back

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacked(NamedTuple):
    """What a layer takes, its recipe and claims too; the fingerprint is of the folder alone.

    claims: their kind, "" if there are none. tree: the digest of the folder (tree_digest.py) where
    there is no recipe, else "".
    """

    size_bytes: int
    inodes: int
    fingerprint: int
    claims: str
    tree: str


def unpack_blob(
    blob_fd: int, folder: str, blob_digest: str, diff_id: str, recipe_path: str
) -> Unpacked:
    """Unpack the blob read from `blob_fd` into `folder`, empty, verified and synced.

    recipe_path: of a file on the same file system, made, and left if the archive can be made again.
    Raises: CorruptImage if either digest differs or the archive is bad; OSError.
    """
    blob = BlobInput(blob_fd)
    plain = Hashed(ahead(decompressed(blob)))
    with contextlib.ExitStack() as opened:
        root_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, root_fd)
        recipe_fd = os.open(recipe_path, _NEW_FILE, 0o600)
        opened.callback(os.close, recipe_fd)
        recipe = RecipeWriter(recipe_fd)
        stream = PlainInput(written_back(ahead(plain), folder), MOST_BYTES, recipe)
        claims = Unpacking(root_fd, recipe).unpack(stream)
        stream.finish()
        while blob.read():
            pass
        if blob.digest != blob_digest:
            raise CorruptImage(f"the layer {blob_digest} has the digest {blob.digest}")
        if plain.digest != diff_id:
            raise CorruptImage(f"the layer {diff_id} unpacks to the digest {plain.digest}")
        tree_digest = ""
        if not recipe.finish():
            os.unlink(recipe_path)
            tree_digest = digest_tree(root_fd)
        write_claims(claims_path(recipe_path), claims)
        tree = sync_and_measure(root_fd, folder)
    beside = [path for path in (recipe_path, claims_path(recipe_path)) if os.path.exists(path)]
    beside_bytes = sum(os.stat(path).st_blocks for path in beside) * 512
    return Unpacked(
        size_bytes=tree.size_bytes + beside_bytes,
        inodes=tree.inodes + len(beside),
        fingerprint=tree.fingerprint,
        claims=claims.kind,
        tree=tree_digest,
    )


def main() -> None:
    """Unpack standard input; print what came of it."""
    answer(lambda: unpack_blob(0, *sys.argv[1:5])._asdict(), bounded=True)


if __name__ == "__main__":
    main()
