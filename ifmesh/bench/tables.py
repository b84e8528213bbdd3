"""A report as tables, for a terminal and for the page alike.  Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]
Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """columns: the first is text, the others numbers.  notes: sentences below."""

    title: str
    columns: Row
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def tables(report: Report) -> list[Table]:
    """What a report of its kind says; of a kind that is not known here, its plain values."""
    found = KINDS.get(report["kind"], _plain)(report)
    if report.get("interrupted"):
        found.append(Table("", (), (), ("It was interrupted: this is what was measured by then.",)))
    return found


def number(value: float | None, digits: int = 3) -> str:
    """Three digits that count, without an exponent; "-": nobody knows."""
    if value is None:
        return "-"
    if value and abs(value) < 1e-4:
        return f"{value:.1e}"
    whole = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in whole else whole


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def size(count: float) -> str:
    """Bytes, 1.3 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def sure(row: Report, said: Callable[[float | None], str] = number) -> str:
    """A mean with its interval: 12.3 (12.0 to 12.6)."""
    return said(row["mean"]) + (f" ({said(row['low'])} to {said(row['high'])})" if row["low"] is not None else "")


NAMES = {
    "images_per_s": "images/s",
    "images_per_s_per_device": "images/s per device",
    "goodput_per_s": "goodput, images/s",
    "efficiency": "pipeline efficiency",
    "latency_p50_ms": "latency p50, ms",
    "latency_p95_ms": "latency p95, ms",
    "latency_p99_ms": "latency p99, ms",
    "first_picture_p50_ms": "first picture p50, ms",
}
WAYS = {
    "chain": "bare chain",
    "floor": "floor: with a relay",
    "guarded": "with guard and relay",
    "mesh": "mesh",
    "durable": "mesh, durable",
}


def _mesh(report: Report) -> list[Table]:
    found = []
    for transport in dict.fromkeys((*report["floor"], *report["mesh"])):
        rows = []
        for count in map(str, report["asked"]["in_flight"]):
            for name, said in WAYS.items():
                if row := report[name].get(transport, {}).get(count):
                    times = report["ratios"].get(transport, {}).get(count, {}) if name == "mesh" else {}
                    figures = (number(row[key]) for key in ("p50_ms", "p95_ms", "requests_per_s"))
                    rows.append((said, count, *figures, *(number(times[key]) if key in times else "" for key in ("p50", "requests_per_s"))))
        columns = ("", "in flight", "p50 ms", "p95 ms", "requests/s", "p50, times the floor's", "requests/s, times the floor's")
        found.append(Table(transport, columns, tuple(rows)))
    notes = []
    if disk := report["durable_write_ms"].get("4096"):
        notes.append(f"A durable write of this disk (4 kB and fsync) takes {number(disk['p50_ms'])} ms, p50.")
        notes += [f"Durability adds {number(times)} of them to the p50 over {t}." for t, times in report["durable_writes"].items()]
    notes += [f"CURVE adds {number(ms)} ms to the p50 over TCP with {count} in flight." for count, ms in report["curve_ms"].items()]
    notes += [f"{transport}: skipped: {why}." for transport, why in report["skipped"].items()]
    return [*found, Table("", (), (), tuple(notes))]


def _load(report: Report) -> list[Table]:
    if not report["runs"]:
        return [Table("", (), (), ("Nothing was measured.",))]
    run = report["runs"][-1]
    main = [(NAMES.get(name, name), sure(row, share if name == "efficiency" else number)) for name, row in report["figures"].items()]
    notes = [f"Requests of the last run: {', '.join(f'{count} {how}' for how, count in sorted(run['requests'].items()))}."]
    if run["bound_images_per_s"]:
        notes.append(f"The slowest stage, {run['bottleneck']}, lets {number(run['bound_images_per_s'])} images/s through.")
    if run["retry_after_s"] is not None:
        notes.append(f"Who was refused was told to come back after {number(run['retry_after_s'])} s.")
    if goal := run.get("slo"):
        kept = "kept" if goal["met"] else "not kept"
        notes.append(f"p{goal['percent']:g} within {goal['seconds']:g} s: {kept} (seen: {number(goal['seen'])} s).")
    if run["late_ms"]:
        notes.append(f"The clients asked {number(run['late_ms']['p99_ms'])} ms late, p99.")
    found = [Table("What came of it", ("", "mean (95 % interval)"), tuple(main), tuple(notes)), stages(run["stages"])]
    rows = tuple((w["worker"], w["stage"], w["device"], str(w["images"]), share(w["busy"])) for w in run["workers"])
    found.append(Table("Workers", ("worker", "stage", "device", "images", "busy"), rows))
    if report.get("hosts"):
        found.append(_crews(run["crews"]))
    hops = report["unloaded"]["hops"]
    ways = tuple(
        (f"into {h['into']}", size(h["bytes"]), number(h["ms"]), f"{size(h['bytes_per_s'])}/s" if h["bytes_per_s"] else "-") for h in hops
    )
    if ways:
        count = report["unloaded"]["requests"]
        note = f"The median of {count} requests that went alone: from the end of one stage to the beginning of the next."
        found.append(Table("Hops", ("", "bytes", "ms", "bytes/s"), ways, (note,)))
    return found


def stages(rows: Iterable[Report]) -> Table:
    columns = ("stage", "workers", "queued p50, ms", "queued p95, ms", "at work, ms", "busy", "bytes in", "bytes out")
    made = []
    for row in rows:
        queued, work = row["queued_ms"], row["run_ms"]
        times = number(queued["p50_ms"]), number(queued["p95_ms"]), number(work["mean_ms"])
        made.append((row["stage"], str(row["workers"]), *times, share(row["busy"]), size(row["bytes_in"]), size(row["bytes_out"])))
    return Table("Stages", columns, tuple(made))


def _crews(rows: Iterable[Report]) -> Table:
    """The clients, by the host that they were on."""
    made = []
    for row in rows:
        times = row["latency_ms"], row["latency_ms"], row["first_picture_ms"], row["late_ms"]
        told = (number(of.get(part)) for of, part in zip(times, ("p50_ms", "p95_ms", "p50_ms", "p99_ms"), strict=True))
        made.append((row["host"], str(row["clients"]), str(sum(row["requests"].values())), number(row["images_per_s"]), *told))
    names = [NAMES[name] for name in ("images_per_s", "latency_p50_ms", "latency_p95_ms", "first_picture_p50_ms")]
    note = "Seen from each host by its own clock."
    return Table("Clients", ("host", "clients", "requests", *names, "asked late p99, ms"), tuple(made), (note,))


def _sweep(report: Report) -> list[Table]:
    rows = []
    for point in report["points"]:
        figures = point["figures"]
        told = [sure(figures[name], share if name == "efficiency" else number) if name in figures else "-" for name in SWEPT]
        rows.append((point["said"], *told, point["bottleneck"], number(point["times"])))
    columns = (report["asked"]["what"], *(NAMES[name] for name in SWEPT), "bottleneck", "times the first")
    knee = report["knee"]
    notes = (f"The knee is at {knee['said']}: {knee['why']}.",) if knee else ()
    return [Table("", columns, tuple(rows), notes)]


SWEPT = ("images_per_s", "efficiency", "latency_p50_ms", "latency_p95_ms")


def _bars(report: Report) -> list[Table]:
    """Ways of doing the same, each with the same figures."""
    columns = ("", *(said for _, said in report["columns"]))
    rows = tuple((row["name"], *(number(row.get(key)) for key, _ in report["columns"])) for row in report["rows"])
    notes = (*report.get("notes", ()), *(f"{name}: skipped: {why}." for name, why in report.get("skipped", {}).items()))
    return [Table("", columns, rows, notes)]


def _verify(report: Report) -> list[Table]:
    """Each case and its stages; below it what both sides took."""
    stages, sides = report["stages"], report["sides"]
    cases = []
    for row in report["cases"]:
        far = (row["stages"].get(stage, "-") for stage in stages)
        cases.append((row["case"], row["task"], *far, *(number(row["seconds"].get(side)) for side in sides)))
    columns = ("case", "task", *stages, *(f"{side}, s" for side in sides))
    verdict = Table(report["cascade"], columns, tuple(cases), (f"Verdict: {report['verdict']}.", *report["wrong"]))
    taken = []
    for name, said in (("ram", "most memory of the host"), ("vram", "most memory of the cards")):
        taken.append((said, *("-" if (count := side.get(name)) is None else size(count) for side in sides.values())))
    taken.append(("seconds until it is ready", *(number(side.get("ready_s")) for side in sides.values())))
    for stage in stages:
        taken.append((f"{stage}: times loaded", *(str(side.get("loads", {}).get(stage, "-")) for side in sides.values())))
    return [verdict, Table("What it took", ("", *sides), tuple(taken))]


def _plain(report: Report) -> list[Table]:
    rows = tuple((key, str(value)) for key, value in flat(report) if key.partition(".")[0] not in HEAD)
    return [Table("", ("", "value"), rows)]


HEAD = ("kind", "at", "command", "machine", "versions", "configuration")


def flat(tree: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, object]]:
    """By dotted key, what is no mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


KINDS: Mapping[str, Callable[[Report], list[Table]]] = {
    "mesh": _mesh,
    "load": _load,
    "sweep": _sweep,
    "peers": _bars,
    "baseline": _bars,
    "quality": _bars,
    "verify": _verify,
}


def head(report: Report) -> Table:
    """On what it was measured."""
    machine = report["machine"]
    rows: Sequence[Row] = [
        ("command", report["command"]),
        ("at", report["at"]),
        ("machine", _machine(machine)),
        ("cards", ", ".join(machine["cards"]) or "none"),
        ("load before", number(machine["load"])),
        *((f"clients on {name}", f"{_machine(m)}, load before {number(m['load'])}") for name, m in report.get("hosts", {}).items()),
        ("versions", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        *((key, str(value)) for key, value in report["configuration"].items()),
    ]
    return Table("How it was measured", ("", "value"), tuple(rows))


def _machine(machine: Report) -> str:
    return f"{machine['processors']} processors ({machine['processor']}), {size(machine['memory'])}"
