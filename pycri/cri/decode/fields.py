# SPDX-License-Identifier: Apache-2.0
"""Checks of single field values. Each takes the value and its path in the CRI's own words.

All raise InvalidRequest(path, reason) and return the value, so that a decoder reads as one
expression. Text that reaches a system call must hold no NUL; text that becomes a line of a file
must hold no control character.
"""

import enum
import ipaddress
import re
from collections.abc import Iterable
from typing import TypeVar

from pycri.errors import InvalidRequest

E = TypeVar("E", bound=enum.Enum)

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WORD = re.compile(r"[^\s\x00-\x1f\x7f]+")


def required(text: str, path: str) -> str:
    """Return text that must be there and may be shown in one line."""
    if not text:
        raise InvalidRequest(path, "is missing")
    return one_line(text, path)


def one_line(text: str, path: str) -> str:
    """Return text, possibly empty, without control characters."""
    if _CONTROL.search(text):
        raise InvalidRequest(path, "holds a control character")
    return text


def word(text: str, path: str) -> str:
    """Return text without white space, not empty."""
    if not _WORD.fullmatch(text):
        raise InvalidRequest(path, f"{text!r} is empty or holds white space")
    return text


def words(texts: Iterable[str], path: str) -> tuple[str, ...]:
    """Return each of them checked by `word`."""
    return tuple(word(text, f"{path}[{i}]") for i, text in enumerate(texts))


def no_nul(text: str, path: str) -> str:
    """Return text that can be an argument of a system call."""
    if "\0" in text:
        raise InvalidRequest(path, "holds a NUL character")
    return text


def arguments(texts: Iterable[str], path: str) -> tuple[str, ...]:
    """Return arguments of execve(2)."""
    return tuple(no_nul(text, f"{path}[{i}]") for i, text in enumerate(texts))


def absolute(text: str, path: str) -> str:
    """Return an absolute path."""
    if not text:
        raise InvalidRequest(path, "is missing")
    if not text.startswith("/"):
        raise InvalidRequest(path, f"{text!r} is not an absolute path")
    return one_line(text, path)


def absolute_or_empty(text: str, path: str) -> str:
    return absolute(text, path) if text else ""


def beneath(text: str, path: str) -> str:
    """Return a path without "..", which cannot lead out of where it is put."""
    if ".." in text.split("/"):
        raise InvalidRequest(path, f'{text!r} holds ".."')
    return one_line(text, path)


def number(value: int, path: str, least: int, most: int) -> int:
    if not least <= value <= most:
        raise InvalidRequest(path, f"{value} is not between {least} and {most}")
    return value


def choice(value: int, path: str, kind: type[E]) -> E:
    """Return the member of `kind` with the CRI's number; proto3 enums are open."""
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequest(path, f"{value} is not a known value") from None


def address(text: str, path: str) -> str:
    """Return an IPv4 or IPv6 address in text, with a zone where one is given."""
    try:
        ipaddress.ip_address(one_line(text, path))
    except ValueError:
        raise InvalidRequest(path, f"{text!r} is not an IP address") from None
    return text
