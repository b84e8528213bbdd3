"""The disk of the simulated coordinator: it survives every crash, and checks what is committed to it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ifmesh.cascade import IF
from ifmesh.commands import Blame, Book, Close, Command, Hold
from ifmesh.protocol import Ended, Failed, Finished, StageRun
from ifmesh.request import Request
from tests.broker.toyland import EMPTY, digest, left, names, published, sha

BEGINS = (": begun on ", ": done on ", "stage_one: adopted: ", "stage_two: adopted: ", "upscaler: adopted: ", "guard: adopted: ")
"""Words of a story from which on a stage has begun."""


@dataclass(slots=True)
class Record:
    """One row of the simulated journal.  accepted: by the wall clock of the world; given_back: blames that were taken back."""

    request: Request
    accepted: float
    ended: float = 0.0
    blame: int = 0
    lives: tuple[str, ...] = ()
    given_back: int = 0
    ending: Ended | None = None
    owner: str = ""
    story: tuple[tuple[float, str], ...] = ()
    runs: tuple[StageRun, ...] = ()


@dataclass(slots=True)
class Disk:
    rows: dict[str, Record] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    brought: dict[str, bytes] = field(default_factory=dict)  # all uploads that ever were on it
    rotten: set[str] = field(default_factory=set)  # those that it has lost
    holds: dict[str, tuple[tuple[str, ...], float]] = field(default_factory=dict)  # of what tensors, and until when by the wall clock

    def lose(self, upload: str) -> None:
        del self.uploads[upload]
        self.rotten.add(upload)

    def discard(self, now: float, upload: str) -> None:
        held = 0.0 if upload in self.rotten else self.held(now, upload)  # else somebody may have brought it anew
        assert not held, f"{upload} is discarded, and held for {held:.2f} s more"
        users = [job for job, row in self.rows.items() if row.ending is None and row.request.upload == upload]
        assert not users, f"the upload of {users} is discarded"
        assert upload in self.uploads or upload in self.rotten, "an upload is discarded that was never there"
        self.uploads.pop(upload, None)

    def held(self, now: float, upload: str) -> float:
        """For so many seconds more; 0: it is not."""
        return max(0.0, self.holds[upload][1] - now - 1e-6) if upload in self.holds else 0.0

    def first_bag(self, upload: str) -> bytes | None:
        return self.uploads.get(upload) if upload else EMPTY

    def commit(self, now: float, disturbed: float, roomy: bool, commands: list[Command]) -> None:
        """One transaction for all that a batch wants remembered.  roomy: there is room for all that is to be kept."""
        for command in commands:
            if isinstance(command, Hold):
                self.holds[command.digest] = command.names, now + command.seconds
        for command in commands:
            if isinstance(command, Book):
                assert command.job not in self.rows, f"{command.job} is booked twice"
                here = command.request.upload in (*self.uploads, *self.rotten, "")
                over = any(isinstance(c, Close) and c.job == command.job for c in commands)
                assert here or over, f"{command.job} is booked, and its upload is not here"
                self.rows[command.job] = Record(command.request, now, owner=command.owner)
            elif isinstance(command, Blame):
                assert command.job in self.rows, f"blame for {command.job}, which was never booked"
                row = self.rows[command.job]
                row.given_back += max(0, row.blame - command.count)
                row.blame = command.count
                assert command.life not in row.lives, f"the death of {command.life} is held against {command.job} twice"
                row.lives += (command.life,) if command.life else ()
            elif isinstance(command, Close):
                row = self.rows[command.job]
                assert row.ending is None, f"{command.job} is closed twice: {row.ending}, then {command.ending}"
                row.ended = now
                row.ending, row.story, row.runs = command.ending, command.story, command.runs
                self._check_deadlines(now, disturbed, row)
                if isinstance(command.ending, Finished):
                    frame = self.results.get(command.job)
                    assert frame is not None, f"{command.job} is finished, but nothing is on disk"
                    assert digest(frame) == command.ending.digest, f"{command.job}: digest of something else"
                    first = self.brought[row.request.upload] if row.request.upload else EMPTY
                    assert frame == published(row.request, first), f"{command.job}: wrong bytes were published"
                    self._check_kept(now, command.job, row.request, command.ending.kept, left(row.request, first), roomy)

    def _check_deadlines(self, now: float, disturbed: float, row: Record) -> None:
        """Of the three only one that has passed ends a job, and no job finishes after one of them.  The story says when it began."""
        asked, told = row.request, list(row.story)
        starts = [n for n, (_, text) in enumerate(told) if text == "the coordinator was started again"]
        first = f"{IF.route(asked)[0]}: adopted: "  # it may have been waiting for its bag
        since = told[starts[-1] if starts else 0 :]
        begun = [at for at, text in since if not text.startswith(first) and any(words in text for words in BEGINS)]
        passes = {"deadline": row.accepted + asked.deadline} if asked.deadline else {}
        if asked.deadline_queued and not begun:
            passes["deadline_queued"] = row.accepted + asked.deadline_queued
        if asked.deadline_running and begun:
            passes["deadline_running"] = row.accepted + begun[0] + asked.deadline_running
        if isinstance(row.ending, Finished):
            late = {name: now - at for name, at in passes.items() if now > max(at + 0.01, disturbed)}
            assert not late, f"finished, and too late: {late}; {told}"
        elif isinstance(row.ending, Failed) and row.ending.cause == "expired":
            passed = [name for name, at in passes.items() if f"its {name} of " in row.ending.error and now >= at - 0.01]
            assert passed, f"{row.ending} of {passes} at {now:.2f}; {told}"

    def _check_kept(self, now: float, job: str, request: Request, kept: str, right: bytes, roomy: bool) -> None:
        """What a Finished promises."""
        assert kept in ((sha(right),) if roomy else (sha(right), "")) if right else not kept, f"{job}: kept {kept!r}"
        if kept:
            assert self.brought[kept] == right, f"{job}: the wrong bytes are kept"
            assert kept in self.uploads or kept in self.rotten, f"{job}: what it has kept is not on disk"
            assert self.holds[kept][0] == names(right), f"{job}: others are held than were kept"
            assert self.held(now, kept) >= request.keep - 1e-3, f"{job}: it is not kept for {request.keep} s"
