# SPDX-License-Identifier: Apache-2.0
"""Log lines as they appear on stderr."""

import json
import logging

import pytest

from pycri import logs


def test_a_line_is_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logs.Log("test").info("pod ready", pod="abc", ms=7.125, note='two "words"', none=None)
    line = capsys.readouterr().err
    assert line.startswith("time=20")
    assert line.endswith(
        ' level=info event="pod ready" pod=abc ms=7.1 note="two \\"words\\"" none=None\n'
    )


def test_the_request_id_of_the_context_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("debug")
    token = logs.request_id.set("5f3a01")
    try:
        logs.Log("test").debug("listing")
    finally:
        logs.request_id.reset(token)
    assert " request=5f3a01 event=listing" in capsys.readouterr().err


def test_lower_levels_are_silent_and_a_newline_cannot_forge_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("warning")
    logs.Log("test").info("unheard")
    logs.Log("test").warning("heard", name="a\ntime=0 level=error")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith('name="a\\ntime=0 level=error"')


def test_a_traceback_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    try:
        raise ValueError("bad")
    except ValueError as error:
        logs.Log("test").exception("failed", error, step="x")
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "ValueError: bad" in captured


def test_other_libraries_take_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    logging.getLogger("elsewhere").warning("value %d", 3)
    assert 'level=warning event="value 3"' in capsys.readouterr().err


def test_json_lines_have_the_same_keys(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "json")
    try:
        raise ValueError("why")
    except ValueError as error:
        logs.Log("test").exception("failed", error, pod="abc", ms=7.125, none=None)
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert (fields["event"], fields["pod"], fields["ms"], fields["none"]) == (
        "failed", "abc", 7.125, None,
    )  # fmt: skip
    assert fields["level"] == "error"
    assert "ValueError: why" in fields["traceback"]
