"""The books, as shown to whoever asks: services, jobs by pages, or one job with its story."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from ifmesh.commands import Closed
from ifmesh.job import Job
from ifmesh.protocol import Books, Inspect, JobRow, Refused, ServiceRow
from ifmesh.roster import Roster, Worker
from ifmesh.waiting import Waiting


def books(
    now: float,
    wish: Inspect,
    jobs: Mapping[str, Job],
    ended: Mapping[str, Closed],
    roster: Roster,
    queues: Mapping[str, Waiting],
    page: int,
) -> Books | Refused:
    """Answer an Inspect.  page: rows of one answer."""
    workers = sorted(roster.lives.values(), key=lambda w: (list(queues).index(w.stage), w.name))
    pages = max(1, -(-max(len(jobs), len(workers)) // page))
    start = min(max(0, wish.page), pages) * page  # a page beyond the last is empty
    services = tuple(_service(now, w, roster) for w in workers[start : start + page])
    queued = {stage: len(queue) for stage, queue in queues.items()}
    missing = tuple(stage for stage in queues if not roster.staffed(stage))
    if not wish.job:
        rows = tuple(_row(now, j, roster) for j in islice(jobs.values(), start, start + page))
        return Books(wish.page, pages, services, rows, queued, missing)
    if (job := jobs.get(wish.job)) is not None:
        runs = tuple(job.runs[i] for i in sorted(job.runs))
        return Books(0, 1, services, (_row(now, job, roster),), queued, missing, tuple(job.story), runs)
    if (closed := ended.get(wish.job)) is not None:
        state = type(closed.ending).__name__.lower()
        age = closed.story[-1][0] if closed.story else 0.0
        row = JobRow(wish.job, state, closed.runs[-1].stage if closed.runs else "", 0, 0, "", age, _short(closed.request.prompt))
        return Books(0, 1, services, (row,), queued, missing, closed.story, closed.runs, state)
    return Refused(wish.job, "unknown", "no such job")


def _service(now: float, w: Worker, roster: Roster) -> ServiceRow:
    state = "aside" if w.name in roster.aside else "busy" if w.state == "ready" and w.tasks else w.state
    h = w.hello
    held = len(w.tasks), len(w.outputs), w.done
    return ServiceRow(h.name, h.stage, h.pid, h.host, h.device, state, *held, now - w.seen, h.numeric, w.slots, h.needs)


def _row(now: float, job: Job, roster: Roster) -> JobRow:
    worker = roster.lives.get(job.life)
    name = worker.name if worker else ""
    return JobRow(job.id, job.state.value, job.at, job.step, job.steps, name, now - job.accepted, _short(job.request.prompt))


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= 60 else prompt[:57] + "..."
