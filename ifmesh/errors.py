"""Whose fault it is.

MeshError
  BadRequest        yours: it can never work; names the field, the value and the remedy
  MeshBusy          ours: full now; ask again after ``retry_after`` seconds
  JobFailed         ours: it was tried, and the attempts are used up
  DeadlineExceeded  the job's own deadline passed; it has ended
  JobCancelled      somebody asked for its end
  Lost              the wire: no answer; asking again with the same job id is safe
  Misconfigured     the configuration: names the key and the nearest valid one
"""

from __future__ import annotations


class MeshError(Exception):
    """Everything that ifmesh raises on purpose."""


class BadRequest(MeshError):
    """The request can never work.  field: its dotted name; value: as given; remedy: what would work."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        shown = repr(value)
        super().__init__(f"{field}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {remedy}")


class MeshBusy(MeshError):
    """The mesh is full.  retry_after: seconds."""

    def __init__(self, detail: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"{detail}; try again in {retry_after:g} s")


class JobFailed(MeshError):
    """The job was tried and has failed for good."""

    def __init__(self, job: str, stage: str, worker: str, error: str) -> None:
        self.job, self.stage, self.worker, self.error = job, stage, worker, error
        super().__init__(f"job {job} failed in {stage} on {worker or 'no worker'}: {error}")


class DeadlineExceeded(MeshError):
    """One of the job's deadlines passed before it was finished.  error: which one."""

    def __init__(self, job: str, error: str = "") -> None:
        self.job, self.error = job, error
        super().__init__(f"job {job}: {error or 'its deadline passed'}")


class JobCancelled(MeshError):
    """The job was cancelled."""

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(f"job {job} was cancelled")


class Lost(MeshError):
    """No answer from the mesh.  Asking again with the same job id is safe."""


class Misconfigured(MeshError):
    """A wrong key or value in ifmesh.toml, the environment or the flags."""
