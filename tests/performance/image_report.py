# SPDX-License-Identifier: Apache-2.0
"""What pulls took, and how it is shown: tables in Markdown, ratios against the first puller."""

from statistics import median

import msgspec

from tests.performance.report import render_table


class Pulls(msgspec.Struct, kw_only=True):
    """One image on one puller. Seconds, in the order they were taken; peaks in bytes, by role."""

    pull_s: list[float] = []
    on_disk_s: list[float] = []
    peaks: dict[str, int] = {}


class Measured(msgspec.Struct, kw_only=True):
    """One image on all pullers, by their names, pycri first. facts: what the image is."""

    image: str
    facts: str
    pullers: dict[str, Pulls] = {}


class Report(msgspec.Struct, kw_only=True):
    """A whole run. host: facts about the machine and the run, by name."""

    host: dict[str, str]
    images: list[Measured]


def render(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"{name}: {value}" for name, value in report.host.items()]
    for measured in report.images:
        lines += ["", f"{measured.image}: {measured.facts}", "", *render_table(_rows(measured))]
    return "\n".join(lines)


def _rows(measured: Measured) -> list[list[str]]:
    first = next(iter(measured.pullers.values()))
    header = ["", "pull s", "least", "ratio", "on disk s", "ratio", "peak MB: daemon", "others"]
    rows = [header]
    for name, pulls in measured.pullers.items():
        rows.append(
            [
                name,
                f"{median(pulls.pull_s):.2f}",
                f"{min(pulls.pull_s):.2f}",
                f"{median(pulls.pull_s) / median(first.pull_s):.2f}",
                f"{median(pulls.on_disk_s):.2f}",
                f"{median(pulls.on_disk_s) / median(first.on_disk_s):.2f}",
                _megabytes(pulls.peaks.get("daemon")),
                _megabytes(pulls.peaks.get("processes of a pull")),
            ]
        )
    return rows


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"
