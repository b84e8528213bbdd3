"""What every report begins with: on what it was measured, with which versions and configuration, by which command, and when."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ifmesh.config import SECTIONS, Config

Kind = Literal["mesh", "load", "links", "sweep", "baseline", "peers", "quality", "verify"]
Report = dict[str, Any]
"""What a benchmark found, as it is written in JSON."""

PACKAGES = ("ifmesh", "pyzmq", "safetensors", "msgpack", "xxhash", "torch", "diffusers")
OF_THE_PLACE = ("state", "keep_bags", "identity")  # folders and files of whoever measures: they change no figure


def head(kind: Kind, config: Config | None) -> Report:
    """The beginning of a report, to which the figures are added.  config: of the mesh that is measured; None: there is none."""
    return {
        "kind": kind,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["ifmesh", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "configuration": configuration(config) if config is not None else {},
    }


def machine() -> Report:
    """Of this host.  memory: bytes; load: the average of the last minute, before anything was measured."""
    return {
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cards": _cards(),
        "load": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """Of what is installed, by package; Python, the kernel, and libzmq as it runs."""
    import zmq

    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}", "libzmq": zmq.zmq_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def configuration(config: Config) -> dict[str, object]:
    """By dotted key, what is not as it is by default."""
    held = {"mesh": config.mesh, "cascade": config.cascade} | {f"services.{stage}": service for stage, service in config.services.items()}
    found: dict[str, object] = {}
    for section, cls in SECTIONS.items():
        usual = cls()
        for key in fields(cls):
            value = getattr(held[section], key.name)
            if key.name not in OF_THE_PLACE and value != getattr(usual, key.name):
                found[f"{section}.{key.name}"] = value
    return found | {f"memory.{device}": count for device, count in config.memory.items()}


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cards() -> list[str]:
    """Their names, as the driver tells them: torch need not be there."""
    if shutil.which("nvidia-smi") is None:
        return []
    with suppress(OSError, subprocess.SubprocessError):
        words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[:-1]
    return []
