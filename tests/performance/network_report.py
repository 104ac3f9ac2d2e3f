# SPDX-License-Identifier: Apache-2.0
"""What networks cost, and how it is shown: tables in Markdown, ratios against the first runtime."""

import random
from statistics import median

import msgspec

from tests.performance.report import percentile_95, render_table

HOST, OWN, PORT = "on the host's network", "on its own network", "with a host port"
"""Kinds of pods."""

_DRAWS = 4000


class Measured(msgspec.Struct, kw_only=True):
    """One runtime. runs: milliseconds of RunPodSandbox by kind of pod; stops: those of Stop.

    bursts: seconds until the last of many pods that were asked for at once was ready.
    """

    name: str
    runs: dict[str, list[float]] = {}
    bursts: list[float] = []
    ends: list[float] = []

    def parts(self, kind: str) -> list[float]:
        """Return what the network took of each pod: the round's pod on the host's taken off."""
        return [own - host for own, host in zip(self.runs[kind], self.runs[HOST], strict=True)]


class Report(msgspec.Struct, kw_only=True):
    """A whole run. host: facts about the machine and the run. carried: bits a second by path."""

    host: dict[str, str]
    burst: int
    runtimes: list[Measured] = []
    carried: dict[str, list[float]] = {}


def render(report: Report) -> str:
    """Return the report as Markdown."""
    lines = [f"{name}: {value}" for name, value in report.host.items()]
    if report.runtimes:
        lines += ["", *render_table(_run_rows(report.runtimes))]
        lines += ["", *render_table(_burst_rows(report))]
    if report.carried:
        lines += ["", *render_table(_carried_rows(report.carried))]
        lines += ["", _render_noise(next(iter(report.carried.values())))]
    return "\n".join(lines)


def _run_rows(runtimes: list[Measured]) -> list[list[str]]:
    header = ["RunPodSandbox, ms"]
    for runtime in runtimes:
        header += [runtime.name, "p95"] + ["ratio"] * (runtime is not runtimes[0])
    rows = [header]
    kinds = list(runtimes[0].runs)
    rows += [[f"a pod {kind}", *_cells([r.runs[kind] for r in runtimes])] for kind in kinds]
    rows += [
        [f"**the network's part** {kind}", *_cells([r.parts(kind) for r in runtimes])]
        for kind in kinds
        if kind != HOST
    ]
    return rows


def _cells(runs: list[list[float]]) -> list[str]:
    cells = []
    for times in runs:
        cells += [f"{median(times):.2f}", f"{percentile_95(times):.2f}"]
        if times is not runs[0]:
            cells.append(f"{median(times) / median(runs[0]):.1f}")
    return cells


def _burst_rows(report: Report) -> list[list[str]]:
    rows = [[f"{report.burst} pods at once, s", "all ready", "ratio", "all removed", "ratio"]]
    first = report.runtimes[0]
    for runtime in report.runtimes:
        rows.append(
            [
                runtime.name,
                f"{median(runtime.bursts):.2f}",
                f"{median(runtime.bursts) / median(first.bursts):.1f}",
                f"{median(runtime.ends):.2f}",
                f"{median(runtime.ends) / median(first.ends):.1f}",
            ]
        )
    return rows


def _carried_rows(carried: dict[str, list[float]]) -> list[list[str]]:
    """The first path is the bare pair, the second the plain bridge (decision 0048)."""
    header = ["Gbit/s, one stream of TCP", "median", "least", "most"]
    rows = [[*header, "to a bare pair", "to a plain bridge"]]
    references = [median(rates) for rates in list(carried.values())[:2]]
    for name, rates in carried.items():
        sizes = [f"{rate / 1e9:.1f}" for rate in (median(rates), min(rates), max(rates))]
        ratios = [f"{median(rates) / reference:.2f}" for reference in references]
        rows.append([name, *sizes, *ratios])
    return rows


def _render_noise(rates: list[float]) -> str:
    """Tell how far medians of one path's rounds are from each other by chance (bootstrap)."""
    chance = random.Random(0)

    def draw() -> float:
        return median(chance.choices(rates, k=len(rates)))

    ratios = sorted(draw() / draw() for _ in range(_DRAWS))
    low, high = ratios[_DRAWS // 40], ratios[-_DRAWS // 40]
    return f"By chance alone the bare pair is {low:.2f} to {high:.2f} of itself, 19 times of 20."
