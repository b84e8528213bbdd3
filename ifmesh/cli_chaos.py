"""The commands `ifmesh chaos ...`: kill what runs, cut what is connected, and prove that nobody's request suffered."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.config import CLASSES
from ifmesh.errors import MeshError, Misconfigured
from ifmesh.request import STAGES

if TYPE_CHECKING:
    from ifmesh.chaos.checker import Verdict

COPIES = 2
"""Of each toy stage: what dies has somebody to take over from it, most of the time."""
TOY_STEPS = 5
PER_SECOND = {False: 2.5, True: 1 / 15}
"""Requests, where nobody says for how long: of toy stages, of real ones."""
EVERY = {False: 1.2, True: 20.0}
"""Seconds between two kills of workers, where nobody says: of toy stages, of real ones."""


@click.group(invoke_without_command=True, short_help="Break a mesh on purpose, and prove that nothing is lost.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of requests and faults: one seed, one schedule.")
@click.option("--requests", type=click.IntRange(1), default=150, show_default=True, metavar="N")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), metavar="M", help="Of faults.  [N/150; with --real N/4]")
@click.option(
    "--every", type=click.FloatRange(0.05), metavar="S", help="Between two kills of a worker; the rest accordingly.  [1.2; with --real 20]"
)
@click.option("--clients", type=click.IntRange(1, 64), default=4, show_default=True, help="Client processes.")
@click.option("--settle", type=click.FloatRange(min=1), metavar="S", help="In which all must end, then.  [300; with --real 1800]")
@click.option("--stage-seconds", type=click.FloatRange(0, 60), default=0.05, show_default=True, metavar="S", help="Of a toy stage's work.")
@click.option("--checkpoint-steps", type=click.IntRange(0, 1000), default=0, show_default=True, metavar="K", help="Of each stage.")
@click.option("--real", is_flag=True, help="The built-in cascade, instead of toy stages; first undisturbed, to know what it must give.")
@options.cascade
@options.copies
@options.flag("mesh.curve", "--no-curve", is_flag=True, flag_value=False, help="Nothing is encrypted, nobody has a key.")
@options.sets
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="History, logs and journal; kept.")
@options.as_json
@click.pass_context
def chaos(ctx: click.Context, /, **wanted: Any) -> int:
    """Start a mesh of its own, and kill, stop, cut and confuse its processes while clients ask; then show from what the clients saw that
    every accepted request has ended once, with the pixels of an undisturbed run.  Ends with 0 only if that is so.

    \b
    ifmesh chaos --seed 7 --requests 300
    ifmesh chaos check DIR                  the proof once more, of a run with --out DIR
    """
    if ctx.invoked_subcommand is not None:
        return exits.OK
    out: Path | None = wanted["out"]
    if out is not None and out.exists() and any(out.iterdir()):
        raise click.UsageError(f"--out: {out} is not empty: every run has a folder of its own")
    folder = Path(tempfile.mkdtemp(prefix="ifmesh-chaos-")) if out is None else out.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    right = False
    try:
        right = _run(folder, wanted)
    finally:
        if out is None and right:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _say(f"history, logs and journal: {folder}")
    return exits.OK if right else exits.FAILURE


@chaos.command(short_help="The proof alone.")
@click.argument("history", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR")
@options.as_json
def check(history: Path, as_json: bool) -> int:
    """Check the history of a run: the folder that it had as --out.  Ends with 0 only if all is right."""
    return exits.OK if _checked(history, {}, as_json) else exits.FAILURE


@chaos.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--name", required=True)
@click.option("--coordinator", required=True)
@options.tied
def agent(folder: Path, name: str, coordinator: str, tied: bool) -> int:
    """One client process of a run."""
    from ifmesh import log
    from ifmesh.chaos import agents
    from ifmesh.tied import to_stdin

    log.start()
    if tied:
        to_stdin()
    agents.run(folder, name, coordinator)
    return exits.OK


def _run(folder: Path, wanted: dict[str, Any]) -> bool:
    from ifmesh.chaos.agents import Plan
    from ifmesh.chaos.run import Run, clients, undisturbed, workers
    from ifmesh.chaos.schedule import schedule
    from ifmesh.cli_mesh import check_services
    from ifmesh.cli_up import readiness

    real = bool(wanted["real"])
    seconds = 60 * wanted["minutes"] if wanted["minutes"] else wanted["requests"] / PER_SECOND[real]
    every = wanted["every"] or EVERY[real]
    plan = Plan(wanted["seed"], wanted["requests"], seconds, wanted["clients"], real, "mesh.curve" not in _given())
    if real:
        calm = folder / "undisturbed"
        _settings(calm, wanted)
        config, flags = options.configuration(None)
        check_services(config)
        _say(f"first undisturbed: {plan.requests} requests")
        plan = undisturbed(config, flags, plan, 3600.0, lambda: readiness(config), _say)
        if not plan.known:
            raise MeshError(f"the undisturbed run did not end as it should: see {calm}")
        folder /= "disturbed"
    _settings(folder, wanted)
    disturbed, flags = options.configuration(None)
    if disturbed.mesh.coordinator:
        raise Misconfigured(f"mesh.coordinator: {disturbed.mesh.coordinator!r}: chaos breaks a mesh of its own: leave this out")
    check_services(disturbed)
    events = schedule(plan.seed, seconds, every, workers(disturbed), clients(plan.clients), disturbed.mesh.silence)
    _say(f"seed {plan.seed}: {plan.requests} requests and {len(events)} faults in {seconds:.0f} s")
    settle = wanted["settle"] or (1800.0 if real else 300.0)
    Run(disturbed, flags, plan, events, settle, lambda: readiness(disturbed), _say).run()
    about = {"seed": plan.seed, "version": _version(), "curve": disturbed.mesh.curve, "real": real, "seconds": round(seconds, 1)}
    about |= {"every": every, "checkpoint_steps": wanted["checkpoint_steps"]}
    return _checked(folder, about, wanted["as_json"])


def _settings(folder: Path, wanted: dict[str, Any]) -> None:
    """The configuration of the mesh that is to be broken, beside what the flags say."""
    folder.mkdir(parents=True, exist_ok=True)
    given = _given()
    options.put("mesh.state", str(folder / "state"))
    options.put("hosts", "")  # it breaks processes of this machine
    usual: dict[str, object] = {"mesh.listen": "tcp://127.0.0.1:0", "mesh.drain": 10.0}
    usual |= {f"services.{stage}.copies": COPIES for stage in STAGES if not wanted["real"]}
    usual |= {f"services.{stage}.checkpoint_steps": wanted["checkpoint_steps"] for stage in STAGES}
    if not wanted["real"]:
        usual["cascade.toy"] = True
    for key, value in usual.items():
        if key not in given:
            options.put(key, value)
    for stage in STAGES if not wanted["real"] else ():
        options.put(f"services.{stage}.run", f"ifmesh.chaos.stages:{CLASSES[stage]}")
        options.put(f"services.{stage}.options.history", str(folder))
        options.put(f"services.{stage}.options.steps", TOY_STEPS)
        options.put(f"services.{stage}.options.step_ms", 1000 * wanted["stage_seconds"] / TOY_STEPS)


def _given() -> dict[str, object]:
    """What flags said of the configuration."""
    given: dict[str, object] = click.get_current_context().meta.setdefault("ifmesh.overrides", {})
    return given


def _checked(folder: Path, about: dict[str, object], as_json: bool) -> bool:
    from ifmesh.chaos import figures, history
    from ifmesh.chaos.checker import check

    try:
        verdict = check(history.read(folder))
        durations = figures.figures(history.read(folder))
    except (OSError, KeyError, TypeError) as error:
        raise MeshError(f"{folder}: not the history of a run: {error!r}") from None
    if as_json:
        from ifmesh import screen

        screen.document({**about, **verdict.figures, "durations": durations, "faults": verdict.faults, "right": verdict.right})
    else:
        _print(verdict, durations)
    return verdict.right


def _print(verdict: Verdict, durations: dict[str, Any]) -> None:
    from ifmesh import screen

    f = verdict.figures
    screen.tell(", ".join(f"{f[name]} {name}" for name in ("requests", "accepted", "finished", "failed", "cancelled")))
    done = ("worker_kills", "coordinator_kills", "client_kills", "pauses", "partitions", "data_partitions", "strangers")
    screen.tell(", ".join(f"{f[name]} {name.replace('_', ' ')}" for name in done))
    for name, value in durations.items():
        if isinstance(value, dict):
            value = f"p50 {value['p50']} s, p99 {value['p99']} s, most {value['most']} s, of {value['count']}" if value["count"] else "-"
        screen.tell(f"{name.removesuffix('_s').replace('_', ' ')}: {'-' if value is None else value}")
    for fault in verdict.faults:
        screen.tell(fault)
    wrong = ("lost", "twice", "different", "innocents_failed", "misjudged", "fell")
    told = ", ".join(f"{f[name]} {name.replace('_', ' ')}" for name in wrong)
    screen.tell(f"{told}, poison kills at most {f['poison_kills_max']} ({f['poison_unwitnessed']} more that nobody could know of)")
    screen.tell("all is right" if verdict.right else "NOT right")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ifmesh")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return ""


def _say(line: str) -> None:
    from ifmesh import screen

    screen.say(line)
