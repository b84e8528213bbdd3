"""`python -m ifmesh.bench.peers NAME`: that system, started once, and measured as often as it is asked to be.

    <- {"ready": true}  or  {"error": why it does not start}
    -> {"in_flight", "seconds", "least"}                         <- {"taken": [seconds of each request, end of each]}

What it starts is in the process group of this process, which whoever started it ends as a whole.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any


def main(name: str) -> None:
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever they print is not for us
    try:
        drive = import_module(f"ifmesh.bench.peers.{name}").start()
        drive(2, 0.0, 4)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), file=told)
        return
    print(json.dumps({"ready": True}), file=told)
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        taken = drive(order["in_flight"], order["seconds"], order["least"])
        print(json.dumps({"taken": [taken.seconds, taken.ends]}), file=told)


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    if os.getpgrp() == os.getpid():  # all that was started ends with us
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
    os._exit(0)  # their threads may never end
