"""The plots of a report, as SVG.  By matplotlib, which is imported here alone, and only when a page is made."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

INK, GREY, PAPER = "#22252b", "#8b8f97", "#fbfaf7"
COLOURS = {"chain": "#b9b5ab", "floor": "#6b6f77", "guarded": "#d9a441", "mesh": "#c8452c", "durable": "#2f6f8f"}
SERIES = ("#c8452c", "#2f6f8f", "#d9a441", "#5b8c5a", "#7d5ba6", "#6b6f77")
LACKING = "There are no plots: matplotlib is not installed (pip install 'ifmesh[bench]')."
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e1d9",
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "ifmesh",
}


def plots(report: Report) -> tuple[list[str], str]:
    """(SVG elements, why there are none): those of its kind, in the order in which they are to be seen."""
    draw = KINDS.get(report["kind"])
    if draw is None:
        return [], ""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return [], LACKING
    with matplotlib.rc_context(STYLE):
        return [_svg(figure) for figure in draw(report, Figure)], ""


Make = Callable[..., "Figure"]


def _svg(figure: Figure) -> str:
    """Without the XML head, and without the date, so that equal figures are equal bytes."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _mesh(report: Report, make: Make) -> list[Figure]:
    found = []
    for transport in dict.fromkeys((*report["floor"], *report["mesh"])):
        figure = make(figsize=(10, 3.6), layout="constrained")
        figure.suptitle(transport, x=0.01, ha="left", fontsize=13)
        left, right = figure.subplots(1, 2)
        for name, said in (
            ("chain", "bare chain"),
            ("floor", "floor: with a relay"),
            ("guarded", "with guard and relay"),
            ("mesh", "mesh"),
        ):
            rows = report[name].get(transport, {})
            counts = sorted(map(int, rows))
            for axes, key in ((left, "p50_ms"), (right, "requests_per_s")):
                axes.plot(
                    counts, [rows[str(n)][key] for n in counts], "o-", color=COLOURS[name], label=said, lw=2 if name == "mesh" else 1.3
                )
        for axes, title, label in ((left, "How long a request takes", "p50, ms"), (right, "How many come through", "requests/s")):
            _by_count(axes, report["asked"]["in_flight"], "requests in flight")
            axes.set(title=title, ylabel=label)
        left.set_yscale("log")
        left.yaxis.set_major_formatter("{x:g}")
        right.set_ylim(bottom=0)
        left.legend(fontsize=9)
        found.append(figure)
    return found


def _load(report: Report, make: Make) -> list[Figure]:
    if not report["runs"]:
        return []
    run = report["runs"][-1]
    figure = make(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    if by_percent := report["latency_ms_by_percent"]:
        left.plot([ms / 1000 for ms in by_percent], range(101), color=SERIES[0], lw=2)
        if goal := run.get("slo"):
            left.axvline(goal["seconds"], color=GREY, ls="--", lw=1)
            left.text(goal["seconds"], 3, f"{goal['seconds']:g} s ", color=GREY, ha="right")
    left.set(title="Latency from when it was due", xlabel="seconds", ylabel="% of the images", ylim=(0, 101))
    left.set_xlim(left=0)
    _stack(right, run["stages"])
    workers = run["workers"]
    shares = make(figsize=(10, 0.7 + 0.28 * len(workers)), layout="constrained")
    axes = shares.subplots()
    names = [worker["worker"] for worker in workers]
    colours = {stage: SERIES[i % len(SERIES)] for i, stage in enumerate(dict.fromkeys(worker["stage"] for worker in workers))}
    axes.barh(names, [100 * (worker["busy"] or 0) for worker in workers], color=[colours[worker["stage"]] for worker in workers])
    axes.invert_yaxis()
    axes.set(title="Who is busy", xlabel="% of the time", xlim=(0, 100))
    return [figure, shares]


def _stack(axes: Axes, rows: Sequence[Report]) -> None:
    """Where the time of a request goes: stage by stage, waiting and at work."""
    names = [row["stage"] for row in rows]
    queued = [row["queued_ms"]["p50_ms"] / 1000 for row in rows]
    axes.barh(names, queued, color="#d8d4c9", label="until it begins there, p50")
    axes.barh(names, [row["run_ms"]["mean_ms"] / 1000 for row in rows], left=queued, color=SERIES[1], label="at work, mean")
    axes.invert_yaxis()
    axes.set(title="Where the time goes", xlabel="seconds")
    axes.legend(fontsize=9)


def _sweep(report: Report, make: Make) -> list[Figure]:
    points = [point for point in report["points"] if "images_per_s" in point["figures"]]
    if not points:
        return []
    figure = make(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = list(range(len(points)))
    rows = [point["figures"]["images_per_s"] for point in points]
    halves = [row["high"] - row["mean"] if row["high"] is not None else 0 for row in rows]
    left.errorbar(places, [row["mean"] for row in rows], yerr=halves, fmt="o-", color=SERIES[0], capsize=3, lw=2, label="measured")
    if all(point["bound"] for point in points):
        left.plot(places, [point["bound"] for point in points], "--", color=GREY, label="what the slowest stage lets through")
    left.set(title="Images per second", ylabel="images/s")
    left.set_ylim(bottom=0)
    left.legend(fontsize=9)
    for i, stage in enumerate(dict.fromkeys(stage for point in points for stage in point["busy"])):
        right.plot(places, [100 * (point["busy"].get(stage) or 0) for point in points], "o-", label=stage, color=SERIES[i % len(SERIES)])
    right.set(title="How busy each stage is", ylabel="% of the time", ylim=(0, 102))
    right.legend(fontsize=9)
    for axes in (left, right):
        axes.set_xticks(places, [point["said"] for point in points])
        axes.set_xlabel(report["asked"]["what"])
    return [figure]


def _bars(report: Report, make: Make) -> list[Figure]:
    """One panel for each column, one bar for each way."""
    columns = report["columns"]
    figure = make(figsize=(10, 0.9 + 0.34 * len(report["rows"])), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    names = [row["name"] for row in report["rows"]]
    for axes, (key, said) in zip(panels, columns, strict=True):
        colours = [SERIES[0] if name.startswith("ifmesh") else "#b9b5ab" for name in names]
        bars = axes.barh(names, [row.get(key) or 0 for row in report["rows"]], color=colours)
        axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=9)
        axes.set_title(said)
        axes.margins(x=0.18)
    panels[0].invert_yaxis()
    return [figure]


def _by_count(axes: Axes, counts: Sequence[int], said: str) -> None:
    """Doubling counts, evenly."""
    if len(counts) > 1 and math.log2(max(counts) / min(counts)) > 2:
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(counts), [str(count) for count in counts])
    axes.minorticks_off()
    axes.set_xlabel(said)


KINDS: Mapping[str, Callable[[Report, Make], list[Figure]]] = {
    "mesh": _mesh,
    "load": _load,
    "sweep": _sweep,
    "peers": _bars,
    "baseline": _bars,
}
