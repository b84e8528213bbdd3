"""Where the commands reach the half that needs torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ifmesh.errors import Misconfigured


def heavy(name: str, what: str, *needed: str) -> Any:
    """A module of ifmesh_services.  what: the command; needed: what it imports besides torch.  Misconfigured: that is not installed."""
    for package in needed or ("torch", "diffusers"):
        if find_spec(package) is None:
            raise Misconfigured(f"{what}: {package} is not installed: pip install 'ifmesh[services]'")
    return import_module(f"ifmesh_services.{name}")
