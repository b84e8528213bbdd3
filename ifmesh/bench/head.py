"""What every report begins with: of what it is, on which machine, by which versions, configured how, made by which command, when."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ifmesh.config import Config

PACKAGES = ("ifmesh", "pyzmq", "torch", "diffusers")


def head(kind: str, config: Config) -> dict[str, object]:
    """kind: "mesh", "load", "links" ...  Nothing in it is secret: keys are named by their files."""
    machine = {"system": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    told = {"mesh": asdict(config.mesh), "cascade": asdict(config.cascade), "services": {s: asdict(v) for s, v in config.services.items()}}
    return {
        "kind": kind,
        "machine": machine,
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "configuration": _plain(told),
        "command": ["ifmesh", *sys.argv[1:]],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value
