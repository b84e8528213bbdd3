"""`ifmesh up` only types for you: it starts the very commands that an operator would, watches them and starts them again.

One thread, one loop: signals, endings (pidfd) and log lines are file descriptors.  Each child has a process group of its own, so that a
terminal's Ctrl-C reaches the supervisor alone, and a pipe for stdin that ends with the supervisor, however it ends: with ``--tied`` a
child ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO

from ifmesh import exits, lease
from ifmesh.config import Config
from ifmesh.kept import COORDINATOR, LOADED, REFUSED, Service, services
from ifmesh.renewal import Renewal

__all__ = ["Service", "Supervisor", "python", "services"]

LAST_WORDS = 10.0  # seconds that a worker has between SIGTERM and SIGKILL, once the coordinator has drained it
LOG_BYTES = 32 << 20  # a log that has become larger is put aside as NAME.log.1


def python(*arguments: str) -> list[str]:
    """This ifmesh with these arguments, as a command.  -P: not the modules that happen to lie in the current folder."""
    here = "" in sys.path or str(Path.cwd()) in sys.path
    return [sys.executable, *(() if here else ("-P",)), "-m", "ifmesh", *arguments]


class Supervisor:
    """Keeps the services running until it is told to end.

    say: one line for the operator (service, text).  ready: asks once whether every stage has a ready worker; "" until it is so, then
    the lines to say.  It is called in a thread of its own, twice a second.  program: the ifmesh to start.

    Without a coordinator among them they are for the one elsewhere (mesh.coordinator), and there is nobody to drain them.
    """

    def __init__(
        self,
        config: Config,
        kept: list[Service],
        say: Callable[[str, str], None],
        ready: Callable[[], str],
        program: Callable[..., list[str]] = python,
    ) -> None:
        self.config = config
        self.services = kept
        self.is_ready = False
        self._ready = ""
        self._tell = say
        self._ask_ready = ready
        self._program = program
        self._coordinator = next((service for service in kept if service.name == COORDINATOR), None)
        self._url = "" if self._coordinator else config.mesh.coordinator
        self._renewal = Renewal(config)
        self._signals = 0
        self._forced = False
        self._stop_by: float | None = None  # the phase of the ending that runs ends here; None: no phase yet
        self._phase = "up"  # up, draining, ending, killing
        self._code = 0
        self._selector = selectors.DefaultSelector()
        self._over = threading.Event()

    @property
    def ending(self) -> bool:
        """It has been told to end."""
        return self._signals > 0 or self._phase != "up"

    @property
    def _coordinates(self) -> bool:
        """A coordinator of ours runs."""
        return self._coordinator is not None and self._coordinator.process is not None

    def run(self) -> int:
        """Until SIGINT or SIGTERM, or until the coordinator cannot run at all; the exit code.  Call it in the main thread."""
        hear, wake = os.pipe()
        for end in (hear, wake):
            os.set_blocking(end, False)
        before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._selector.register(hear, selectors.EVENT_READ, lambda: self._woken(hear))
        asking = threading.Thread(target=self._watch_ready, args=(wake,), daemon=True)
        asking.start()
        for service in [self._coordinator] if self._coordinator else self.services:
            service.due = time.monotonic()
        try:
            while self._phase == "up" or any(s.process for s in self.services):
                pause = self._advance(time.monotonic())
                for key, _ in self._selector.select(pause):
                    key.data()
        finally:
            self._over.set()
            self._kill()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            (self.config.mesh.state / "up.json").unlink(missing_ok=True)
            self._selector.close()
            asking.join()  # soon: it asks with a limit
            for end in (hear, wake):
                os.close(end)
            for service in self.services:
                if service.log:
                    service.log.close()
        return 1 if self._forced else self._code

    def _say(self, service: str, text: str) -> None:
        """To the operator.  That nobody reads any more is no reason to end the mesh (rich ends the process on a broken pipe)."""
        with contextlib.suppress(OSError, SystemExit):
            self._tell(service, text)

    # ---- the loop

    def _advance(self, now: float) -> float:
        """Start what is due, go on with the ending; seconds until there is something to do again."""
        if self._signals and self._phase == "up":
            self._begin_end(now)
        if self._signals > 1 and self._phase != "killing":
            self._say("up", "killing what is left")
            self._forced, self._phase = True, "killing"
            self._kill()
        if self._phase in ("draining", "ending") and self._stop_by is not None and now >= self._stop_by:
            self._next_phase(now)
        if self._phase == "draining" and not self._coordinates:
            self._next_phase(now)
        if self._phase in ("up", "draining") and not self._url and self._coordinates:
            self._look_for_endpoint(now)
        if self._phase == "up" and self._url and (due := self._renewal.next(now, self.services)):
            self._renew(*due)
        times = [self._stop_by] if self._stop_by is not None else []
        if self._phase in ("up", "draining"):
            for service in self.services:
                if service.due is not None and (self._url or service is self._coordinator):
                    if service.due <= now:
                        self._start(service, now)
                    else:
                        times.append(service.due)
        if self._coordinates and not self._url:
            times.append(now + 0.05)
        return max(0.0, min([now + 5.0, *times]) - now)

    def _renew(self, service: Service, number: signal.Signals) -> None:
        """Its key has changed: it is to end, and starts again."""
        if number == signal.SIGTERM:
            self._say("up", f"{service.name}: its key has changed: it finishes what runs, and starts again with the new one")
        else:
            why = "its key counts no more, and there is a new one" if service.refused else "it has not ended in time"
            self._say("up", f"{service.name}: {why}: killed")
        self._send(service, number)

    def _look_for_endpoint(self, now: float) -> None:
        """Workers start when the coordinator has bound its socket, and has said where."""
        try:
            said = json.loads((self.config.mesh.state / "endpoint.json").read_text())
        except (OSError, ValueError):
            return
        pid = self._coordinator.pid if self._coordinator else 0
        if isinstance(said, Mapping) and said.get("pid") == pid and isinstance(said.get("control"), str):
            self._url = said["control"]
            for service in self.services:
                if service.process is None and service.due is None:
                    service.due = now
            self._write()

    def _start(self, service: Service, now: float) -> None:
        command = service.command
        if service is not self._coordinator:
            command = (*command, "--coordinator", self._url)
        if service.log is None:
            service.log = self._open_log(service.name)
        self._renewal.started(now, service)
        service.loaded = service.refused = False
        service.process = made = subprocess.Popen(
            self._program(*command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0
        )
        service.started, service.due, service.starts = now, None, service.starts + 1
        assert made.stdout is not None
        os.set_blocking(made.stdout.fileno(), False)
        watched = os.pidfd_open(made.pid)
        lines = Lines(service, made.stdout, self._heard)
        self._selector.register(made.stdout, selectors.EVENT_READ, lambda: lines.read() or self._selector.unregister(lines.pipe))
        self._selector.register(watched, selectors.EVENT_READ, lambda: self._ended(service, made, watched, lines))
        self._say("up", f"{service.name}: pid {made.pid}: ifmesh {' '.join(command)}")
        self._write()

    def _ended(self, service: Service, process: subprocess.Popen[bytes], watched: int, lines: Lines) -> None:
        self._selector.unregister(watched)
        os.close(watched)
        code = process.wait()
        if process.stdin:
            process.stdin.close()
        lines.read()
        if lines.pipe in self._selector.get_map():
            self._selector.unregister(lines.pipe)
        lines.close()
        now = time.monotonic()
        wait = service.died(now, code)
        if self._renewal.asked(service):
            wait, service.due = 0.0, now
        if service is self._coordinator:
            self._url = ""
            if code == exits.CONFIGURATION and service.starts == 1 and self._phase == "up" and not self.is_ready:
                self._code = code
                self._say("up", "the coordinator cannot run: taking down the rest")
                self._begin_end(now)
                return
        missed = service is not self._coordinator and (code != 0 or self._renewal.asked(service))
        wanted = self._phase == "up" or (self._phase == "draining" and missed)
        if wanted:
            when = "again at once" if wait == 0 else f"again in {wait:g} s"
            self._say("up", f"{service.name}: {service.why}; {when}")
        else:
            service.due = None
        self._write()

    # ---- the ending

    def _begin_end(self, now: float) -> None:
        """First the coordinator: it lets the jobs under way finish and tells the workers to go."""
        self._phase, self._stop_by = "draining", now + self.config.mesh.drain + LAST_WORDS
        if self._coordinator and self._coordinator.process:
            self._say("up", f"draining, at most {self.config.mesh.drain:g} s; once more kills")
            self._coordinator.process.send_signal(signal.SIGTERM)
        else:
            self._next_phase(now)
        self._write()

    def _next_phase(self, now: float) -> None:
        if self._phase == "draining" and not self._coordinates:
            self._phase, self._stop_by = "ending", now + LAST_WORDS
            for service in self.services:
                service.due = None
                if service.process and not self._renewal.asked(service):  # a second one would not let it finish
                    service.process.send_signal(signal.SIGTERM)
        else:
            self._phase, self._stop_by = "killing", None
            self._say("up", "not ended in time, killed: " + ", ".join(s.name for s in self.services if s.process))
            self._kill()

    def _kill(self) -> None:
        for service in self.services:
            self._send(service, signal.SIGKILL)

    def _send(self, service: Service, number: signal.Signals) -> None:
        """SIGKILL: to its group, a worker's parent and child; any other to it alone, which passes it on."""
        if service.process and service.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if number == signal.SIGKILL else os.kill)(service.process.pid, number)

    # ---- signals, log lines, what is written down

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1

    def _woken(self, hear: int) -> None:
        """A signal came, or all are ready."""
        with contextlib.suppress(BlockingIOError):
            os.read(hear, 4096)
        if self._ready and not self.is_ready:
            self.is_ready = True
            self._write()
            for line in self._ready.splitlines():
                self._say("up", line)

    def _heard(self, service: Service, line: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk costs log lines, not the mesh
            if service.log and service.log.tell() > LOG_BYTES:
                service.log.close()
                service.log = self._open_log(service.name)
            if service.log:
                service.log.write(line + b"\n")
        service.loaded |= any(word in line for word in LOADED)
        service.refused |= REFUSED in line
        self._say(service.name, line.decode(errors="replace"))

    def _open_log(self, name: str) -> IO[bytes]:
        path = self.config.mesh.state / "logs" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        return open(path, "ab", buffering=0)

    def _watch_ready(self, wake: int) -> None:
        while not self._over.wait(0.5):
            if self._url and (lines := self._ask_ready()):
                self._ready = lines
                with contextlib.suppress(BlockingIOError):
                    os.write(wake, b"r")
                return

    def _write(self) -> None:
        rows = [
            {
                "service": s.name,
                "stage": s.stage,
                "host": s.host,
                "pid": s.pid,
                "state": "running" if s.process else ("starting" if s.starts == 0 else "waiting"),
                "starts": s.starts,
                "why": s.why,
                "code": s.code,
            }
            for s in self.services
        ]
        told = {"pid": os.getpid(), "phase": self._phase, "ready": self.is_ready, "control": self._url, "services": rows}
        with contextlib.suppress(OSError):
            lease.write(self.config.mesh.state, told)


class Lines:
    """Whole lines out of a pipe that does not block.  A line of more than 64 KiB is cut there."""

    def __init__(self, service: Service, pipe: IO[bytes], heard: Callable[[Service, bytes], None]) -> None:
        self.pipe = pipe
        self._service = service
        self._heard = heard
        self._rest = b""

    def read(self) -> bool:
        """Pass on what is there; False: no more will come."""
        while not self.pipe.closed:  # its process may have been seen to end in this very round of the selector
            try:
                some = os.read(self.pipe.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not some:
                return False
            *lines, self._rest = (self._rest + some).split(b"\n")
            for line in lines:
                self._heard(self._service, line)
            if len(self._rest) > 1 << 16:
                self._heard(self._service, self._rest)
                self._rest = b""
        return True

    def close(self) -> None:
        if self._rest:
            self._heard(self._service, self._rest)
        self.pipe.close()
