"""ifmesh: serve cascaded diffusion models, each stage its own process, tensors over ZeroMQ, no request lost.

    from ifmesh import Client

    with Client() as mesh:
        mesh.generate("a large yellow star on a blue background", seed=7).save("star.png")

The layers, each knowing only those above it (a test holds them to it):

  the vocabulary      errors      whose fault it is
                      request     what somebody wants drawn: Request, Settings
                      protocol    every message on the wire, by direction
                      cascade     what flows between the stages, declared once
                      stage       the contract of the code that computes
                      published   the hub's repositories, and what each stage reads of them; devices; demand (what a stage needs of one)
  the minds (pure)    job         the life of a job: one table
                      broker      the coordinator's: who does what, when, and what if it dies; phases: whose weights are in memory
                      keeper      the worker's: tasks, early bags, the outbox, the beat; chores: what it has done
                      caller      the client's: repeats what was not answered
                      roles       who may say what: one table
                      planner     which stage goes where, and what to expect
  codecs              typed       plain data <-> dataclasses, checked
                      wire        message <-> msgpack frame, one union per door
                      bags        named tensors <-> safetensors frame, without a tensor library
                      identity    an invite, a key file <-> who a process is
                      table       the lines of the authorised keys
                      config      ifmesh.toml, IFMESH_* and flags -> frozen Config; with checks, hosts ([hosts.NAME]); shipped: and back
                      formats     kind and size of a picture file, by its first bytes
                      footprint   what the stages of a folder need, by its headers; presets: plans <-> ifmesh.toml
  what a user brings  source      a picture file, from whatever there is
                      embeds      texts, encoded
                      wishes      keyword arguments -> Request and upload
  shells              sockets     the only file with socket options; zap: who may come in; line: a link that comes back; descriptors,
                              memory and meter (who sends without end)
                      authorized  whom the coordinator lets in: the table of keys, and those of the mesh itself
                      credentials who this process is, and where it finds the coordinator
                      gate        the coordinator's: who said this, and may it; trust: the same of a worker
                      journal     requests and endings in SQLite; results on disk; with schema (its tables), shelf (files), disk (one
                                  that fails), retention (what is forgotten), audit and salvage (is it sound, and if not)
                      coordinator Broker behind a ROUTER; with mail (what it says), counter (results, handed out), intake (what comes in)
                      worker      Keeper beside a stage; a parent watches it; lender: who on this host has a device's memory
                      connection  Caller behind a DEALER, in a thread of its own; with parcels (uploads) and a file for each job
                      talk        what to wait for: one story for threads and tasks
                      asker       what both clients ask; with case (one job) and many (map, candidates, as_completed)
                      client      the door to the mesh: Client, Job
                      aclient     the same for asyncio: AsyncClient, AsyncJob
                      image       what comes out: Image, Preview
                      supervisor  `ifmesh up`: starts what an operator would type, and again when it dies
                      kept        what it keeps running; remote: another host, over SSH; boarding and hosted: what happens at the far end
                      toy         stages without models, with the same names and sizes
                      found       the devices of this machine
                      doctor      every hop of a mesh, tried
                      own         a mesh of one's own: `ifmesh up` that ends with its holder; notebook: the same as a client, ifmesh.local;
                                  inline: what is seen below a cell
                      bench       what all of it costs and brings, measured
                      cli, demo   the commands

The services themselves are in ifmesh_services, the only place that imports torch; this half names them by a string.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ifmesh.aclient import AsyncClient, AsyncJob
    from ifmesh.client import Client, Job
    from ifmesh.embeds import Embeds
    from ifmesh.errors import BadRequest, DeadlineExceeded, JobCancelled, JobFailed, Lost, MeshBusy, MeshError, Misconfigured
    from ifmesh.image import Image, Picture, Preview
    from ifmesh.notebook import local
    from ifmesh.request import Request, Settings
    from ifmesh.wishes import Wishes

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BadRequest",
    "Client",
    "DeadlineExceeded",
    "Embeds",
    "Image",
    "Job",
    "JobCancelled",
    "JobFailed",
    "Lost",
    "MeshBusy",
    "MeshError",
    "Misconfigured",
    "Picture",
    "Preview",
    "Request",
    "Settings",
    "Wishes",
    "local",
]

_HOME = {
    **dict.fromkeys(("AsyncClient", "AsyncJob"), "aclient"),
    **dict.fromkeys(("Client", "Job"), "client"),
    "Embeds": "embeds",
    **dict.fromkeys(("Image", "Picture", "Preview"), "image"),
    **dict.fromkeys(("Request", "Settings"), "request"),
    "Wishes": "wishes",
    "local": "notebook",
}


def __getattr__(name: str) -> object:
    """Public names are fetched when first used: a worker or `ifmesh --help` does not pay for the client."""
    if name not in __all__:
        raise AttributeError(f"module 'ifmesh' has no attribute {name!r}")
    value: object = getattr(import_module(f"ifmesh.{_HOME.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
