"""The commands about the mesh: ps, logs, and what `up` types for you: coordinator and worker."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_options as options
from ifmesh.errors import Lost, Misconfigured
from ifmesh.request import STAGES

if TYPE_CHECKING:
    from ifmesh.config import Config
    from ifmesh.protocol import Books


def check_services(config: Config, stages: Sequence[str] | None = None) -> None:
    """Misconfigured when this installation cannot run these stages as the configuration names them, or keep their bags.

    None: those that have copies here.
    """
    from importlib.util import find_spec

    stages = [stage for stage in STAGES if (config.services[stage].copies if stages is None else stage in stages)]
    if stages:
        config.check_weights()
    _check_folder("mesh.keep_bags", config.mesh.keep_bags)
    heavy = [stage for stage in stages if config.factory(stage).startswith("ifmesh_services.")]
    if heavy and (find_spec("torch") is None or find_spec("diffusers") is None):
        raise Misconfigured(f"{', '.join(heavy)}: torch or diffusers is not installed: pip install 'ifmesh[services]', or --toy")


def _check_folder(key: str, folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misconfigured(f"{key}: {str(folder)!r}: {error.strerror}; name a folder that can be written") from None
    if not os.access(folder, os.W_OK):
        raise Misconfigured(f"{key}: {str(folder)!r}: may not be written; name another folder")


def not_ready(books: Books) -> list[str]:
    """The stages without a worker that takes work, now or when its turn comes."""
    working = {row.stage for row in books.services if row.serves}
    return [stage for stage in STAGES if stage not in working]


@click.command(short_help="What runs, and where.")
@click.option("--jobs", is_flag=True, help="The unfinished jobs, too.")
@click.option("--ready", is_flag=True, help="Exit 4 unless every stage has a ready worker.")
@options.as_json
@options.coordinator
@options.configured
def ps(jobs: bool, ready: bool, as_json: bool, config_file: Path | None) -> int:
    """Services, queues and jobs.  Exit 4: the coordinator cannot be reached.

    \b
    ifmesh ps --jobs
    ifmesh ps --json | jq '.services[] | select(.state == "loading")'

    A service in swap (services.STAGE.residency) is "swapped" while its weights are not in memory: it serves when its turn comes.
    """
    from ifmesh import modes, screen, sockets

    config, _ = options.configuration(config_file)
    problem, pages = "", []
    try:
        with options.client(config, timeout=3.0) as client:
            pages.append(client.status())
            while len(pages) < pages[0].pages:
                pages.append(client.status(page=len(pages)))
    except Lost as error:
        problem = str(error)
    services = [*_ours(config, bool(pages), sockets.host_id()), *(_renamed(asdict(row)) for page in pages for row in page.services)]
    known = {row["service"] for row in services}
    services += [row for row in _not_yet(config, sockets.host_id()) if row["service"] not in known]
    _name_hosts(services, sockets.host_id())
    rows = list({row.job: asdict(row) for page in pages for row in page.jobs}.values())  # by id: the pages move while they are turned
    queued = dict(pages[0].queued) if pages else {}
    missing = list(pages[0].missing) if pages else list(STAGES)
    if as_json:
        screen.document({"services": services, "jobs": rows, "queued": queued, "missing": missing})
    else:
        _print_books(services, rows if jobs else [], queued, len(rows))
        for line in modes.told(row for page in pages for row in page.services):
            screen.tell(line)
        for line in _turns(services):
            screen.tell(line)
    if problem:
        screen.say(f"ifmesh: {problem}", "red")
        return 4
    for row in services:
        if row["state"] == "down" and not as_json:
            screen.say(f"{row['service']} is down: {last_line(config.mesh.state, row['service'])}", "yellow")
    lacking = not_ready(pages[0])
    if lacking and not as_json:
        loading = {row.stage for row in pages[0].services if row.state == "loading"}
        screen.say(f"no ready worker for {', '.join(s + ' (loading)' * (s in loading) for s in lacking)}", "yellow")
    return 4 if ready and lacking else 0


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "seen_s": round(row["seen_s"], 3)}


def _row(service: str, stage: str, pid: int, host: str, state: str) -> dict[str, Any]:
    """A process that is no worker known to the coordinator, in the same form."""
    empty = {"device": "", "running": 0, "held": 0, "done": 0, "seen_s": 0.0, "numeric": "", "slots": 0, "needs": 0}
    return {"service": service, "stage": stage, "pid": pid, "host": host, "state": state, **empty}


def _ours(config: Config, answers: bool, host: str) -> list[dict[str, Any]]:
    """Supervisor and coordinator, as the state folder knows them."""
    import json

    from ifmesh import lease

    told = lease.written(config.mesh.state)
    rows = [_row("supervisor", "", lease.holder(config.mesh.state), host, str(told["phase"]))] if told else []
    try:
        said = json.loads((config.mesh.state / "endpoint.json").read_text())
    except (OSError, ValueError):
        said = {}
    here = isinstance(said, dict) and isinstance(said.get("pid"), int) and not config.mesh.coordinator
    if answers:
        rows.append(_row("coordinator", "", said["pid"] if here else 0, host if here else "", "ready"))
    return rows


def _not_yet(config: Config, host: str) -> list[dict[str, Any]]:
    """What `up` keeps running, but the coordinator has not heard of: it starts, or waits for its next try."""
    from ifmesh import lease

    kept = lease.written(config.mesh.state).get("services")
    if not isinstance(kept, list):
        return []
    rows = []
    for row in kept:
        state = "starting" if row["state"] == "running" else row["state"]
        if row["host"]:  # the connection to it; that it was tried before and there is none says more than that it is tried again
            state, host = "down" if row["why"] else "starting", ""
        rows.append(_row(row["service"], row["stage"], row["pid"], host, state))
    return rows


def _name_hosts(rows: list[dict[str, Any]], here: str) -> None:
    """Give each row the name of its host beside the id; a host whose workers are known is up."""
    from socket import gethostname

    from ifmesh.kept import AT

    workers = {row["service"].partition(AT)[2] for row in rows if AT in row["service"]}
    for row in rows:
        alone = not row["host"] and row["state"] in ("down", "starting")
        if alone and row["service"] in workers:
            row["state"] = "up"
        named = row["service"] if alone else row["service"].partition(AT)[2]
        row["host_name"] = named or (gethostname() if row["host"] == here else row["host"])


def last_line(state: Path, service: str) -> str:
    """What the service said last, in its log."""
    try:
        lines = (state / "logs" / f"{service}.log").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"


def _turns(rows: Sequence[dict[str, Any]]) -> list[str]:
    """For people: whose weights are in memory, on each device that is shared by turns."""
    from ifmesh.phases import size

    groups: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for row in rows:
        if row["needs"]:
            inside, outside = groups.setdefault((row["host_name"], row["device"]), ([], []))
            (outside if row["state"] == "swapped" else inside).append(f"{row['service']} ({size(row['needs'])})")
    return [
        f"by turns on {device} of {host}: {', '.join(inside) or 'nobody'} in memory; {', '.join(outside) or 'nobody'} on disk"
        for (host, device), (inside, outside) in groups.items()
    ]


def _print_books(services: list[dict[str, Any]], jobs: list[dict[str, Any]], queued: dict[str, int], count: int) -> None:
    from ifmesh import screen

    console = screen.stdout()
    numbers = ("pid", "running", "held", "done")
    if services:
        hosts = ("host_name",) if len({row["host_name"] for row in services}) > 1 else ()
        columns = ("service", "pid", *hosts, "device", "state", "running", "held", "done")
        made = screen.table("", *(name.partition("_")[0] for name in columns), right=numbers)
        for row in services:
            made.add_row(*(str(row[name]) for name in columns))
        console.print(made, markup=False)
    if any(queued.values()):
        screen.tell("waiting: " + ", ".join(f"{stage} {n}" for stage, n in queued.items() if n))
    if jobs:
        made = screen.table("", "job", "state", "stage", "step", "worker", "age s", "prompt", right=("step", "age s"))
        for row in jobs:
            step = f"{row['step']}/{row['steps']}" if row["steps"] else ""
            made.add_row(row["job"], row["state"], row["stage"], step, row["worker"], f"{row['age_s']:.1f}", row["prompt"])
        console.print(made, markup=False)
    elif count:
        screen.tell(f"{count} jobs under way (--jobs shows them)")


@click.command(short_help="What the services say.")
@click.argument("service", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, help="So many of the last lines, of each.")
@options.configured
def logs(service: str | None, follow: bool, lines: int, config_file: Path | None) -> int:
    """The logs of SERVICE (as `ifmesh ps` names them: coordinator, stage_one-0, up ...), or of all.

    \b
    ifmesh logs stage_one-0 -f
    """
    from difflib import get_close_matches

    from ifmesh import screen

    config, _ = options.configuration(config_file)
    folder = config.mesh.state / "logs"
    paths = {p.stem: p for p in sorted(folder.glob("*.log"))}
    if service is not None and service not in paths:
        near = get_close_matches(service, paths, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(paths)}" if paths else ""
        screen.say(f"ifmesh: {service}: no such log in {folder}{hint}", "red")
        return 1
    if not paths:
        screen.say(f"ifmesh: no logs in {folder}: nothing was started with this state folder", "red")
        return 1
    chosen = {service: paths[service]} if service else paths
    width = max(len(name) for name in chosen)
    for name, line in _tail(chosen, lines, follow):
        screen.tell(line if service else f"{name:<{width}} | {line}")
    return 0


def _tail(paths: dict[str, Path], lines: int, follow: bool) -> Iterator[tuple[str, str]]:
    """(name, line): the last ones of each file, then, when following, what is added."""
    seen: dict[str, int] = {}
    for name, path in paths.items():
        text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        seen[name] = len(whole)
        for line in whole.splitlines()[-lines:] if lines else ():
            yield name, line.decode(errors="replace")
    while follow:
        time.sleep(0.2)
        for name, path in paths.items():
            try:
                if path.stat().st_size < seen[name]:
                    seen[name] = 0  # put aside, and begun again
                with open(path, "rb") as file:
                    file.seek(seen[name])
                    text = file.read()
            except FileNotFoundError:
                continue
            whole = text[: text.rfind(b"\n") + 1]
            seen[name] += len(whole)
            for line in whole.splitlines():
                yield name, line.decode(errors="replace")


@click.command(short_help="Run the coordinator (what `up` types for you).")
@options.listen
@options.configured
@options.tied
def coordinator(tied: bool, config_file: Path | None) -> int:
    """Run the coordinator in the foreground.  SIGTERM drains it.

    \b
    ifmesh coordinator --listen tcp://127.0.0.1:7640
    """
    from ifmesh import coordinator as service

    config, _ = options.configuration(config_file)
    ended: int = service.run(config, tied)
    return ended


@click.command(short_help="Run one worker (what `up` types for you).")
@click.argument("stage", type=click.Choice(STAGES), metavar="STAGE")
@click.option("--name", help="The service it is, kept over restarts; without it STAGE-PID.")
@click.option("--life", hidden=True, help="Set by the worker's parent for the process that computes.")
@click.option("--testament", type=int, default=-1, hidden=True, help="Set by the parent, too: a file in memory, see there.")
@click.option("--device", help="cpu, cuda:0 ...; auto: the first card, or the CPU.")
@click.option("--dtype", help="fp32, bf16 or fp16.")
@click.option("--threads", type=int, help="Of torch, on the CPU.")
@options.toy
@options.cascade
@options.keep_bags
@options.coordinator
@options.configured
@options.tied
def worker(
    stage: str,
    name: str | None,
    life: str | None,
    testament: int,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    tied: bool,
    config_file: Path | None,
) -> int:
    """Run one worker of STAGE: encoder, stage_one, stage_two, upscaler or guard.

    \b
    ifmesh worker stage_one --device cuda:1 --coordinator tcp://127.0.0.1:7640
    """
    for key, value in (("device", device), ("dtype", dtype), ("threads", threads)):
        if value is not None:
            options.put(f"services.{stage}.{key}", value)
    config, flags = options.configuration(config_file)
    name = name or f"{stage}-{os.getpid()}"
    if life is not None:
        from ifmesh import worker as child

        ended: int = child.run(stage, name, life, config, tied, testament)
        return ended
    from ifmesh import parent

    check_services(config, [stage])
    over: int = parent.run(stage, name, config, tied, flags)
    return over
