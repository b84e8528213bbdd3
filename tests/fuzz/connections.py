"""Hostile connections to every kind of socket of a real mesh: `python -m tests.fuzz.connections --count 5000 --seed 1 --json`.

Half with CURVE on, half in the clear, each beside an honest client whose jobs have to come out right.  Asserted: no process dies or is
given up, no descriptor stays open, memory is bounded, and nobody without a key gets a byte to our decoders.  Reported: the rest.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from ifmesh.request import STAGES
from tests.fuzz.honest import Honest, Tally
from tests.fuzz.siege import INSIDERS, NOBODY, Siege
from tests.mesh.kit import Mesh

GROWTH = 64 << 20  # bytes of memory that a process may have more when all is over than before
LOG = 4 << 20  # bytes that a process may have said of garbage
SPARE = 2  # descriptors more than before: links come and go
LINE = 2000  # characters of a line of the log
LOST = re.compile(rf"({'|'.join(STAGES)})-0 is lost")
GARBAGE = re.compile(r"dropped what (?!\S+ \(a newcomer\))")


def run(count: int, seed: int, curve: bool, folder: Path, calm: float = 5.0) -> dict[str, Any]:
    """So many connections.  calm: seconds of the honest client alone, before and after.  What came out; "wrong": what should not be."""
    with Mesh(folder, {"mesh.curve": "true" if curve else "false"}) as mesh:
        mesh.all()
        report = _run(mesh, count, seed, curve, calm)
        mesh.processes[0].signal(signal.SIGTERM)
        if (code := mesh.processes[0].code()) != 0:
            report["wrong"].append(f"the coordinator ends with {code}")
        for process in mesh.processes[1:]:
            process.code()
        report["garbage_frames"] = {name: _ended(text) for name, text in _logs(mesh).items()}
    return report


def _run(mesh: Mesh, count: int, seed: int, curve: bool, calm: float) -> dict[str, Any]:
    wrong: list[str] = []
    key = mesh.state / "keys" / "operator.key" if curve else None
    siege = Siege(mesh, seed)
    try:
        with Honest(mesh.config.control(), key) as honest:
            siege.plain(40)  # what is made once is made before anything is counted
            siege.peers(20, NOBODY)
            siege.finish()
            pids = _pids(mesh)
            _pause(calm)
            honest.so_far()
            _pause(calm)
            before, memory, files = honest.so_far(), _memory(pids), _files(pids)
            noted = {name: len(text) for name, text in _logs(mesh).items()}
            began = time.monotonic()
            outsiders = count if not curve else count * 2 // 3
            siege.plain(outsiders * 7 // 10)
            siege.peers(outsiders - outsiders * 7 // 10, NOBODY)
            siege.finish()
            heard = {name: len(GARBAGE.findall(text[noted[name] :])) for name, text in _logs(mesh).items()}
            if curve:
                siege.peers(count - outsiders - count // 50, INSIDERS)
            siege.spoilt(count // 50 if curve else 0)
            siege.finish()
            if not curve and not siege.endless():
                wrong.append("a message without end is taken without end")
            seconds = time.monotonic() - began
            during = honest.so_far()
            _pause(calm)
            _until(lambda: all(now <= files[name] + SPARE for name, now in _files(pids).items()))
            _until(lambda: all(now - memory[name] <= GROWTH for name, now in _memory(pids).items()))
            after = honest.so_far(last=True)
            grown = {name: now - memory[name] for name, now in _memory(pids).items()}
            left = {name: now for name, now in _files(pids).items() if now > files[name] + SPARE}
        said = {name: sum(map(len, re.findall(r".* dropped what .*", text))) for name, text in _logs(mesh).items()}
        longest = max(len(line) for text in _logs(mesh).values() for line in text.splitlines())
        if pids != _pids(mesh):
            wrong.append(f"other processes than before: {_pids(mesh)} instead of {pids}")
        if lost := [line for line in _logs(mesh)["coordinator"].splitlines() if LOST.search(line)]:
            wrong.append(f"workers were given up: {lost[:3]}")
        if broken := [name for name, text in _logs(mesh).items() if "Traceback" in text]:
            wrong.append(f"a traceback in the log of {broken}")
        if curve and (any(heard.values()) or any(siege.answered[who] for who in NOBODY)):
            wrong.append(f"somebody without a key was heard: {heard}, or answered: {siege.answered}")
        wrong += [f"{name} has {now} descriptors, {files[name]} before" for name, now in left.items()]
        wrong += [f"{name} has {grown[name]} bytes more than before" for name in grown if grown[name] > GROWTH]
        wrong += [f"{name} has said {size} bytes of garbage" for name, size in said.items() if size > LOG]
        wrong += [f"a line of {longest} characters in a log"] if longest > LINE else []
        wrong += [f"{tally.wrong} jobs of the honest client came out wrong" for tally in (before, during, after) if tally.wrong]
    finally:
        siege.close()
    calm_p99, siege_p99 = before.quantile(0.99), during.quantile(0.99)
    kinds = {kind for _, kind in siege.counts if kind}
    return {
        "curve": curve,
        "seed": seed,
        "connections": sum(n for (_, kind), n in siege.counts.items() if kind),
        "seconds": round(seconds, 1),
        "by_class": {name: sum(n for (who, _), n in siege.counts.items() if who == name) for name in sorted({w for w, _ in siege.counts})},
        "by_socket": {kind: sum(n for (_, where), n in siege.counts.items() if where == kind) for kind in sorted(kinds)},
        "messages_taken": dict(siege.sent),
        "answered": dict(siege.answered),
        "frames_heard_from_strangers": sum(heard.values()) if curve else None,
        "honest": {name: _told(tally) for name, tally in (("before", before), ("during", during), ("after", after))},
        "accepted_p99_ratio": round(siege_p99 / calm_p99, 2) if calm_p99 else None,
        "memory_grown_mb": {name: round(grown[name] / 1e6, 1) for name in grown},
        "descriptors": files,
        "log_bytes": {name: len(text) for name, text in _logs(mesh).items()},
        "log_bytes_of_garbage": said,
        "longest_line": longest,
        "wrong": wrong,
    }


# ---- inside


def _pause(seconds: float) -> None:
    """Of the one who measures: there is no event to wait for."""
    time.sleep(seconds)


def _until(holds: Callable[[], bool], limit: float = 60.0) -> None:
    """Or not: it is looked at again."""
    end = time.monotonic() + limit
    while not holds() and time.monotonic() < end:
        _pause(0.2)


def _pids(mesh: Mesh) -> dict[str, int]:
    """Each process of the mesh, and the child of each."""
    found: dict[str, int] = {}
    for process in mesh.processes:
        name = process.log.stem
        found[name] = process.pid
        found |= {f"{name}, child {n}": child.pid for n, child in enumerate(psutil.Process(process.pid).children(recursive=True))}
    return found


def _memory(pids: dict[str, int]) -> dict[str, int]:
    return {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}


def _files(pids: dict[str, int]) -> dict[str, int]:
    return {name: psutil.Process(pid).num_fds() for name, pid in pids.items()}


def _logs(mesh: Mesh) -> dict[str, str]:
    return {process.log.stem: process.log.read_text(errors="replace") for process in mesh.processes}


def _ended(log: str) -> int | None:
    told = re.search(r"ended, (\d+) frames of garbage dropped", log)
    return int(told[1]) if told else None


def _told(tally: Tally) -> dict[str, float]:
    fast, slow = (round(tally.quantile(q) * 1000, 1) for q in (0.5, 0.99))
    return {"jobs_right": tally.right, "jobs_wrong": tally.wrong, "accepted_p50_ms": fast, "accepted_p99_ms": slow}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="connections to each of the two meshes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=("curve", "clear"), help="one of the two meshes alone")
    parser.add_argument("--json", action="store_true", help="nothing but the reports, as one JSON list")
    told = parser.parse_args()
    reports = []
    for curve in (True, False):
        if told.only in (None, "curve" if curve else "clear"):
            with tempfile.TemporaryDirectory() as folder:
                print(f"{told.count} connections, {'CURVE' if curve else 'in the clear'} ...", file=sys.stderr)
                reports.append(run(told.count, told.seed, curve, Path(folder)))
    if told.json:
        print(json.dumps(reports, indent=1))
    for report in reports if not told.json else ():
        for key, value in report.items():
            print(f"{key}: {value}")
        print()
    return 1 if any(report["wrong"] for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
