"""The commands about the keys that there are: keys list, make, revoke, rotate."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ifmesh import cli_invite as inviting
from ifmesh import cli_options as options
from ifmesh.errors import MeshError, Misconfigured

if TYPE_CHECKING:
    from ifmesh.config import Config


class Keys(click.Group):
    """Lists its commands as they are written here; alone it makes the keys."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        plain = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        return super().parse_args(ctx, ["make", *args] if plain else args)


@click.group(cls=Keys, short_help="Who may speak with the mesh: list, revoke, rotate.")
def keys() -> None:
    """The keys of this state folder's mesh.  Alone: make those that every mesh has, as `ifmesh up` does by itself.

    \b
    ifmesh keys list
    ifmesh keys revoke anna
    """


@keys.command(short_help="Make the mesh's own keys, where there are none.")
@options.configured
def make(config_file: Path | None) -> int:
    """The keys of coordinator, operator and workers, in files that only you may read, and the table of whom the coordinator lets in."""
    from ifmesh import authorized, screen

    config, _ = options.configuration(config_file)
    authorized.prepare(config.mesh.state)
    screen.tell(str(config.mesh.state / "keys"))
    return 0


@keys.command("list", short_help="Whose keys there are.")
@options.as_json
@options.configured
def list_(as_json: bool, config_file: Path | None) -> int:
    """Names, roles, fingerprints and ends (UTC) of all keys; secrets are not shown.  A fingerprint is what routing ids begin with."""
    from ifmesh import screen

    config, _ = options.configuration(config_file)
    rows = _rows(config.mesh.state)
    if as_json:
        screen.document(rows)
        return 0
    made = screen.table("", "name", "role", "fingerprint", "until")
    for row in rows:
        made.add_row(row["name"], row["role"], row["fingerprint"], f"{row['until']}{'' if row['valid'] else ' (over)'}".strip())
    screen.stdout().print(made, markup=False)
    return 0


def _rows(state: Path) -> list[dict[str, Any]]:
    """The coordinator, the table's keys, and the mesh's own that are not in it any more."""
    from ifmesh import authorized, identity
    from ifmesh.table import written

    folder = state / "keys"
    if not (folder / authorized.FILE).exists():
        raise Misconfigured(f"{folder}: there are no keys yet: `ifmesh keys` makes them, and so does `ifmesh up`")

    def row(name: str, role: str, public: str, until: str, valid: bool) -> dict[str, Any]:
        return {"name": name, "role": role, "fingerprint": identity.tag(public), "public": public, "until": until, "valid": valid}

    entries, now = authorized.read(folder / authorized.FILE).entries, time.time()
    rows = [row(e.name, e.role, e.public, "" if e.until is None else written(e.until), e.valid(now)) for e in entries]
    let_in = {entry.public for entry in entries}
    for name in (identity.COORDINATOR, *authorized.OWN):
        if (path := folder / f"{name}.key").exists():
            own = identity.read(path)
            if name == identity.COORDINATOR:
                rows.insert(0, row(name, own.role, own.keys.public, "", True))
            elif own.keys.public not in let_in:
                rows.append(row(name, own.role, own.keys.public, "revoked", False))
    return rows


@keys.command(short_help="Let somebody in no more.")
@click.argument("name")
@options.configured
def revoke(name: str, config_file: Path | None) -> int:
    """Take all keys of NAME out of the table.  A coordinator that runs hears nothing of theirs from the next message on."""
    from difflib import get_close_matches

    from ifmesh import authorized, identity, screen

    config, _ = options.configuration(config_file)
    path = config.mesh.state / "keys" / authorized.FILE
    if name == identity.COORDINATOR:
        raise Misconfigured("coordinator: it lets the others in; a new key for it: `ifmesh keys rotate coordinator`")
    known = sorted({entry.name for entry in authorized.read(path).entries})
    if not (count := authorized.remove(path, name)):
        near = get_close_matches(name, known, n=1)
        raise MeshError(f"{name}: no such key{f'; did you mean {near[0]}?' if near else ': `ifmesh keys list`'}")
    screen.say(f"revoked: {name} ({count} {'key' if count == 1 else 'keys'})")
    if name in authorized.OWN:
        screen.say(f"it was one of the mesh's own; `ifmesh keys rotate {name}` makes a new one")
    return 0


@keys.command(short_help="A new key for a name.")
@click.argument("name")
@click.option(
    "--overlap", callback=inviting.duration, default="1d", show_default=True, metavar="1d|12h|30m", help="So long the old one stays valid."
)
@click.option("--yes", is_flag=True, help="With coordinator: make every invite worthless.")
@inviting.out_file
@inviting.where
@options.configured
def rotate(name: str, overlap: float, yes: bool, out: Path | None, config_file: Path | None) -> int:
    """Make a new key for NAME.  One of the mesh's own (operator, worker-STAGE) is written into its file; else a new invite is printed.

    The coordinator's own key is what everybody knows it by: with a new one every invite must be made anew.

    \b
    ifmesh keys rotate anna --overlap 12h -o anna.key
    ifmesh keys rotate worker-stage_one
    """
    from ifmesh import authorized, identity, screen
    from ifmesh.table import written

    config, _ = options.configuration(config_file)
    if name == identity.COORDINATOR:
        return _rotate_coordinator(config, yes)
    ends = float(int(time.time() + overlap))
    if name in authorized.OWN:
        if out is not None:
            raise click.BadParameter(f"{name} is one of the mesh's own: it stays in its file", param_hint="--out")
        authorized.renew(config.mesh.state, name, ends)
        screen.say(f"new key for {name}; the old one is valid until {written(ends)}: {_left(config, name)}")
        return 0
    url = inviting.url(config)
    inviting.check_new(out)
    inviting.hand_over(authorized.renew(config.mesh.state, name, ends, url), out)
    screen.say(f"new key for {name}; the old one is valid until {written(ends)}")
    inviting.tell_how(url, out)
    return 0


def _left(config: Config, name: str) -> str:
    """What is left to do until then."""
    from ifmesh import lease

    if not name.startswith("worker-"):
        return "what runs with it must be started again by then"
    by_hand = "a worker that something else started (Slurm, Kubernetes, a shell) needs the new file, and must be started again by then"
    if not (pid := lease.holder(config.mesh.state)):
        return by_hand
    return f"`ifmesh up` (pid {pid}) has its workers start again, here and on its hosts; {by_hand}"


def _rotate_coordinator(config: Config, yes: bool) -> int:
    from ifmesh import authorized, identity, lease, screen
    from ifmesh.journal import locked

    state = config.mesh.state
    path = state / "keys" / f"{identity.COORDINATOR}.key"
    if pid := lease.holder(state):
        raise MeshError(f"`ifmesh up` (pid {pid}) runs with the old key: end it first (`ifmesh down`)")
    if path.exists():
        os.close(locked(state))  # so does one that runs without `up`
    guests = sorted({row["name"] for row in _rows(state)} - {identity.COORDINATOR, *authorized.OWN}) if path.exists() else []
    if not yes:
        lost = f"the invites of {', '.join(guests)}" if guests else "every invite"
        raise Misconfigured(f"coordinator: everybody knows it by its key: {lost} must be made anew, by `ifmesh keys rotate`: say --yes")
    path.unlink(missing_ok=True)
    authorized.prepare(state)
    screen.say("new key for the coordinator; the mesh's own processes know it")
    for guest in guests:
        screen.say(f"to do: ifmesh keys rotate {guest} --overlap 0s")
    return 0
