"""A stand-in coordinator: real sockets and the real codecs, answers as the test wants them.

Its keys lie beside the one that `tests/unit/conftest.py` gives every client.
"""

from __future__ import annotations

import hashlib
import io
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import zmq
from PIL import Image as pillow

from ifmesh import bags, identity, sockets, wire
from ifmesh.cascade import DRAWN, IF, PICTURE
from ifmesh.protocol import (
    Accepted,
    Books,
    Cancel,
    Cancelled,
    ClientMessage,
    Endpoint,
    Fetch,
    Finished,
    Hi,
    Inspect,
    JobRow,
    Preview,
    Probe,
    Probed,
    Progress,
    Refused,
    Result,
    StageRun,
    Started,
    Submit,
    ToClient,
    Wanted,
    Watch,
    Welcome,
)
from ifmesh.request import Request
from ifmesh.stage import Tensor
from ifmesh.zap import Zap

STAGES = ("encoder", "stage_one", "stage_two", "upscaler", "guard")
BOOKS = Books(0, 1, (), (), {"encoder": 0}, ("guard",))
RUN = StageRun("stage_one", "stage_one-0", 1, "cpu", 0.1, 2.0, 27, 10, 20, 1)


def png(pixels: int, height: int = 0) -> bytes:
    file = io.BytesIO()
    pillow.new("RGB", (pixels, height or pixels), (pixels % 256, 90, 30)).save(file, "PNG")
    return file.getvalue()


def flat(data: bytes) -> Tensor:
    return Tensor("U8", (len(data),), data)


SIDES = {"stage_one": 64, "stage_two": 256, "upscaler": 1024}


def pictures(*stages: str) -> bytes:
    """The frame of a result."""
    return bags.encode({**{PICTURE[stage].name: flat(png(SIDES[stage])) for stage in stages}, "flagged": flat(b"\0")})


FRAME = pictures(*SIDES)
EMBEDS = Tensor("F16", (2, 77, 8), bytes(2 * 77 * 8 * 2))
ENCODED = bags.encode({"embeds": EMBEDS, "tokens": Tensor("I64", (2, 3), b"".join(n.to_bytes(8, "little") for n in (1, 1, 0, 3, 3, 0)))})


def shown(stage: str, pixels: int) -> bytes:
    """The frame of a preview."""
    return bags.encode({f"picture_{stage}": flat(png(pixels)), "flagged": flat(b"\0")})


SHOWN = {"stage_one": shown("stage_one", 64), "stage_two": shown("stage_two", 256)}


def frame(request: Request | None) -> bytes:
    """What is published: all three pictures, but where a way is gone in two parts."""
    if request is not None and request.task == "encode":
        return ENCODED
    halved = request is not None and (request.keep or request.first_stage in DRAWN)
    return pictures(*(stage for stage in IF.route(request) if stage in DRAWN)) if request is not None and halved else FRAME


def kept(job: str) -> str:
    """The SHA-256 of what is kept of it."""
    return digest(job.encode())


def digest(of: bytes) -> str:
    return hashlib.sha256(of).hexdigest()


DIGEST = digest(FRAME)


def finished(job: str, seed: int, of: bytes = FRAME) -> Finished:
    return Finished(job, digest(of), len(of), seed, True, (RUN,))


Rule = Callable[[ClientMessage], list[ToClient] | None]


class StandIn:
    """Answers from a script: the first rule that says anything, else as a coordinator whose every job finishes at once.

    A Submit whose upload it has not is Wanted; when the upload comes, it counts.  pushed: how often each upload came.  What a request
    wants kept counts as an upload, too, until a test takes it away.
    """

    def __init__(self, *rules: Rule, url: str = "tcp://127.0.0.1:0", epoch: int = 1) -> None:
        self.rules = list(rules)
        self.epoch = epoch
        self.heard: list[ClientMessage] = []
        self.raw: list[list[bytes]] = []  # sent instead of the next answers
        self.bare = 0  # so many results go without their frame
        self.requests: dict[str, Request] = {}
        self.pushed: Counter[str] = Counter()
        self.uploads: dict[str, bytes] = {}
        self._waiting: list[tuple[bytes, Submit]] = []
        self._ctx: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        client = Path(os.environ["IFMESH_MESH_IDENTITY"])
        keys, known = identity.read(client.parent / "coordinator.key").keys, identity.read(client).keys.public
        Zap(self._ctx, lambda public: public == known).start()
        self._router, self.url = sockets.control_server(self._ctx, url, keys)
        self._pull, (inlet,) = sockets.inlet(self._ctx, ["tcp://127.0.0.1:0"], keys)
        self.inlet = (Endpoint("", inlet, keys.public),)
        self._end, self._stop = self._ctx.socket(zmq.PAIR), self._ctx.socket(zmq.PAIR)
        self._end.bind("inproc://end")
        self._stop.connect("inproc://end")
        self._thread = threading.Thread(target=self._serve, daemon=True)  # a test that fails may leave it running
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._stop.send(b"")
            self._thread.join()
            for socket in (self._router, self._pull, self._end, self._stop):
                socket.close(0)
            self._ctx.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        for socket in (self._router, self._pull, self._end):
            poller.register(socket, zmq.POLLIN)
        while self._end not in (ready := dict(poller.poll())):
            if self._pull in ready:
                self._take(*self._pull.recv_multipart())
            if self._router in ready:
                peer, data = self._router.recv_multipart()
                message = wire.TO_COORDINATOR.decode(data)
                assert isinstance(message, ClientMessage)
                self.heard.append(message)
                if isinstance(message, Submit) and message.request.upload:
                    self._waiting.append((peer, message))
                self._send(peer, self._answers(message))

    def _take(self, first: bytes, data: bytes) -> None:
        header = wire.HEADER.decode(first)
        assert (header.kind, header.digest) == ("upload", bags.digest(data))
        assert header.job == digest(data)
        self.pushed[header.job] += 1
        self.uploads[header.job] = data
        for peer, submit in self._waiting:
            if submit.request.upload == header.job and submit.job not in self.requests:
                self._send(peer, self._answers(submit))

    def _send(self, peer: bytes, answers: list[list[bytes]]) -> None:
        for answer in answers:
            with suppress(zmq.ZMQError):  # the client is gone
                self._router.send_multipart([peer, *answer])

    def _answers(self, message: ClientMessage) -> list[list[bytes]]:
        if self.raw:
            answers, self.raw = self.raw, []
            return answers
        for rule in self.rules:
            if (said := rule(message)) is not None:
                return [self._parts(m) for m in said]
        match message:
            case Hi():
                plain: list[ToClient] = [Welcome(STAGES, self.epoch, 2000, self.inlet)]
            case Submit(job, request) if request.upload and request.upload not in self.uploads:
                plain = [Wanted(job, request.upload)]
            case Submit(job, request, previews):
                self.requests[job] = request
                early: list[ToClient] = [Preview(job, "stage_one"), Preview(job, "stage_two")] if previews else []
                first: list[ToClient] = [Accepted(job), Started(job, "encoder", "w"), Progress(job, "encoder", 1, 1)]
                ending = finished(job, request.seed, frame(request))
                if request.keep:
                    self.uploads[kept(job)] = b""
                    ending = replace(ending, kept=kept(job))
                plain = [*first, *early, ending]
            case Watch(job) if job in self.requests:
                plain = [finished(job, self.requests[job].seed, frame(self.requests[job]))]
            case Fetch(job) if job in self.requests:
                plain = [Result(job, digest(frame(self.requests[job])), self.requests[job])]
            case Inspect(_, ""):
                plain = [BOOKS]
            case Inspect(_, job) if job in self.requests:
                row = JobRow(job, "finished", "guard", 1, 1, "w", 1.0, self.requests[job].prompt)
                plain = [replace(BOOKS, jobs=(row,), story=((0.0, "accepted"),))]
            case Cancel(job) if job in self.requests:
                plain = [Cancelled(job)]
            case Probe(number):
                plain = [Probed(number, True)]
            case _:
                plain = [Refused(message.job, "unknown", "no such job")]
        return [self._parts(m) for m in plain]

    def _parts(self, message: ToClient) -> list[bytes]:
        """As it travels: some have a frame behind them."""
        more: list[bytes] = []
        if isinstance(message, Result) and self.bare:
            self.bare -= 1
        elif isinstance(message, Result):
            more = [frame(message.request)]
        elif isinstance(message, Preview):
            more = [SHOWN[message.stage]]
        return [wire.TO_CLIENT.encode(message), *more]


def named(answer: ToClient, job: str) -> ToClient:
    return answer if isinstance(answer, Welcome | Books | Probed) or answer.job != "?" else replace(answer, job=job)


def on(kind: type[ClientMessage], *answers: ToClient, times: int = 10_000) -> Rule:
    """Answer this kind of message so, so often.  "?" in a job id is the job asked for."""
    left = [times]

    def rule(message: ClientMessage) -> list[ToClient] | None:
        if not isinstance(message, kind) or not left[0]:
            return None
        left[0] -= 1
        return [named(a, getattr(message, "job", "")) for a in answers]

    return rule


def heard(mesh: StandIn, kind: type[ClientMessage]) -> list[ClientMessage]:
    return [m for m in mesh.heard if isinstance(m, kind)]


def until(holds: Callable[[], bool], limit: float = 30.0) -> None:
    """Until it holds; for what has no event of its own to wait for: threads and descriptors that the system takes back."""
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end, "never came true"
        select.select([], [], [], 0.005)  # a Poller of nothing would not wait
