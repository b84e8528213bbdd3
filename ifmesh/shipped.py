"""The configuration that another host is sent: that of this one, but with its own workers, and with nothing of this machine's own."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ifmesh import typed
from ifmesh.config import Config

NOT_SENT = ("state", "listen", "coordinator", "identity", "address")
"""Of [mesh]: they are each machine's own."""


def toml(config: Config, name: str, coordinator: str) -> str:
    """The ifmesh.toml of the host of this name.  coordinator: its URL, as that host is to dial it.

    It names one host, that one: what runs there is told once, for here and there.
    """
    host = config.hosts[name]
    mesh = {key: value for key, value in typed.plain(config.mesh).items() if key not in NOT_SENT and value is not None}
    tables: dict[str, Mapping[str, object]] = {
        "mesh": {**mesh, "coordinator": coordinator, "address": host.advertise},
        "cascade": typed.plain(config.cascade),
        **{f"services.{stage}": {**typed.plain(service), "copies": 0} for stage, service in config.services.items()},
        "memory": config.memory,
        f"hosts.{name}": {"address": host.address, "devices": list(host.devices), "copies": host.copies},
    }
    return "\n".join(_table(section, table) for section, table in tables.items())


def _table(section: str, table: Mapping[str, object]) -> str:
    return "".join([f"[{section}]\n", *(f"{_key(key)} = {literal(value)}\n" for key, value in table.items())])


def _key(name: str) -> str:
    return name if name.replace("_", "a").replace("-", "a").isalnum() and name.isascii() else literal(name)


def literal(value: object) -> str:
    """A plain value as TOML writes it."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{literal(str(key))} = {literal(inner)}' for key, inner in value.items())}}}"
    raise TypeError(f"{value!r}: no plain value")
