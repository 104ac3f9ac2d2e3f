# SPDX-License-Identifier: Apache-2.0
"""The error table is whole, and messages read as the kubelet expects."""

import errno
import os
from collections.abc import Iterator

import pytest

from pycri import errors
from pycri.cri import status
from pycri.cri.rpc import Code


def leaves(kind: type[Exception]) -> Iterator[type[Exception]]:
    """Those of `errors.py`; a module's private subclass takes the code of what it extends."""
    children = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    for child in children:
        yield from leaves(child)
    if not children:
        yield kind


def test_every_leaf_of_the_tree_has_a_row() -> None:
    missing = [kind.__name__ for kind in leaves(errors.PycriError) if kind not in status.CODES]
    assert not missing


def test_every_row_is_a_leaf_of_the_tree() -> None:
    assert set(status.CODES) <= set(leaves(errors.PycriError))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidRequest("a", "b"), Code.INVALID_ARGUMENT),
        (errors.NotFound("pod", "x"), Code.NOT_FOUND),
        (errors.Unsupported("x"), Code.UNIMPLEMENTED),
        (errors.TimedOut("x"), Code.DEADLINE_EXCEEDED),
        (errors.SetupFailed("mount", errno.EPERM, "x"), Code.INTERNAL),
        (errors.SetupFailed("mount", errno.ENOSPC, "x"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.ENOSPC, "full"), Code.RESOURCE_EXHAUSTED),
        (OSError(errno.EIO, "bad"), Code.INTERNAL),
        (KeyError("x"), Code.INTERNAL),
    ],
)
def test_codes_are_those_of_the_table(error: Exception, code: Code) -> None:
    assert status.code_of(error) is code


def test_a_registry_that_is_down_is_called_by_the_cris_name() -> None:
    error = errors.RegistryUnavailable("example.test: connection refused")
    assert status.code_of(error) is Code.UNKNOWN
    assert status.message_of(error).startswith("RegistryUnavailable: example.test")


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (errors.ImageVolumeMountFailed("config.mounts[0].image: x"), "ImageVolumeMountFailed: "),
        (errors.RecursiveReadOnlyUnsupported("config.mounts[0]: x"), "RROUnsupported: "),
    ],
)
def test_mounts_that_fail_are_called_by_the_cris_names(error: Exception, name: str) -> None:
    assert status.code_of(error) is Code.UNKNOWN
    assert status.message_of(error).startswith(f"{name}config.mounts[0]")


def test_notes_follow_the_message_and_foreign_errors_name_their_class() -> None:
    error = errors.NotFound("image", "x")
    error.add_note("while creating container c")
    assert status.message_of(error) == "image 'x' not found; while creating container c"
    assert status.message_of(KeyError("x")) == "KeyError: 'x'"


def test_a_message_fits_a_header() -> None:
    assert len(status.message_of(errors.WrongState("x" * 100_000))) <= status.LONGEST_MESSAGE


def test_a_path_that_is_no_text_can_be_told() -> None:
    text = status.message_of(errors.NotFound("file", os.fsdecode(b"/a\xff")))
    assert rb"/a\udcff" in text.encode()
