"""Who this process is, whom it looks for, and where.  None stands for a mesh without keys (mesh.curve = false)."""

from __future__ import annotations

import os
from pathlib import Path

from ifmesh import authorized, identity
from ifmesh.config import Config
from ifmesh.errors import Misconfigured
from ifmesh.identity import Identity
from ifmesh.roles import tag


def of_coordinator(config: Config) -> Identity | None:
    """Makes the keys of the mesh where there are none yet.  Misconfigured: a file is damaged, or others may read it."""
    return authorized.prepare(config.mesh.state) if config.mesh.curve else None


def of_worker(config: Config, stage: str) -> Identity | None:
    """Misconfigured: no key, or not one of a worker of this stage."""
    if not config.mesh.curve:
        return None
    if config.mesh.identity is None and not config.mesh.coordinator:
        authorized.prepare(config.mesh.state)  # of this very mesh: whoever starts first makes its keys
    found = _read(config, f"worker-{stage}", f"`ifmesh invite {stage} --role worker:{stage}`")
    if found.role != f"worker:{stage}":
        raise Misconfigured(f"mesh.identity: {found.name} is {found.role}, and this is a worker of {stage}: `ifmesh invite` makes another")
    return found


def of_client(config: Config, given: str | Path | None = None) -> Identity | None:
    """given: a file, or an invite; None: as configured, else the mesh's own operator.  Misconfigured: none of these."""
    if not config.mesh.curve:
        return None
    if isinstance(given, str) and given.strip().startswith("ifmesh1."):
        return identity.loads(given)
    if given is not None:
        return identity.read(Path(given).expanduser())
    return _read(config, "operator", "`ifmesh invite NAME`")


def control(config: Config, me: Identity | None) -> str:
    """Where the coordinator is: as configured, else as the invite says, else as it has written it down in the state folder."""
    return config.mesh.coordinator or (me.coordinator if me is not None else "") or config.control()


def called(me: Identity | None, name: str) -> str:
    """A routing id: of this key, and nobody else's."""
    return (tag(me.keys.public) if me is not None else "") + name


def _read(config: Config, name: str, remedy: str) -> Identity:
    path = config.mesh.identity or config.mesh.state / "keys" / f"{name}.key"
    if not os.path.lexists(path):
        where = "mesh.identity" if config.mesh.identity is not None else "no keys"
        start = "" if config.mesh.identity is not None else "start the mesh of this state folder (`ifmesh up`), or "
        raise Misconfigured(f"{where}: there is no {path}: {start}ask for an invitation ({remedy}) and name its file: --identity")
    return identity.read(path)
