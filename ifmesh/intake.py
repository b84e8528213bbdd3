"""What comes over the coordinator's data links: each delivery that the broker waits for goes to where it belongs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import zmq

from ifmesh import bags
from ifmesh.broker import Broker
from ifmesh.cascade import DRAWN, FLAGGED, IF, PICTURE, kept
from ifmesh.checkpoints import Checkpoints
from ifmesh.commands import Command
from ifmesh.gate import Gate
from ifmesh.inlet import deliveries
from ifmesh.log import Garbage
from ifmesh.meter import Meter
from ifmesh.outlets import Outlets
from ifmesh.protocol import Header, Kind
from ifmesh.wire import Garbled
from ifmesh.writer import Writer

KINDS: tuple[Kind, ...] = ("result", "preview", "upload", "relay", "checkpoint", "probe")


class Intake:
    """show: an early picture, to those who look."""

    def __init__(
        self,
        inlet: zmq.Socket[bytes],
        meter: Meter,
        gate: Gate,
        broker: Broker,
        writer: Writer,
        checkpoints: Checkpoints,
        outlets: Outlets,
        garbage: Garbage,
        show: Callable[[Header, memoryview], None],
    ) -> None:
        self._inlet, self._meter, self._gate, self._broker, self._writer = inlet, meter, gate, broker, writer
        self._checkpoints, self._outlets, self._garbage, self._show = checkpoints, outlets, garbage, show

    @property
    def open(self) -> bool:
        """False: what was taken in is still on its way to disk, and what comes waits in the links."""
        return not self._writer.full

    def unload(self, now: float) -> list[Command]:
        """Some of what has come."""
        commands: list[Command] = []
        if self.open:
            for header, frame in deliveries(self._inlet, KINDS, self._garbage, self._wanted, self._meter.heard):
                commands += self._arrived(now, header, frame)
                if not self.open:
                    break
        return commands

    def _wanted(self, header: Header, user: str) -> bool:
        """Does the broker wait for this delivery?  Garbled: it is not for this key to push it."""
        self._gate.pushed(user, header)
        match header.kind:
            case "result":
                return self._broker.expects(header.job, header.token)
            case "upload":
                return self._broker.wants(header.job)
            case "checkpoint":
                return self._broker.saves(header.job, header.token, header.step)
            case "relay":
                return self._broker.relay(header.job, header.token) is not None
            case "probe":
                return self._broker.probes(header.token)
            case "preview":
                return header.stage in DRAWN and bool(self._broker.lookers(header.job, header.stage, header.token))
            case _:
                return False

    def _arrived(self, now: float, header: Header, frame: memoryview) -> list[Command]:
        """One branch for each kind of delivery."""
        match header.kind:
            case "upload":
                self._writer.upload(header.job, header.digest, frame)  # checked there
            case "relay":
                if (way := self._broker.relay(header.job, header.token)) is not None:
                    self._outlets.send(now, *way, replace(header, kind="bag"), frame)
            case "checkpoint":
                return self._save(now, header, frame)
            case "probe":
                return self._broker.probed(now, header, frame)
            case _:
                self._drawn(now, header, frame)
        return []

    def _save(self, now: float, header: Header, frame: memoryview) -> list[Command]:
        """A checkpoint, which only its stage can read.  Others may have to go for it."""
        gone = self._checkpoints.keep(header, frame)
        commands = self._broker.saved(now, header.job, header.token, header.step)
        for job in gone:
            commands += self._broker.unsaved(now, job)
        return commands

    def _drawn(self, now: float, header: Header, frame: memoryview) -> None:
        """A guard's pictures: a result, or an early one."""
        job = self._broker.jobs[header.job]
        early = header.kind == "preview"
        try:
            bags.decode(frame, (PICTURE[header.stage], FLAGGED) if early else IF.carries(job.request, job.route[-1]))
        except Garbled as error:
            self._garbage.dropped(f"{header.stage}, for job {header.job},", error)
            return
        if early:
            self._show(header, frame)
        else:
            apart = [blob.name for blob in kept(job.request)]  # never a client's: it has not been through the safety checker
            self._writer.result(header.job, header.token, frame, apart, self._broker.keeps(now, job.id, len(frame)))
