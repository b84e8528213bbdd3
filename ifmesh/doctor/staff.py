"""The workers, as the coordinator sees them; and what those of this host load, as far as that can be told without loading it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ifmesh import lease
from ifmesh.cascade import DRAWN
from ifmesh.config import PUBLISHED, Config
from ifmesh.doctor.finding import Finding, broken, well
from ifmesh.errors import Misconfigured
from ifmesh.protocol import ServiceRow
from ifmesh.request import STAGES

PARTS = {"encoder": "text_encoder", "guard": "safety_checker"}
"""The folder of a repository in which a stage's weights lie; of the others "unet".  Encoder and guard use Stage I's repository."""
FOLDER = "point cascade.path at a folder with cascade.json and repositories in the hub's layout (safetensors)"
TAIL = 64 << 10  # bytes of a log that are read
_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # the name of a repository there


def staff(config: Config, rows: Iterable[ServiceRow]) -> Iterator[Finding]:
    """One for each worker, and for each stage without any."""
    known = list(rows)
    for row in known:
        yield _worker(row, "" if row.serves else last_error(config, row.stage))
    for stage in STAGES:
        if not any(row.stage == stage for row in known):
            said = last_error(config, stage)
            remedy = _mend(f"{stage}-0") if said else _start(stage)
            yield broken(f"stage {stage}", f"no worker: {said}" if said else "no worker", remedy)


def checkpoints(config: Config) -> Iterator[Finding]:
    """One for each stage that is to run on this host."""
    mine = [stage for stage in STAGES if config.services[stage].copies and config.factory(stage).startswith("ifmesh_services.")]
    if config.mesh.coordinator or config.invited() is not None or not mine:
        return
    try:
        config.check_weights()
        repos = _repositories(config.cascade.path)
    except Misconfigured as error:
        said, _, remedy = str(error).rpartition(": ")
        yield broken("checkpoints", said, f"{remedy}; {FOLDER}")
        return
    if not repos:
        name = config.cascade.path or "the built-in cascade"
        yield well("checkpoints", f"{name}: a worker says in its log what is not here")
    for stage in mine if repos else ():
        yield _checkpoint(stage, repos[stage])


def last_error(config: Config, stage: str) -> str:
    """The last words of a worker of this stage that `ifmesh up` keeps starting here; "": there is none, or it has not ended."""
    kept = lease.written(config.mesh.state).get("services")
    names = [str(row["service"]) for row in kept if row["stage"] == stage] if isinstance(kept, list) else []
    for name in names:
        try:
            with open(config.mesh.state / "logs" / f"{name}.log", "rb") as file:
                file.seek(max(0, file.seek(0, 2) - TAIL))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        found = [line.split(maxsplit=3) for line in lines]
        said = [words[3] for words in found if len(words) == 4 and words[1] in ("error", "critical")]
        if said:
            return f"{name}: {said[-1]}"
    return ""


def _worker(row: ServiceRow, error: str) -> Finding:
    """error: the last words of one like it: one that cannot load says Hello all the same, again and again."""
    hop = f"worker {row.service}"
    where = f"{row.state} on {row.device}, host {row.host}, heard {row.seen_s:.1f} s ago"
    remedies = {
        "loading": "wait: it loads its weights (`ifmesh logs` tells how far)",
        "aside": "it has died of too many requests: see its log, and start the coordinator again to give it another chance",
        "draining": "it was told to end: start another, or wait for it to be started again",
    }
    if row.serves:
        return well(hop, where)
    if error:
        return broken(hop, f"{where}; before that: {error}", _mend(row.service))
    return broken(hop, where, remedies.get(row.state, "see its log (`ifmesh logs`)"))


def _mend(service: str) -> str:
    return f"mend that; it is started again by itself; all of it: `ifmesh logs {service}`"


def _start(stage: str) -> str:
    return f"`ifmesh worker {stage}` on a host of the mesh, or `ifmesh up`; if it runs, its log tells why it is not heard"


def _repositories(path: str) -> dict[str, Path]:
    """The folder of each stage, of a cascade in a folder; {}: it is another kind.  Misconfigured: cascade.json cannot be read."""
    if not path or path in PUBLISHED:
        return {}
    file = Path(path) / "cascade.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        repos = {stage: str(told[stage]["repo"]) for stage in DRAWN}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Misconfigured(f"{file}: cannot be read: {type(error).__name__}") from None
    return {stage: Path(path) / repos.get(stage, repos["stage_one"]) for stage in STAGES}


def _checkpoint(stage: str, repo: Path) -> Finding:
    hop, folder = f"checkpoint of {stage}", repo / PARTS.get(stage, "unet")
    if not repo.is_dir() and _HUB.fullmatch(f"{repo.parent.name}/{repo.name}") and not repo.parent.is_dir():
        return well(hop, f"{repo.parent.name}/{repo.name}, of the hub: a worker says in its log what is not here")
    if not repo.is_dir():
        return broken(hop, f"{repo}: no such folder", FOLDER)
    if not any(folder.glob("*.safetensors")):
        return broken(hop, f"{folder}: no weights", f"copy or download them there, or {FOLDER}")
    return well(hop, str(folder))
