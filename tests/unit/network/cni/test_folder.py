# SPDX-License-Identifier: Apache-2.0
import asyncio
import os
from pathlib import Path

from pycri.network.cni.folder import LARGEST_BYTES, ConfigFolder, read_files

CONFLIST = '{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}'


def test_configurations_are_read_and_what_else_lies_there_is_not(tmp_path: Path) -> None:
    for name in ("b.conflist", "a.conf", "c.json", "d.conflist.bak", ".hidden", "README"):
        (tmp_path / name).write_text(name)
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/1.conf").write_text("inner")
    (tmp_path / "pods/1.json").write_text("no")
    found = {file.path: file.content for file in read_files(str(tmp_path))}
    assert found == {
        "a.conf": b"a.conf",
        "b.conflist": b"b.conflist",
        "c.json": b"c.json",
        "pods/1.conf": b"inner",
    }


def test_what_cannot_be_read_is_a_fault_of_its_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.conflist")
    (tmp_path / "2.conflist").symlink_to("nowhere")
    with open(tmp_path / "3.conflist", "wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    assert [file.fault for file in read_files(str(tmp_path))] == [
        "not a file",
        "No such file or directory",
        f"larger than {LARGEST_BYTES} bytes",
    ]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text(CONFLIST)
    (tmp_path / "net.d").mkdir()
    (tmp_path / "net.d/1.conflist").symlink_to("../data")
    assert read_files(f"{tmp_path}/net.d")[0].content == CONFLIST.encode()


def test_a_folder_that_is_absent_or_none_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert read_files(f"{tmp_path}/absent") == read_files(f"{tmp_path}/file") == ()


def test_a_folder_remembers_that_it_held_a_configuration(tmp_path: Path) -> None:
    async def body() -> None:
        folder = ConfigFolder(str(tmp_path))
        assert (await folder.read()).default is None
        assert not folder.present
        (tmp_path / "1.conflist").write_text(CONFLIST)
        network = (await folder.read()).default
        assert network
        assert network.name == "pods"
        (tmp_path / "1.conflist").unlink()
        assert (await folder.read()).default is None
        assert folder.present

    asyncio.run(body())
