# SPDX-License-Identifier: Apache-2.0
"""What was measured, and how it is shown: tables in Markdown, ratios against the first runtime."""

import statistics
from collections.abc import Iterable

import msgspec

from tests.performance.memory import CONTAINERS, Memory

CALLS = (
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "ContainerStatus",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
)
"""A pod's life, in the order of the calls."""

LISTING = "ListContainers"
LISTED = 100
"""How many containers are on the node when they are listed."""


class Measured(msgspec.Struct, kw_only=True):
    """One runtime's numbers.

    times: milliseconds by call, in the order they were taken. empty, full: memory by role, without
    pods and with `pods` of them.
    """

    name: str
    version: str
    times: dict[str, list[float]] = {}
    pods: int = 0
    empty: dict[str, Memory] = {}
    full: dict[str, Memory] = {}

    def lives(self) -> list[float]:
        """Return what each pod's life took: the sum of its calls."""
        return [sum(calls) for calls in zip(*(self.times[call] for call in CALLS), strict=True)]

    def pss_per_pod(self, *roles: str) -> float:
        """Return the bytes of PSS that a pod adds to some roles."""
        return (_sum(self.full, roles).pss - _sum(self.empty, roles).pss) / self.pods

    def anonymous_per_pod(self, *roles: str) -> float:
        """Return the bytes of anonymous memory that a pod adds to some roles."""
        return (_sum(self.full, roles).anonymous - _sum(self.empty, roles).anonymous) / self.pods


def _sum(memory: dict[str, Memory], roles: Iterable[str]) -> Memory:
    return sum((memory.get(role, Memory()) for role in roles), Memory())


class Report(msgspec.Struct, kw_only=True):
    """A whole run. host: facts about the machine and the run, by name."""

    host: dict[str, str]
    runtimes: list[Measured]


def median(times: list[float]) -> float:
    """Return the median."""
    return statistics.median(times)


def percentile_95(times: list[float]) -> float:
    """Return the 95th percentile, between the two nearest samples."""
    return statistics.quantiles(times, n=20, method="inclusive")[-1] if times[1:] else times[0]


def render(report: Report) -> str:
    """Return the report as Markdown."""
    facts = [f"{name}: {value}" for name, value in report.host.items()]
    return "\n".join(
        [
            *facts,
            "",
            *render_table(_time_rows(report.runtimes)),
            "",
            *render_table(_memory_rows(report.runtimes)),
        ]
    )


def _time_rows(runtimes: list[Measured]) -> list[list[str]]:
    header = ["ms"]
    for runtime in runtimes:
        header += [runtime.name, "p95"] + ["ratio"] * (runtime is not runtimes[0])
    rows = [header]
    rows += [[call, *_times(r.times[call] for r in runtimes)] for call in CALLS]
    rows.append(["**a pod's life**", *_times(runtime.lives() for runtime in runtimes)])
    listing = f"{LISTING}, {LISTED} on the node"
    rows.append([listing, *_times(runtime.times[LISTING] for runtime in runtimes)])
    return rows


def _times(runs: Iterable[list[float]]) -> list[str]:
    first, *others = runs
    cells = [f"{median(first):.2f}", f"{percentile_95(first):.2f}"]
    for times in others:
        ratio = median(times) / median(first)
        cells += [f"{median(times):.2f}", f"{percentile_95(times):.2f}", f"{ratio:.1f}"]
    return cells


def _memory_rows(runtimes: list[Measured]) -> list[list[str]]:
    roles = sorted({role for r in runtimes for role in (*r.empty, *r.full)} - {CONTAINERS})

    def row(label: str, sizes: Iterable[float]) -> list[str]:
        return [label, *(f"{size / 1e6:.3f}" for size in sizes)]

    rows = [["MB", *(runtime.name for runtime in runtimes)]]
    rows.append(
        row("**an idle pod, the runtime's part**", (r.pss_per_pod(*roles) for r in runtimes))
    )
    anonymous = (r.anonymous_per_pod(*roles) for r in runtimes)
    rows.append(row("the same without pages of files", anonymous))
    for role in roles:
        rows.append(row(f"of it {role}", (r.anonymous_per_pod(role) for r in runtimes)))
    rows.append(row("an idle pod, its own process", (r.pss_per_pod(CONTAINERS) for r in runtimes)))
    for role in roles:
        sizes = [r.empty.get(role, Memory()).pss for r in runtimes]
        rows += [row(f"without pods: {role}", sizes)] if any(sizes) else []
    return rows


def render_table(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return lines
