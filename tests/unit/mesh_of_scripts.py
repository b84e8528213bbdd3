"""Stand-ins for `ifmesh up`, `coordinator` and `worker`: real processes, pipes and signals, and nothing in them.

``python mesh_of_scripts.py up STATE [copies]`` runs a real Supervisor over the other two, ``away STATE [copies]``
one for workers alone.  How a service behaves is the word in the file
STATE/NAME.does: "well" (the default), "exit N", "deaf" (SIGTERM does nothing), "slow" (a worker that never says that it is loaded).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path


def program(state: Path, *arguments: str) -> list[str]:
    return [sys.executable, __file__, arguments[0], str(state), *arguments[1:]]


def up(state: Path, copies: str, coordinator: str = "") -> int:
    from ifmesh import lease
    from ifmesh.config import read
    from ifmesh.supervisor import Supervisor, services

    overrides = {"mesh.state": str(state), **{f"services.{s}.copies": 0 for s in ("encoder", "stage_two", "upscaler", "guard")}}
    config = read(None, {"HOME": str(state)}, overrides | {"services.stage_one.copies": copies, "mesh.coordinator": coordinator})
    with lease.lock(state):
        say = lambda name, line: print(f"{name}: {line}", flush=True)  # noqa: E731
        return Supervisor(
            config, services(config, (), "far" if coordinator else ""), say, lambda: "ready: all of it", partial(program, state)
        ).run()


def serve(state: Path, name: str) -> int:
    does = state / f"{name}.does"
    word = does.read_text() if does.exists() else "well"
    if word.startswith("exit"):
        print("cannot work like this", flush=True)
        return int(word.split()[1])
    ended = False

    def end(number: int, frame: object) -> None:
        nonlocal ended
        ended = word != "deaf"
        print("SIGTERM", flush=True)

    signal.signal(signal.SIGTERM, end)
    signal.siginterrupt(signal.SIGTERM, True)
    if name == "coordinator":
        part = state / "endpoint.part"
        part.write_text(json.dumps({"control": "tcp://127.0.0.1:9", "pid": os.getpid()}))
        part.replace(state / "endpoint.json")
    print("here", *sys.argv[3:], flush=True)
    if name != "coordinator" and word != "slow":
        print(f"{name} is loaded: nothing", flush=True)
    hear, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    import select

    while not ended:
        for fd in select.select([0, hear], [], [])[0]:
            if not os.read(fd, 1) and fd == 0:
                return 74  # tied: the supervisor has gone
    print("bye", flush=True)
    return 0


if __name__ == "__main__":
    role, folder, *rest = sys.argv[1:]
    if role in ("up", "away"):
        sys.exit(up(Path(folder), rest[0] if rest else "1", "tcp://127.0.0.1:9" if role == "away" else ""))
    sys.exit(serve(Path(folder), rest[rest.index("--name") + 1] if role == "worker" else role))
