"""The commands by which somebody is let in: invite, and join.  A secret goes through files, stdin and stdout, never through argv."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from ifmesh import cli_options as options
from ifmesh.errors import MeshError, Misconfigured
from ifmesh.identity import ROLES

if TYPE_CHECKING:
    from ifmesh.config import Config
    from ifmesh.identity import Identity

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
ANYWHERE = ("0.0.0.0", "::", "*")


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds of 90s, 30m, 12h, 1d, 2w."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhdw])", value.strip(), re.ASCII)
    if found is None:
        raise click.BadParameter(f"{value!r}: a number and a unit, as in 30m, 12h, 1d or 2w", ctx, param)
    return float(found[1]) * UNITS[found[2]]


def end(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Seconds since 1970 of 2027-01-31 or 2027-01-31T12:00; without a zone it is UTC."""
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value.strip())
        at = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r}: a time in UTC, as in 2027-01-31 or 2027-01-31T12:00", ctx, param) from None
    if at <= time.time():
        raise click.BadParameter(f"{value!r}: that is over", ctx, param)
    return at


out_file = click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it to a new file (0600), not to stdout."
)
where = options.flag(
    "mesh.coordinator", "--coordinator", metavar="URL", help="Where they find the coordinator; without it, where it says that it listens."
)


@click.command(short_help="Let somebody in, from this or another machine.")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), metavar="ROLE", default="client", show_default=True, help=f"{', '.join(ROLES)}.")
@click.option("--until", callback=end, metavar="TIME", help="The end of it, in UTC: 2027-01-31 or 2027-01-31T12:00.")
@click.option("--for", "lasting", callback=duration, metavar="1d|12h|30m", help="The same, from now.")
@out_file
@where
@options.configured
def invite(name: str, role: str, until: float | None, lasting: float | None, out: Path | None, config_file: Path | None) -> int:
    """Make a key for NAME, let it in, and print it as one line.  The line is a secret: whoever has it is NAME.

    \b
    ifmesh invite anna | ssh anna@laptop ifmesh join
    ifmesh invite gpu7 --role worker:stage_one -o gpu7.key
    """
    from ifmesh import authorized, screen
    from ifmesh.table import written

    if until is not None and lasting is not None:
        raise click.UsageError("--until and --for: one of them")
    ends = float(int(time.time() + lasting)) if lasting is not None else until
    config, _ = options.configuration(config_file)
    at = url(config)
    check_new(out)
    made = authorized.invite(config.mesh.state, name, role, at, ends)
    try:
        hand_over(made, out)
    except OSError:  # what could not be handed over lets nobody in
        authorized.remove(config.mesh.state / "keys" / authorized.FILE, name)
        raise
    screen.say(f"{name} may speak as {role}{f' until {written(ends)}' if ends is not None else ''}; `ifmesh keys revoke {name}` ends it")
    tell_how(at, out, role)
    return 0


def url(config: Config) -> str:
    """Where those who are invited find the coordinator.  Misconfigured: nobody knows."""
    found = config.mesh.coordinator or config.announced() or config.mesh.listen
    host, port = _host(found), found.rpartition(":")[2]
    if port == "0":
        raise Misconfigured("--coordinator: nobody listens yet, and on any free port: say where they will find it, tcp://HOST:PORT")
    if host in ANYWHERE and config.mesh.address:
        return f"tcp://{f'[{config.mesh.address}]' if ':' in config.mesh.address else config.mesh.address}:{port}"
    return found


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def check_new(out: Path | None) -> None:
    if out is None:
        return
    if out.exists():
        raise click.BadParameter(f"{out}: it is there already: take another name", param_hint="--out")
    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"{out}: no folder {out.parent}", param_hint="--out")


def hand_over(made: Identity, out: Path | None) -> None:
    from ifmesh import identity

    if out is not None:
        identity.write(out, made)
    else:
        print(identity.dumps(made), flush=True)


def tell_how(url: str, out: Path | None, role: str = "client") -> None:
    from ifmesh import screen
    from ifmesh.checks import LOOPBACK

    told = str(out) if out is not None else "FILE"
    if role.startswith("worker:"):
        screen.say(f"there: ifmesh {role.replace(':', ' ')} --identity {told}   (a file that only its owner may read: chmod 600)")
    else:
        screen.say(f"there: ifmesh join {told if out is not None else '  and this line'}")
    host = _host(url)
    if host in LOOPBACK or url.startswith("ipc:"):
        screen.say(f"careful: {url} is found on this machine only; for others: mesh.listen, and --coordinator tcp://HOST:PORT", "yellow")
    elif host in ANYWHERE:
        screen.say(f"careful: {url} is no address that others find: mesh.address, or --coordinator tcp://HOST:PORT", "yellow")


@click.command(short_help="Join a mesh that has invited you.")
@click.argument("file", required=False)
@click.option("--leave", is_flag=True, help="Forget the mesh that was joined.")
@options.configured
def join(file: str | None, leave: bool, config_file: Path | None) -> int:
    """Keep an invite, from FILE or stdin, so that all commands and clients of this user and state folder talk to that mesh.

    An invite is a secret: it is pasted, piped or read from a file, and never written on the command line.

    \b
    ifmesh join anna.key
    ssh anna@server ifmesh invite anna | ifmesh join
    """
    from ifmesh import authorized, identity, lease, screen

    if file is not None and file.lstrip("\"' ").startswith("ifmesh1."):
        raise click.UsageError("an invite on the command line is seen by others: take it as lost (`ifmesh keys revoke`); pipe or paste it")
    config, _ = options.configuration(config_file)
    state = config.mesh.state
    kept = state / "keys" / identity.JOINED
    if leave:
        if not kept.exists():
            raise MeshError(f"{state}: no mesh was joined with this state folder")
        kept.unlink()
        screen.say("left; `ifmesh up` starts a mesh of your own")
        return 0
    found = _invited(file)
    if found.role == identity.COORDINATOR:
        raise Misconfigured("this is the key of a coordinator, not an invite: `ifmesh invite` makes one")
    if pid := lease.holder(state):
        raise MeshError(f"`ifmesh up` (pid {pid}) runs with this state folder: `ifmesh down`, or join with another: --state DIR")
    if found.role.startswith("worker:"):
        kept = kept.with_name(f"joined-{found.role.replace(':', '-')}.key")
    authorized.make_folder(kept.parent)
    identity.write(kept, found)
    where = found.coordinator or "the coordinator of this state folder"
    screen.say(f"joined {where} as {found.name} ({found.role}); kept in {kept}")
    if found.role.startswith("worker:"):
        screen.say(f"start it: ifmesh {found.role.replace(':', ' ')} --identity {kept}")
    else:
        screen.say("try: ifmesh ps")
    return 0


def _invited(file: str | None) -> Identity:
    """From a file that only its owner may read, or from stdin; at a terminal it is not shown."""
    from ifmesh import identity

    if file not in (None, "-"):
        assert file is not None
        return identity.read(Path(file))
    if sys.stdin.isatty():
        return identity.loads(click.prompt("paste the invite (it is not shown)", hide_input=True, err=True, prompt_suffix=": "))
    return identity.loads(sys.stdin.buffer.read(1 << 16).decode(errors="replace"))
