# SPDX-License-Identifier: Apache-2.0
"""What was measured, and how it is shown: tables in Markdown, ratios against the first runtime."""

import statistics
from collections.abc import Iterable

import msgspec

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

    times: milliseconds by call, in the order they were taken. empty, full: bytes by role, without
    pods and with `pods` of them.
    """

    name: str
    version: str
    times: dict[str, list[float]] = {}
    pods: int = 0
    empty: dict[str, int] = {}
    full: dict[str, int] = {}

    def lives(self) -> list[float]:
        """Return what each pod's life took: the sum of its calls."""
        return [sum(calls) for calls in zip(*(self.times[call] for call in CALLS), strict=True)]

    def growth_per_pod(self, role: str) -> float:
        """Return the bytes that a pod adds to a role."""
        return (self.full.get(role, 0) - self.empty.get(role, 0)) / self.pods


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


def render(report: Report, *, containers: str) -> str:
    """Return the report as Markdown. containers: the role whose memory is the pod's own."""
    facts = [f"{name}: {value}" for name, value in report.host.items()]
    return "\n".join(
        [
            *facts,
            "",
            *_render_table(_time_rows(report.runtimes)),
            "",
            *_render_table(_memory_rows(report.runtimes, containers)),
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


def _memory_rows(runtimes: list[Measured], containers: str) -> list[list[str]]:
    roles = sorted({role for r in runtimes for role in (*r.empty, *r.full)} - {containers})
    rows = [["MB", *(runtime.name for runtime in runtimes)]]
    costs = [sum(r.growth_per_pod(role) for role in roles) for r in runtimes]
    rows.append(["**an idle pod, the runtime's part**", *map(_megabytes, costs)])
    for role in roles:
        rows.append([f"of it {role}", *(_megabytes(r.growth_per_pod(role)) for r in runtimes)])
    own = [_megabytes(r.growth_per_pod(containers)) for r in runtimes]
    rows.append(["an idle pod, its own process", *own])
    for role in roles:
        if any(role in r.empty for r in runtimes):
            cells = [_megabytes(r.empty[role]) if role in r.empty else "" for r in runtimes]
            rows.append([f"without pods: {role}", *cells])
    return rows


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.3f}"


def _render_table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return lines
