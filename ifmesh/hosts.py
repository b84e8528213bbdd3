"""[hosts.NAME] of ifmesh.toml: the other machines of a mesh, what runs there, and how they are reached over SSH."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ifmesh import checks
from ifmesh.errors import Misconfigured
from ifmesh.request import STAGES

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
TABLES = ("environment", "copies")


@dataclass(frozen=True, slots=True)
class Host:
    """address: a name, a number, or an alias of ~/.ssh/config.  user: "": that of ~/.ssh/config, else yours.  port: of its sshd.

    key: file of the private key; None: the agent's, and those of ~/.ssh.  known_hosts: file; None: ~/.ssh/known_hosts.  python: the
    command there, of an environment that has this very ifmesh.  advertise: its address in numbers, by which the others reach its
    workers; "": the one by which it reaches the coordinator.  environment: of all that runs there.  devices: its copies get them in
    turn, in the order of the stages; (): as services.STAGE.device says.  copies: by stage; {}: `up` starts nothing there.
    """

    address: str = ""
    user: str = ""
    port: int = 22
    key: Path | None = None
    known_hosts: Path | None = None
    python: str = "python3"
    advertise: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    copies: dict[str, int] = field(default_factory=dict)


KEYS = tuple(key.name for key in fields(Host))


def read(tables: object) -> dict[str, Host]:
    """By name, from the tables of the file.  Misconfigured."""
    if not isinstance(tables, Mapping):
        raise Misconfigured(f"hosts: {tables!r}: tables, [hosts.NAME]")
    return {name: _host(name, table, tables) for name, table in tables.items()}


def spoken(path: list[str], value: object, said: str) -> object:
    """The value of `hosts.NAME.` and this path, of text from a flag.  Misconfigured: there is no such key, or not this value."""
    name, inner = path[0], path[1:]
    if name not in KEYS or bool(inner) != (name in TABLES) or len(inner) > 1:
        keys = [f"{key}.{'STAGE' if key == 'copies' else 'VARIABLE'}" if key in TABLES else key for key in KEYS]
        raise Misconfigured(f"{said}: no such key of a host; there are: {', '.join(keys)}")
    if not isinstance(value, str):
        return value
    if name == "devices":
        return [part.strip() for part in value.split(",") if part.strip()]
    if name in ("port", "copies"):
        if not value.isdecimal():
            raise Misconfigured(f"{said}: {value!r}: a whole number")
        return int(value)
    return value


def _host(name: str, table: object, among: Mapping[str, object]) -> Host:
    where = f"hosts.{name}"
    if not NAME.fullmatch(name):
        raise Misconfigured(f"{where}: {name!r}: a name of letters, digits, '_' and '-', at most 32; the address is a key of its own")
    if not isinstance(table, Mapping):
        raise Misconfigured(f"{where}: {table!r}: a table, [{where}]")
    files = {key: table[key] for key in ("key", "known_hosts") if table.get(key, "") != ""}
    for key, file in files.items():
        if not isinstance(file, str | Path):
            raise Misconfigured(f"{where}.{key}: {file!r}: the name of a file")
    host = checks.built(Host, {key: value for key, value in table.items() if key not in ("key", "known_hosts")}, where)
    if not host.address:
        near = checks.nearest(name, [other for other in among if other != name])
        raise Misconfigured(f'{where}.address: missing: there is no such host without one, as in address = "10.0.0.7"{near}')
    if "copies" not in table:
        said = "say what, as in copies = { stage_one = 2 }; copies = {}: only clients of `ifmesh bench load` are to run there"
        raise Misconfigured(f"{where}.copies: missing: nothing runs there: {said}")
    _check(where, host)
    found = {key: Path(str(file)).expanduser().absolute() for key, file in files.items()}
    return replace(host, **found)  # type: ignore[arg-type]  # the two that are paths


def _check(where: str, host: Host) -> None:
    if not re.fullmatch(r"[^\s/@]+", host.address):
        raise Misconfigured(f"{where}.address: {host.address!r}: a host name or a number; user and port are keys of their own")
    if not re.fullmatch(r"\S*", host.user):
        raise Misconfigured(f"{where}.user: {host.user!r}: a login name")
    checks.bounded(f"{where}.port", host.port, 1, 65535)
    if not re.fullmatch(r"[A-Za-z0-9_./~+-]+", host.python):
        remedy = "one command without spaces or quotes, as in ~/ifmesh/.venv/bin/python (a link helps where the path has any)"
        raise Misconfigured(f"{where}.python: {host.python!r}: {remedy}")
    if host.advertise:
        try:
            ipaddress.ip_address(host.advertise)
        except ValueError:
            raise Misconfigured(f"{where}.advertise: {host.advertise!r}: an address of that host in numbers, as in 10.0.0.7") from None
    for variable in host.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise Misconfigured(f"{where}.environment: {variable!r}: the name of a variable")
    for device in host.devices:
        checks.device(f"{where}.devices", device)
    for stage, number in host.copies.items():
        if stage not in STAGES:
            raise Misconfigured(f"{where}.copies.{stage}: no such stage: {', '.join(STAGES)}{checks.nearest(stage, STAGES)}")
        checks.bounded(f"{where}.copies.{stage}", number, 0, 256)
