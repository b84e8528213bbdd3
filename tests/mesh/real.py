"""A mesh as a user has it: `ifmesh up` with a cascade in torch, asked through the client library and the command line."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from ifmesh_services.nano import builder
from safetensors.torch import load_file

from ifmesh import Client, Job, MeshError, sockets
from ifmesh.protocol import Books, Progress
from ifmesh.request import STAGES
from tests.mesh.kit import Mesh, Process

LIMIT = 180.0
"""Seconds after which a test that waits has failed: ten workers that import torch at once, on two busy cores."""

DRAWN = {"encoder": "embeds", "stage_one": "image64", "stage_two": "image256", "upscaler": "image1024"}
"""By stage, the tensor that diffusers' pipelines give too."""

Fingerprint = dict[str, tuple[int, int]]


def cascade(above: Path, base: int) -> Path:
    """The built-in cascade with this base size, in a folder below `above`; built at the first call of the session."""
    folder = above / f"nano{base}"
    if not folder.exists():
        builder.build(folder, base=base)
    return folder


class Real:
    """`ifmesh up` on a state folder of its own; whatever happens, nothing of it stays.

    copies: workers by stage; those not named have one.  stages: the services that are to run.  settings: by dotted key.
    """

    def __init__(
        self,
        folder: Path,
        weights: Path,
        copies: Mapping[str, int] | None = None,
        stages: Sequence[str] = STAGES,
        settings: Mapping[str, str | int] | None = None,
    ) -> None:
        self.state, self.bags = folder / "state", folder / "bags"
        self._weights, self._settings = weights, settings or {}
        self._copies = {stage: (copies or {}).get(stage, 1) if stage in stages else 0 for stage in STAGES}
        self._environ = {k: v for k, v in os.environ.items() if not k.startswith("IFMESH")} | {"COLUMNS": "240", "NO_COLOR": "1"}
        self._said = folder / "up.log"
        self._ups: list[Process] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.state.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        for up in self._ups:
            up.kill()
        for up in self._ups:
            Mesh.wait_for(up.buried)
            assert up.popen.stdin is not None
            up.popen.stdin.close()
        shutil.rmtree(sockets.run_dir(self.state), ignore_errors=True)
        if kind is not None:
            self.show()

    @property
    def services(self) -> set[str]:
        """The names of all workers."""
        return {f"{stage}-{copy}" for stage, copies in self._copies.items() for copy in range(copies)}

    @property
    def is_up(self) -> bool:
        return bool(self._ups) and self._ups[-1].popen.poll() is None

    @property
    def process(self) -> Process:
        """`ifmesh up`, the last that was started; its family is whatever is below it now."""
        self._ups[-1].remember()
        return self._ups[-1]

    def up(self) -> None:
        """Start it, and wait until every service is ready."""
        copies = [part for stage, n in self._copies.items() for part in ("--copies", f"{stage}={n}")]
        where = ["--cascade", str(self._weights), "--state", str(self.state), "--keep-bags", str(self.bags)]
        said = [part for key, value in self._settings.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "ifmesh", "up", "--tied", "--listen", "tcp://127.0.0.1:0", *where, *copies, *said]
        with open(self._said, "ab") as log:
            popen = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=self._environ, process_group=0)
        self._ups.append(Process(popen, self._said))
        Mesh.wait_for((self.state / "endpoint.json").exists, self._ups[-1])
        if len(self._ups) == 1:  # the port is kept over restarts
            url = json.loads((self.state / "endpoint.json").read_text())["control"]
            self.client = self._stack.enter_context(Client(url, state=self.state, timeout=LIMIT / 6))
        self.ready()

    def ready(self) -> None:
        """Until every service is ready for work."""
        self.when(lambda books: self.services <= {r.service for r in books.services if r.serves})

    def when(self, holds: Callable[[Books], bool], job: str = "") -> Books:
        """The first books (of one job) of which this holds."""
        end = time.monotonic() + LIMIT
        books: Books | None = None
        while time.monotonic() < end:
            assert self.is_up, f"`ifmesh up` has ended: {self.said[-4000:]}"
            self._ups[-1].remember()
            try:
                books = self.client.status(job)
            except MeshError:
                books = None  # it starts, for the first time or again
            if books is not None and holds(books):
                return books
            select.select([], [], [], 0.05)  # a Poller of nothing would not wait
        raise AssertionError(f"never came true; the last: {books}")

    def ifmesh(self, *arguments: str) -> str:
        """What `ifmesh ...` prints, about this mesh; it has to succeed."""
        command = [sys.executable, "-m", "ifmesh", *arguments, "--state", str(self.state)]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pids(self) -> dict[str, int]:
        """Service to process id, as `ifmesh ps` tells it."""
        return {row["service"]: row["pid"] for row in json.loads(self.ifmesh("ps", "--json"))["services"]}

    def story(self, job: str) -> list[str]:
        """What happened to a job, as `ifmesh show` tells it."""
        told: dict[str, Any] = json.loads(self.ifmesh("show", job, "--json"))
        return [row["what"] for row in told["story"]]

    def log(self, service: str) -> str:
        return self.ifmesh("logs", service, "-n", "1000000")

    @property
    def said(self) -> str:
        """What `ifmesh up` has printed."""
        return self._said.read_text()

    def kept(self, job: str) -> dict[str, bytes]:
        """The bags of a job by the stage that made them, as mesh.keep_bags has them."""
        return {stage: self._bag(job, stage).read_bytes() for stage in STAGES if self._bag(job, stage).exists()}

    def drawn(self, job: str) -> dict[str, torch.Tensor]:
        """What each stage drew, from the bag that it made."""
        made = {name: self._bag(job, stage) for stage, name in DRAWN.items()}
        return {name: load_file(path)[name] for name, path in made.items() if path.exists()}

    def written(self, job: str) -> Fingerprint:
        """By stage, which file its bag is, and of when: a stage that runs again writes another."""
        paths = {stage: self._bag(job, stage) for stage in STAGES}
        return {stage: (path.stat().st_ino, path.stat().st_mtime_ns) for stage, path in paths.items() if path.exists()}

    def _bag(self, job: str, stage: str) -> Path:
        return self.bags / f"{job}.{stage}.safetensors"

    def show(self) -> None:
        """Print the logs: pytest shows them beside a failure."""
        for path in (self._said, *sorted((self.state / "logs").glob("*.log"))):
            print(f"---- {path.name}\n{path.read_text(errors='replace')[-4000:]}")


def reached(job: Job, stage: str, step: int) -> None:
    """Wait until the job has made so many steps of this stage, and is still in it.  The limit is the test's own."""
    for event in job.events():
        if isinstance(event, Progress) and event.stage == stage and event.step >= step:
            assert event.step < event.steps, "too late: give it more steps"
            return
    raise AssertionError(f"{job.id} ended before step {step} of {stage}")
