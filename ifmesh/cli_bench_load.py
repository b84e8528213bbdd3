"""The command `ifmesh bench load`: a mesh under load."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.cli_bench_report import reported
from ifmesh.errors import Misconfigured
from ifmesh.request import STAGES

if TYPE_CHECKING:
    from ifmesh.bench.crews import Crews
    from ifmesh.bench.load import Wanted
    from ifmesh.bench.merge import Goal
    from ifmesh.config import Config

F = TypeVar("F", bound=Callable[..., Any])
DRAWING = STAGES[:4]
_SLO = re.compile(r"p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(ms|s)?")


def by_stage(ctx: click.Context, param: click.Parameter, text: str | None) -> dict[str, float]:
    """ "50": of all stages that draw; "stage_one=200,upscaler=40": of these."""
    found: dict[str, float] = {}
    for part in text.split(",") if text else ():
        stage, equals, number = part.rpartition("=")
        if not re.fullmatch(r"\d+(\.\d+)?", number.strip()) or (equals and stage.strip() not in STAGES):
            raise click.BadParameter(f"{part!r}: milliseconds, or STAGE=MS; stages: {', '.join(STAGES)}", ctx, param)
        found |= dict.fromkeys([stage.strip()] if equals else DRAWING, float(number))
    return found


def goal(ctx: click.Context, param: click.Parameter, text: str | None) -> Goal | None:
    from ifmesh.bench.merge import Goal

    if text is None:
        return None
    if not (found := _SLO.fullmatch(text.strip())):
        raise click.BadParameter(f"{text!r}: as in p95=60s: so many per cent of the images within so long", ctx, param)
    return Goal(float(found[1]), float(found[2]) / (1000 if found[3] == "ms" else 1))


def _names(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(","))) if text else ()


def asked(f: F) -> F:
    """What the clients ask."""
    whole = click.IntRange(1, 4096)
    for option in reversed(
        (
            click.option("--seconds", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="That are measured."),
            click.option("--warm", type=click.FloatRange(0), default=5.0, show_default=True, metavar="S", help="Before them, not counted."),
            click.option("--clients", type=whole, default=1, show_default=True, help="Client processes."),
            click.option("--repeat", type=whole, default=1, show_default=True, help="Runs; from two on there are intervals."),
            click.option("--prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
                         help="One each line, or a JSON object with wishes."),
            click.option("--size", type=click.Choice(["64", "256", "1024"]), default="1024", show_default=True, help="Of the picture."),
            click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the requests, and of the arrivals."),
            click.option("--slo", callback=goal, metavar="pN=T", help="Goodput counts what keeps to it, as in p95=60s."),
            click.option("--no-previews", is_flag=True, help="Do not watch for the early pictures."),
            click.option("--unloaded", type=click.IntRange(0, 1000), default=2, show_default=True, help="Requests alone, before."),
        )
    ):  # fmt: skip
        f = option(f)
    return f


def started(f: F) -> F:
    """Which mesh is asked."""
    for option in reversed(
        (
            click.option("--start", is_flag=True, help="A mesh for this alone, as configured; else the one that runs is asked."),
            click.option("--sleep", callback=by_stage, metavar="MS|STAGE=MS,...", help="The same, of stages that only wait so long."),
            click.option("--busy", callback=by_stage, metavar="MS|STAGE=MS,...", help="The same, of stages that only compute so long."),
        )
    ):
        f = option(f)
    return options.toy(options.cascade(options.copies(options.coordinator(options.configured(f)))))


@click.command(short_help="A mesh under load: images/s, latency, busy shares.")
@click.option("--in-flight", type=click.IntRange(1, 4096), default=8, show_default=True, metavar="N", help="Closed loop: so many at once.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Open loop: so many a second, whatever becomes of them.")
@click.option("--arrivals", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True, help="Of the open loop.")
@click.option("--on", "hosts", callback=_names, metavar="HOST,...", help="The clients on these [hosts.NAME], over SSH; --clients on each.")
@asked
@started
@reported
def load(in_flight: int, rate: float | None, arrivals: str, hosts: tuple[str, ...], report: Any, **given: Any) -> int:
    """Ask a mesh by client processes of its own, and tell what came of it.  In an open loop a request counts from when it was due, so a
    mesh or a client that is late cannot hide it.

    \b
    ifmesh bench load --start --toy --in-flight 8
    ifmesh bench load --sleep 50 --in-flight 8                        four stages of 50 ms: what the mesh loses of 20 images/s
    ifmesh bench load --rate 0.5 --clients 4 --slo p95=60s --repeat 3 --out report
    ifmesh bench load --rate 20 --on gpu1,gpu2 --clients 4            the mesh that runs, asked from two hosts of ifmesh.toml
    """
    from ifmesh.bench.head import head
    from ifmesh.bench.load import Load

    way = {"arrivals": arrivals, "rate": rate} if rate else {"arrivals": "closed"}
    wanted = made(given, in_flight=in_flight, hosts=hosts, **way)
    if hosts and (given["start"] or given["sleep"] or given["busy"]):
        raise click.UsageError("--on: other hosts ask the mesh that runs: not with --start, --sleep, --busy")
    with report as page, mesh(given, page.tell) as (door, config), aboard(config, wanted, given["config_file"], page.over) as crews:
        begun = head("load", config)
        work = Load(wanted, door, page.tell, page.over, crews)
        page.take(work.measure, lambda: {**begun, **work.figures()})
    return exits.OK


def made(given: dict[str, Any], **more: Any) -> Wanted:
    """What the flags of `asked` say."""
    from ifmesh.bench.load import PROMPTS, Wanted, asks

    wishes = {"size": int(given["size"])}
    file: Path | None = given["prompts"]
    lines = asks(file, wishes) if file else tuple(json.dumps({"prompt": prompt, **wishes}) for prompt in PROMPTS)
    names = ("seconds", "warm", "clients", "repeat", "seed", "unloaded")
    return Wanted(**{name: given[name] for name in names}, previews=not given["no_previews"], goal=given["slo"], asks=lines, **more)


@click.command(hidden=True)
@click.argument("name")
@options.configured
def crew(name: str, config_file: Path | None) -> int:
    """The way to the clients on the host NAME: orders on stdin, reports on stdout."""
    from ifmesh.bench.remote import run

    return run(name, options.configuration(config_file)[0].hosts[name])


@contextmanager
def aboard(config: Config, wanted: Wanted, file: Path | None, over: Callable[[], bool]) -> Iterator[Crews | None]:
    """The clients on other hosts, not started yet; None: there are none.  Misconfigured: there is no such host."""
    from ifmesh import checks, supervisor
    from ifmesh.bench.crews import Crews, door

    for name in wanted.hosts:
        if name not in config.hosts:
            raise Misconfigured(f"hosts.{name}: no such host in the configuration{checks.nearest(name, config.hosts)}")
    if not wanted.hosts:
        yield None
        return
    _, flags = options.configuration(file)
    with door(config, wanted.longest) as told:
        commands = {name: supervisor.python("bench", "crew", name, *flags) for name in wanted.hosts}
        yield Crews(commands, wanted.clients, told, over)


@contextmanager
def mesh(
    given: dict[str, Any], tell: Callable[[str, float], None], settings: dict[str, object] | None = None
) -> Iterator[tuple[Any, Config]]:
    """(where it is, how it is configured) of the mesh that the flags of `started` mean, as far as a command has them.

    settings: beside them, for one of its own.
    """
    from ifmesh.bench.meshes import measured, still

    sleep, busy = given.get("sleep") or {}, given.get("busy") or {}
    if sleep or busy or given["start"] or settings is not None:
        flags: dict[str, object] = dict(click.get_current_context().meta.get("ifmesh.overrides", {}))
        if flags.get("mesh.coordinator") or flags.get("mesh.identity"):
            raise Misconfigured("mesh.coordinator: a mesh that is started for this has its own: leave --coordinator and --identity out")
        waits = {stage: {"sleep_ms": ms} for stage, ms in sleep.items()}
        works = {stage: {"busy_ms": ms} for stage, ms in busy.items()}
        each = {stage: {**waits.get(stage, {}), **works.get(stage, {})} for stage in STAGES}
        own = still(each=each) if waits or works else {}
        with measured({**own, **flags, **(settings or {})}, file=given["config_file"]) as started:
            tell("the mesh starts", 0.0)
            yield started.ready().door, started.config
        return
    config, _ = options.configuration(given["config_file"])
    who = False if not config.mesh.curve else str(config.mesh.identity) if config.mesh.identity else None
    yield {"coordinator": config.control(), "state": str(config.mesh.state), "identity": who}, config
