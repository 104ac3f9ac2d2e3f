# SPDX-License-Identifier: Apache-2.0
"""A layer's folder gives back the very archive, and tells when it is no longer what it was."""

import hashlib
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pycri.errors import CorruptImage
from pycri.images.pack import pack
from pycri.images.unpack import unpack_blob
from tests.world.images import layered_layers
from tests.world.oci import Layer

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


class Unpacked:
    """A layer unpacked from `archive`."""

    def __init__(self, tmp_path: Path, archive: bytes) -> None:
        self.folder = tmp_path / "layer"
        self.recipe = tmp_path / "recipe"
        self.digest = "sha256:" + hashlib.sha256(archive).hexdigest()
        self.folder.mkdir()
        blob = tmp_path / "blob"
        blob.write_bytes(archive)
        mask = os.umask(0)
        try:
            with open(blob, "rb") as file:
                unpack_blob(
                    file.fileno(), str(self.folder), self.digest, self.digest, str(self.recipe)
                )
        finally:
            os.umask(mask)

    def pack(self) -> bytes:
        """Return the archive made again."""
        output = self.folder.with_name("output")
        with open(output, "wb") as file:
            size = pack(str(self.folder), str(self.recipe), self.digest, file.fileno())
        archive = output.read_bytes()
        assert len(archive) == size
        return archive

    def check(self) -> None:
        """Compare the folder with its archive."""
        pack(str(self.folder), str(self.recipe), self.digest, None)


def every_kind(form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive with a member of each kind, long names, and bytes after its end."""
    buffer = io.BytesIO()
    with tarfile.TarFile(fileobj=buffer, mode="w", format=form) as archive:

        def add(name: str, data: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            for key, value in {"mode": 0o640, "uid": 5, "mtime": 77, **fields}.items():
                setattr(member, key, value)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        add("usr", type=tarfile.DIRTYPE, mode=0o755)
        add("usr/lib", type=tarfile.DIRTYPE, mode=0o750)
        add("lib", type=tarfile.SYMTYPE, linkname="usr/lib")
        add("lib/through-the-link", b"text")
        add("usr/" + "long/" * 30 + "name", random.Random(1).randbytes(3_000_001))
        add("empty")
        add("hard", type=tarfile.LNKTYPE, linkname="usr/lib/through-the-link")
        add("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("pipe", type=tarfile.FIFOTYPE)
        add("usr/.wh.gone")
        add("usr/lib/.wh..wh..opq")
        add("usr", type=tarfile.DIRTYPE, mode=0o711)
    return buffer.getvalue() + b"\0" * 300_000


@pytest.mark.parametrize("form", FORMATS)
def test_the_archive_comes_back_byte_by_byte(form: int, tmp_path: Path) -> None:
    archive = every_kind(form)
    layer = Unpacked(tmp_path, archive)
    assert layer.pack() == archive
    layer.check()
    assert layer.recipe.stat().st_size < 10_000


@pytest.mark.parametrize("number", range(4))
def test_layers_of_an_image_come_back(number: int, tmp_path: Path) -> None:
    archive = layered_layers()[number]
    layer = Unpacked(tmp_path, archive)
    assert layer.pack() == archive
    layer.check()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: os.truncate(f / "usr/lib/through-the-link", 0), "not the file of 4 bytes"),
        (lambda f: (f / "hard").write_text("TEXT"), "the archive's digest is"),
        (lambda f: (f / "empty").unlink(), "'empty' is missing"),
        (
            lambda f: (f / "lib").unlink(),
            "'lib/through-the-link' cannot be opened|'lib' is missing",
        ),
        (lambda f: os.chmod(f / "usr/lib", 0o700), "'usr/lib' has another mode"),
        (lambda f: os.chown(f / "empty", 5, 9), "'empty' has another owner"),
        (lambda f: os.utime(f / "pipe", (1, 1)), "'pipe' has another time"),
        (lambda f: (f / "more").write_text(""), "'more' is not of the layer"),
        (lambda f: (f / "usr/gone").unlink(), "'usr/gone' is missing"),
        (lambda f: os.removexattr(f / "usr/lib", "trusted.overlay.opaque"), "lacks its mark"),
        (lambda f: (f / "null").unlink() or (f / "null").touch(), "another kind"),
    ],
)
def test_a_folder_that_is_not_what_it_was_is_told(
    damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    layer = Unpacked(tmp_path, every_kind())
    times = {path: path.lstat().st_mtime_ns for path in layer.folder.rglob("*")}
    damage(layer.folder)
    for path, mtime_ns in times.items():
        if path.exists() and "time" not in words:
            os.utime(path, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
    with pytest.raises(CorruptImage, match=words):
        layer.check()


SPARSE_OPTIONS = [["--format=gnu"]] + [
    ["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")
]


@pytest.mark.parametrize("options", SPARSE_OPTIONS)
def test_sparse_files_come_back_and_are_compared(options: list[str], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "sparse", "wb") as file:
        for number in range(30):
            file.seek(number * 200_000)
            file.write(os.urandom(5000))
        file.truncate(8_000_000)
    command = ["tar", "-C", str(source), "--sparse", *options, "-cf", "-", "."]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    layer = Unpacked(tmp_path, archive)
    assert layer.pack() == archive
    layer.check()
    copy = layer.folder / "sparse"
    mtime_ns = copy.stat().st_mtime_ns
    with open(copy, "r+b") as file:
        file.seek(400_100)
        file.write(b"another")
    os.utime(copy, ns=(mtime_ns, mtime_ns))
    with pytest.raises(CorruptImage, match=r"'\./sparse' is not what it was"):
        layer.check()
    os.truncate(copy, 7_000_000)
    with pytest.raises(CorruptImage, match="is not the file of 8000000 bytes"):
        layer.check()


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    layer = Unpacked(tmp_path, Layer().file("a", b"text").tar())
    (layer.folder / "a").unlink()
    os.mkfifo(layer.folder / "a")
    with pytest.raises(CorruptImage, match="not the file of 4 bytes"):
        layer.pack()


def test_a_damaged_recipe_is_told(tmp_path: Path) -> None:
    layer = Unpacked(tmp_path, every_kind())
    whole = layer.recipe.read_bytes()
    layer.recipe.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptImage, match="recipe of a layer is damaged"):
        layer.check()


@pytest.mark.parametrize(
    "archive",
    [
        Layer().file("a", b"first").file("a", b"second").tar(),
        Layer().directory("a").file("a/b", b"text").file("a", b"now a file").tar(),
    ],
)
def test_an_archive_that_replaces_its_own_files_has_no_recipe(
    archive: bytes, tmp_path: Path
) -> None:
    layer = Unpacked(tmp_path, archive)
    assert not layer.recipe.exists()


def test_a_whiteout_that_a_folder_replaces_is_no_loss(tmp_path: Path) -> None:
    archive = Layer().whiteout("a").directory("a").file("a/b", b"text").tar()
    assert Unpacked(tmp_path, archive).pack() == archive
