"""Who this process is, and where it finds the coordinator.  None stands for nobody in particular: a mesh without keys (mesh.curve)."""

from __future__ import annotations

from pathlib import Path

from ifmesh import authorized, identity
from ifmesh.config import Config
from ifmesh.errors import Lost
from ifmesh.identity import Identity


def of_coordinator(config: Config) -> Identity | None:
    """Makes the keys of the mesh where there are none yet.  Misconfigured: a file is damaged, or others may read it."""
    return authorized.prepare(config.mesh.state) if config.mesh.curve else None


def of_worker(config: Config, stage: str) -> Identity | None:
    """Misconfigured: no key, or not that of a worker of this stage."""
    if not config.mesh.curve:
        return None
    if not config.mesh.coordinator and config.invited() is None:
        authorized.prepare(config.mesh.state)  # of this very mesh: whoever starts first makes its keys
    return config.identity(f"worker:{stage}")


def of_client(config: Config, given: str | Path | None = None) -> Identity | None:
    """given: the file of an invite, or the invite itself; None: as configured.

    Misconfigured: there is none, or no good one.  Lost: nothing is configured, and there is no mesh in the state folder.
    """
    if not config.mesh.curve:
        return None
    if given is None and not config.mesh.coordinator and not config.identity_file("client").exists() and config.invited() is None:
        raise Lost(f"no mesh in {config.mesh.state}, it has no keys: start it with `ifmesh up`, or `ifmesh join` one elsewhere")
    if isinstance(given, str) and given.strip().startswith("ifmesh1."):
        return identity.loads(given)
    return config.identity("client") if given is None else identity.read(Path(given).expanduser())


def control(config: Config, me: Identity | None) -> str:
    """Where the coordinator is: as configured, else as the invite says, else as it has written down in the state folder."""
    return config.mesh.coordinator or (me.coordinator if me is not None else "") or config.control()


def called(me: Identity | None, name: str) -> str:
    """A routing id: of this key, and nobody else's."""
    return name if me is None else f"{identity.tag(me.keys.public)}.{name}"
