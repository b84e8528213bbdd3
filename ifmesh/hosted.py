"""On another host, before its `ifmesh up`: a state folder of its own, with what it was sent; and nobody else's workers in it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from ifmesh import config, exits, identity, lease
from ifmesh.authorized import make_folder
from ifmesh.errors import Lost, Misconfigured
from ifmesh.supervisor import python

REACH = 5.0  # seconds until a coordinator that does not take a connection counts as out of reach
LEAVE = 15.0  # seconds that an older `up` has to end


@dataclass(frozen=True, slots=True)
class Order:
    """name: of this host.  mesh: a tag that tells this mesh from others.  keys: identity files by stage, as text; secret."""

    name: str
    mesh: str
    coordinator: str
    toml: str
    keys: Mapping[str, str]

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def run() -> NoReturn:
    """Become the `ifmesh up` of this host, as the next line of standard input says."""
    order = hear()
    try:
        state = settle(order)
    except Misconfigured as error:
        end(exits.CONFIGURATION, str(error))
    except Lost as error:
        end(exits.UNREACHABLE, str(error))
    except OSError as error:
        end(exits.CONFIGURATION, unwritable(order, error))
    flags = ("--config", str(state / config.FILE), "--state", str(state), "--set", f"mesh.coordinator={order.coordinator}")
    os.execv(sys.executable, python("up", "--tied", "--as", order.name, *flags))


def renew() -> NoReturn:
    """Put the keys of the next line of standard input in the place of those that are here.  The `up` of this host sees it."""
    order = hear()
    try:
        keep(folder(order), order.keys)
    except Misconfigured as error:
        end(exits.CONFIGURATION, str(error))
    except OSError as error:
        end(exits.CONFIGURATION, unwritable(order, error))
    sys.exit(exits.OK)


def hear() -> Order:
    """The next line of standard input, and no byte more."""
    told = b""
    while not told.endswith(b"\n"):
        if not (some := os.read(0, 1)):
            sys.exit(exits.FAILURE)
        told += some
    return Order(**json.loads(told))


def unwritable(order: Order, error: OSError) -> str:
    about = f"{error.filename or 'its state folder'}: {error.strerror or error}"
    remedy = 'make room or let it be written, or name another folder: environment = { XDG_STATE_HOME = "/a/folder" }'
    return f"hosts.{order.name}: {about}: {remedy}"


def end(code: int, why: str) -> NoReturn:
    sys.stderr.write(f"{why}\n")
    sys.exit(code)


def settle(order: Order) -> Path:
    """The state folder, ready.  Misconfigured, Lost, OSError: why there can be none."""
    state = folder(order)
    make_folder(state)
    if why := reach(order.coordinator, REACH):
        remedy = "open that port for this host; with several addresses, say by mesh.listen or mesh.address which one is meant"
        raise Lost(f"hosts.{order.name}: from there the coordinator at {order.coordinator} cannot be reached ({why}): {remedy}")
    take_over(state)
    keep(state, order.keys)
    identity.put(state / config.FILE, order.toml)
    return state


def folder(order: Order) -> Path:
    """The state folder."""
    return config.state_folder(os.environ) / "hosted" / f"{order.name}-{order.mesh}"


def keep(state: Path, keys: Mapping[str, str]) -> None:
    """These keys, as in Order, and no others.  One that is as it was stays untouched."""
    make_folder(state / "keys")
    files = {state / "keys" / f"worker-{stage}.key": text for stage, text in keys.items()}
    for path in (state / "keys").glob("*.key"):
        if path not in files:
            path.unlink()
    for path, text in files.items():
        if not path.exists() or path.read_text() != text:
            identity.put(path, text)


def take_over(state: Path) -> None:
    """End the `up` that still runs here: whoever sent it has lost its connection, and sends us."""
    while pid := lease.holder(state):
        with suppress(ProcessLookupError):
            over = os.pidfd_open(pid)
            try:
                print(f"an older `ifmesh up` (pid {pid}) runs here: ending it", flush=True)
                for number in (signal.SIGTERM, signal.SIGKILL):
                    signal.pidfd_send_signal(over, number)
                    if select.select([over], [], [], LEAVE)[0]:
                        break
            finally:
                os.close(over)


def reach(url: str, seconds: float) -> str:
    """Why no TCP connection can be made to there; "": it can."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
