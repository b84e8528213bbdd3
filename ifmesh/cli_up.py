"""The commands `ifmesh up` and `ifmesh down`: the whole mesh of this machine, and of the hosts that it reaches over SSH."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ifmesh import cli_options as options
from ifmesh import exits
from ifmesh.cli_mesh import check_services, last_line, not_ready
from ifmesh.errors import MeshError, Misconfigured

if TYPE_CHECKING:
    from ifmesh.config import Config
    from ifmesh.kept import Service

SILENCE = 3.0  # seconds after which `down` says what it waits for
BANNER = """\
This is the built-in cascade: the true geometry (64 -> 256 -> 1024), but small networks.  They know eight shapes in twelve colours on plain
backgrounds, sizes and places ("a small yellow star on a blue background at the top"), and draw one of these whatever else is said.
Real weights: accept the licence of DeepFloyd/IF-I-XL-v1.0 on its hub page, log in with `hf auth login`, then
`ifmesh pull if-xl` and `ifmesh up --cascade if-xl` (smaller: if-l, if-m), or `ifmesh up --cascade FOLDER` with your own
cascade.json."""


@click.command(short_help="Start a whole mesh, here and on the hosts of ifmesh.toml.")
@click.option("--detach", is_flag=True, help="In the background; `ifmesh down` ends it.")
@click.option("--wait", is_flag=True, help="With --detach: return when every stage that runs here has a ready worker.")
@click.option("--timeout", type=click.FloatRange(min=0), default=600.0, show_default=True, metavar="S", help="Of --wait.")
@click.option("--no-logs", is_flag=True, help="Do not show the services' log lines; `ifmesh logs` does.")
@options.toy
@options.cascade
@options.copies
@options.listen
@options.keep_bags
@options.configured
@click.option("--preset", type=click.Choice(["t4", "two-gpu", "a100"]), help="A saved plan in the place of --config, see `ifmesh plan`.")
@click.option("--as", "host", default="", metavar="NAME", help="With mesh.coordinator: what this host is called; default its host name.")
@options.tied
def up(detach: bool, wait: bool, timeout: float, no_logs: bool, host: str, tied: bool, preset: str | None, config_file: Path | None) -> int:
    """Start coordinator and workers, watch them, start them again when they die.

    The first Ctrl-C lets the jobs under way finish, the second kills.  With [hosts.NAME] in ifmesh.toml it does the same over SSH for
    what is to run there.  With mesh.coordinator it starts the workers of this machine alone, for the coordinator elsewhere.

    \b
    ifmesh up --toy
    ifmesh up --cascade if-xl --copies stage_one=2 --detach --wait
    """
    from ifmesh import lease, presets, screen, supervisor

    if preset and config_file:
        raise click.UsageError("--preset: not with --config: it is a configuration of its own")
    config, flags = options.configuration(presets.path(preset) if preset else config_file)
    away = config.mesh.coordinator
    if away and wait:
        raise click.UsageError("--wait: not with mesh.coordinator: ask there, by `ifmesh ps --ready`")
    if host and not away:
        raise click.UsageError("--as: only with mesh.coordinator: this is the coordinator's own host")
    if config.mesh.identity is not None and not away:
        raise Misconfigured(f"mesh.identity: {str(config.mesh.identity)!r}: `up` makes the keys of its own mesh: leave this out")
    host = (host or socket.gethostname()) if away else ""
    kept = kept_here(config, flags, host)
    check_services(config, [service.stage for service in kept])
    if not away and not config.cascade.toy and not config.cascade.path:
        screen.say(BANNER, "yellow")
    if detach:
        return _detached(config, [*(("--as", host) if host else ()), *flags], wait, timeout)
    if tied:
        from ifmesh.tied import to_stdin

        to_stdin(gently=bool(away))
    with lease.lock(config.mesh.state):
        say = _prefixed(kept, only_own=no_logs)
        return supervisor.Supervisor(config, kept, say, lambda: "" if away else readiness(config)).run()


def kept_here(config: Config, flags: list[str], host: str) -> list[Service]:
    """What `up` keeps running on this host.  Misconfigured: nothing, or the others could not find it."""
    from ifmesh import kept
    from ifmesh.config import check_hosts

    made = kept.services(config, tuple(flags), host)
    if config.mesh.coordinator:
        if not made:
            raise Misconfigured("services.STAGE.copies: 0 of every stage: say what is to run on this host, as in --copies stage_one=1")
        return made
    check_hosts(config)
    return [*made, *kept.hosts(config, tuple(flags))]


def readiness(config: Config) -> str:
    """What to say when every stage that runs here has a ready worker, a line each; "": not yet, or nobody answers."""
    from ifmesh import modes

    try:
        with options.client(config, timeout=2.0) as client:
            books = client.status()
    except MeshError:
        return ""
    lacking = not_ready(books)
    if any(config.copies(stage, host) for stage in lacking for host in ("", *config.hosts)):
        return ""
    tried = "" if lacking else "; try: ifmesh submit 'a large yellow star on a blue background' -o star.png"
    said = [f"ready: {len(books.services)} workers, coordinator at {config.control()}{tried}", *modes.told(books.services)]
    if lacking:
        said.append(f"no worker for {', '.join(lacking)} (copies = 0); what needs one waits: start `ifmesh worker {lacking[0]}`")
    return "\n".join(said)


def _prefixed(kept: list[Service], only_own: bool) -> Callable[[str, str], None]:
    """Log lines behind their service's name, each in its own colour; those of a host's services behind HOST/SERVICE."""
    from rich.text import Text

    from ifmesh import screen

    console = screen.stderr()
    names, hosts = [service.name for service in kept], {service.host for service in kept if service.host}
    width = max(len(name) + len("/stage_one-0") * (name in hosts) for name in names)
    styles = {name: screen.COLOURS[i % len(screen.COLOURS)] for i, name in enumerate(names)}

    def say(name: str, line: str) -> None:
        if name in styles and only_own:
            return
        style, (inner, bar, rest) = styles.get(name, "bold"), line.partition(" | ")
        if name in hosts and bar:
            name, line = f"{name}/{inner.rstrip()}", rest
        console.print(Text.assemble((f"{name:<{width}} | ", style), line), overflow="ignore", no_wrap=True, crop=False)

    return say


def _detached(config: Config, flags: list[str], wait: bool, timeout: float) -> int:
    """Start another `ifmesh up` in a session of its own and see it take the lock (and become ready)."""
    import subprocess

    from ifmesh import lease, screen, supervisor

    state = config.mesh.state
    if pid := lease.holder(state):
        raise MeshError(f"`ifmesh up` (pid {pid}) runs this mesh already: {state}")
    path = state / "logs" / "up.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as log:
        begin = log.tell()
        command = supervisor.python("up", "--no-logs", *flags)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + timeout
    while True:
        told = lease.written(state)
        if told.get("pid") == process.pid and (told.get("ready") or not wait):
            where = told.get("control") or config.mesh.listen.replace(":0", ":(any free port)")
            screen.say(f"{'ready' if wait else 'up'}: pid {process.pid}, coordinator at {where}; logs in {path.parent}")
            for line in readiness(config).splitlines()[1:] if wait else ():
                screen.say(line)
            return 0
        if (code := process.poll()) is not None:
            said = path.read_bytes()[begin:].decode(errors="replace").strip().removeprefix(BANNER).strip()
            screen.say(f"ifmesh: `up` has ended:\n{said or '(it said nothing)'}\n{_reason(state, told)}".rstrip(), "red")
            return code if code > 0 else 1
        services = told.get("services")
        hopeless = [row for row in services if row.get("code") == exits.CONFIGURATION] if isinstance(services, list) else []
        if wait and hopeless and told.get("pid") == process.pid and hopeless[0]["service"] != "coordinator":
            for name in (row["service"] for row in hopeless):
                screen.say(f"ifmesh: {name} cannot run: {last_line(state, name)}", "red")
            screen.say("the rest of the mesh runs, and goes on trying: `ifmesh logs`, `ifmesh ps`, `ifmesh down`")
            return 3
        if time.monotonic() >= until:
            screen.say(f"ifmesh: not ready after {timeout:g} s; it goes on: `ifmesh ps`, `ifmesh logs`, `ifmesh down`", "red")
            return 4
        time.sleep(0.05)


def _reason(state: Path, told: dict[str, object]) -> str:
    """The coordinator's last line, when it is why `up` has ended."""
    return f"coordinator: {last_line(state, 'coordinator')}" if (state / "logs" / "coordinator.log").exists() else ""


def _awaited(config: Config) -> str:
    """What the end of the mesh waits for, in words."""
    try:
        with options.client(config, timeout=1.0) as client:
            jobs = [row for row in client.status().jobs if row.state == "running"]
    except MeshError:
        jobs = []
    if not jobs:
        return "the processes to end"
    first = jobs[0]
    steps = f", step {first.step} of {first.steps}" if first.steps else ""
    return f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'} under way ({first.job} in {first.stage}{steps})"


@click.command(short_help="Finish what is under way, and end the mesh.")
@click.option("--now", is_flag=True, help="Kill it.  Jobs under way start again with the next `ifmesh up`.")
@options.configured
def down(now: bool, config_file: Path | None) -> int:
    """End the mesh that `ifmesh up` started.  Exit 0: nothing runs any more."""
    from ifmesh import lease, screen, supervisor

    config, _ = options.configuration(config_file)
    state = config.mesh.state
    if not (pid := lease.holder(state)):
        screen.say(f"nothing to end: no `ifmesh up` runs with the state folder {state}")
        return 0
    until = time.monotonic() + config.mesh.drain + 3 * supervisor.LAST_WORDS
    try:
        over = os.pidfd_open(pid)  # of the process, not of its lock: that is let go a moment before the end
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        screen.say("down")
        return 0
    asked = told = time.monotonic()
    while not select.select([over], [], [], 0.1)[0]:
        if not now and time.monotonic() >= told + SILENCE:
            awaited, told = _awaited(config), time.monotonic()
            screen.say(f"waiting for {awaited}, at most {until - told:.0f} s more; `ifmesh down --now` kills")
        if time.monotonic() >= until:
            screen.say(f"ifmesh: pid {pid} has not ended; `ifmesh down --now` kills it", "red")
            return 1
        if now and time.monotonic() >= asked + 0.5:
            os.kill(pid, signal.SIGTERM)  # the second one kills; two at once would arrive as one
            asked = time.monotonic()
    screen.say("down")
    return 0
