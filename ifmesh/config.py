"""Configuration, read once, strictly, into frozen values: defaults < ifmesh.toml < IFMESH_* < flags.

Nothing else in ifmesh looks at the environment.  A typo is an error that names the key and the nearest valid one.  Every key and
its default is shown and explained in ``deploy/ifmesh.toml``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from ifmesh import checks, hosts, identity
from ifmesh.checks import LOOPBACK
from ifmesh.errors import Misconfigured
from ifmesh.hosts import Host
from ifmesh.identity import Identity
from ifmesh.request import STAGES

FILE = "ifmesh.toml"  # read when it lies in the current folder and no other is named
PUBLISHED = ("if-xl", "if-l", "if-m")
DURABILITY = ("full", "lazy", "none")
DTYPES = ("", "fp32", "bf16", "fp16")
RESIDENCY = ("resident", "swap")
CLASSES = {"encoder": "Encoder", "stage_one": "StageOne", "stage_two": "StageTwo", "upscaler": "Upscaler", "guard": "Guard"}

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Mesh:
    """state: folder of journal, results and logs, absolute.  listen: control address of the coordinator; port 0 is any free one.

    coordinator: where workers and clients find it; "": as ``endpoint.json`` in the state folder says.  keep_bags: workers write a
    copy of each finished bag into this folder.  max_jobs: unfinished ones.  drain: seconds that jobs under way get at the end.

    curve: every socket is encrypted, and opens to known keys alone. identity: file that says who this process is (`ifmesh invite`); None:
    the mesh's own, in the state folder. address: of this host, on which the others reach its processes; "": loopback, or the one by which
    this host reaches a coordinator elsewhere. silence, grace, transfer: seconds, see `commands.Policy`. slowest_link: bytes a second; a bag
    gets so much more time as it may take at this rate. durability: "full" (on disk before
    it is told), "lazy" (at most a second later) or "none" (in memory). keep_results: seconds after its end that a job and its result are
    kept; results_bytes: all results together, the oldest go first; with "none" at most 1 GiB. reserve_bytes: with less free space on the
    disk nothing new is taken.
    checkpoint_bytes: of memory for checkpoints.  max_phase: seconds, see `commands.Policy`.
    """

    state: Path = Path()
    listen: str = "tcp://127.0.0.1:7640"
    coordinator: str = ""
    keep_bags: Path | None = None
    max_jobs: int = 1000
    drain: float = 90.0
    curve: bool = True
    identity: Path | None = None
    address: str = ""
    silence: float = 5.0
    grace: float = 5.0
    transfer: float = 5.0
    slowest_link: float = 200e3
    durability: str = "full"
    keep_results: float = 86400.0
    results_bytes: int = 20 << 30
    reserve_bytes: int = 1 << 30
    checkpoint_bytes: int = 256 << 20
    max_phase: float = 60.0


@dataclass(frozen=True, slots=True)
class Weights:
    """path: a folder with cascade.json (absolute), "if-xl", "if-l", "if-m", or "" for the built-in one.  toy: stages without torch."""

    path: str = ""
    toy: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """One stage as a service.  run: "module:Class" of the Stage, "": ifmesh's own.  copies: processes that `ifmesh up` starts.

    device: "auto" (the first CUDA card, else the CPU; decided in the worker), "cpu", "cuda:0" ...  dtype: "fp32", "bf16", "fp16",
    "": the device's default.  threads: of torch, on the CPU.  patience: seconds without a step after which the worker is stalled, 0:
    the cascade's own.  outbox_bytes: of finished bags held for others; beyond it the worker takes no new work.  checkpoint_steps: each
    so many steps what is needed to go on from there is put in safety, so that a death costs no more; 0: never.  residency: "resident", or
    "swap": in memory by turns with all others in swap on its device.  needs: what it takes of the memory then, "": what its files say of
    its weights.  options: the stage's own.
    """

    run: str = ""
    copies: int = 1
    device: str = "auto"
    dtype: str = ""
    threads: int = 1
    patience: float = 0.0
    outbox_bytes: int = 1 << 30
    checkpoint_steps: int = 0
    residency: str = "resident"
    needs: str = ""
    options: dict[str, Scalar] = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """`needs` in bytes; 0: nothing is said."""
        return checks.size("needs", self.needs) if self.needs else 0


@dataclass(frozen=True, slots=True)
class Config:
    """All that a process is told.  services: by stage name, each stage of the cascade.  hosts: by name; this one is not among them.

    memory: by device, bytes that all in swap on it may take together.
    """

    mesh: Mesh
    cascade: Weights
    services: Mapping[str, Service]
    hosts: Mapping[str, Host] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)

    def copies(self, stage: str, host: str = "") -> int:
        """How many workers of the stage this host is to have: one of `hosts`, or the one that is none of them."""
        return self.hosts[host].copies.get(stage, 0) if host in self.hosts else self.services[stage].copies

    def factory(self, stage: str) -> str:
        """ "module:Class" of the stage."""
        return self.services[stage].run or (
            f"ifmesh.toy:{CLASSES[stage]}" if self.cascade.toy else f"ifmesh_services.{stage}:{CLASSES[stage]}"
        )

    def invited(self) -> Path | None:
        """The invite with which this process comes from outside: the configured one, else that of `ifmesh join`; None: there is none."""
        joined = self.mesh.state / "keys" / identity.JOINED
        return self.mesh.identity or (joined if joined.exists() else None)

    def identity_file(self, role: str) -> Path:
        """Where the identity of a process of this role lies: mesh.identity, else the one of the state folder.  It may not be there yet.

        Of a coordinator always the state folder's.  Of a worker its stage's, which the coordinator makes.  Of all others that of the mesh
        that was joined, else the operator's, which the coordinator makes.
        """
        keys = self.mesh.state / "keys"
        if role == identity.COORDINATOR:
            return keys / "coordinator.key"
        if role.startswith("worker:"):
            return self.mesh.identity or keys / f"{role.replace(':', '-')}.key"
        return self.invited() or keys / "operator.key"

    def identity(self, role: str) -> Identity:
        """Who this process is.  Misconfigured: there is no file, or no good one, or it is that of another role."""
        path = self.identity_file(role)
        if not path.exists():
            remedy = "the coordinator makes it (`ifmesh up`); for a mesh elsewhere: `ifmesh join`, or --identity FILE"
            raise Misconfigured(f"{path}: no such file: {remedy}")
        found = identity.read(path)
        alone = [r for r in (role, found.role) if r == identity.COORDINATOR or r.startswith("worker:")]
        if alone and found.role != role:
            raise Misconfigured(f"{path}: this is the identity of a {found.role}, not of a {role}: ask for one by `ifmesh invite`")
        return found

    def control(self) -> str:
        """The coordinator's control URL: as configured, else as the invite says, else as it wrote it down itself, else as it would listen.

        Misconfigured: the invite is damaged.
        """
        if self.mesh.coordinator:
            return self.mesh.coordinator
        if self.mesh.curve and (invite := self.invited()) is not None and (url := identity.read(invite).coordinator):
            checks.url(str(invite), url, loopback=False)
            return url
        return self.announced() or self.mesh.listen

    def announced(self) -> str:
        """Where the coordinator of this state folder says that it listens; "": none does."""
        try:
            told = json.loads((self.mesh.state / "endpoint.json").read_text())["control"]
        except (OSError, ValueError, LookupError, TypeError):
            return ""
        return told if isinstance(told, str) else ""

    def check_weights(self) -> None:
        """Misconfigured when this machine has no such cascade.  Only those who load weights ask: a client need not have them."""
        path = self.cascade.path
        if path and path not in PUBLISHED and not self.cascade.toy and not (Path(path) / "cascade.json").is_file():
            remedy = f"no folder with a cascade.json; or one of {', '.join(PUBLISHED)}{checks.nearest(Path(path).name, PUBLISHED)}"
            raise Misconfigured(f"cascade.path: {path!r}: {remedy}")


SECTIONS: Mapping[str, type] = {"mesh": Mesh, "cascade": Weights, **{f"services.{stage}": Service for stage in STAGES}}
KEYS = tuple(f"{section}.{key.name}" for section, cls in SECTIONS.items() for key in fields(cls))
SHORT: Mapping[str, str] = {
    "IFMESH_COORDINATOR": "mesh.coordinator",
    "IFMESH_STATE": "mesh.state",
    "IFMESH_IDENTITY": "mesh.identity",
    "IFMESH_CASCADE": "cascade.path",
}
LONG: Mapping[str, str] = {f"IFMESH_{key.upper().replace('.', '_')}": key for key in KEYS if not key.endswith(".options")}
CONFIG = "IFMESH_CONFIG"  # names the file, as --config does


def read(path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """The configuration of this process.

    path: the file; None: $IFMESH_CONFIG, else ./ifmesh.toml if there is one.  overrides: from flags, by dotted key
    ("services.stage_one.copies"); text is understood as the key's type.  Misconfigured: names the key and the nearest valid one.
    """
    tree: dict[str, object] = {}
    if (found := locate(path, environ)) is not None:
        tree = _loaded(found)
    for key, value, said in (*_environment(environ), *((k, v, f"--set {k}") for k, v in overrides.items())):
        _put(tree, key, value, said)
    others = hosts.read(tree.pop("hosts", {}))
    memory = _memory(tree.pop("memory", {}))
    sections = _sections(tree)
    for stage in {stage for host in others.values() for stage, number in host.copies.items() if number}:
        sections[f"services.{stage}"].setdefault("copies", 0)  # it runs there, unless it was said that it runs here, too
    mesh = _mesh(sections["mesh"], environ)
    services = {stage: _service(stage, sections[f"services.{stage}"]) for stage in STAGES}
    return Config(mesh, _weights(sections["cascade"]), services, others, memory)


def locate(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file that `read` reads, absolute; None: none."""
    if path is None and environ.get(CONFIG):
        path = Path(environ[CONFIG])
    if path is None:
        return Path(FILE).absolute() if Path(FILE).is_file() else None
    return path.expanduser().absolute()


def check_hosts(config: Config) -> None:
    """Misconfigured when the other hosts cannot reach the coordinator that this one is about to start."""
    listen = config.mesh.listen
    far = [name for name, host in config.hosts.items() if host.address not in LOOPBACK]
    if far and urlsplit(listen).hostname in LOOPBACK:
        remedy = "an address of this machine that they reach, as in tcp://10.0.0.1:7640, or tcp://0.0.0.0:7640 for all of them"
        raise Misconfigured(f"mesh.listen: {listen!r}: the hosts {', '.join(far)} cannot reach that: {remedy}")


def setting(text: str) -> tuple[str, str]:
    """("mesh.listen", "tcp://...") of "mesh.listen=tcp://..."."""
    key, equals, value = text.partition("=")
    if not equals:
        raise Misconfigured(f"--set {text}: write KEY=VALUE, as in --set services.stage_one.copies=2")
    return key.strip(), value.strip()


def _loaded(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Misconfigured(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{path}: not TOML: {error}") from None


def _environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """(key, value, as said) of each IFMESH_ variable; the short forms first, so that the long ones win."""
    yield from ((key, environ[name], name) for name, key in SHORT.items() if name in environ)
    for name in sorted(environ):
        if not name.startswith("IFMESH_") or name in SHORT or name == CONFIG:
            continue
        options = next((f"services.{s}.options." for s in STAGES if name.startswith(f"IFMESH_SERVICES_{s.upper()}_OPTIONS_")), "")
        if name in LONG:
            yield LONG[name], environ[name], name
        elif options:
            yield options + name[len("IFMESH_") + len(options) :].lower(), environ[name], name
        else:
            raise Misconfigured(f"{name}: no such setting{checks.nearest(name, (*SHORT, *LONG, CONFIG))}")


def _put(tree: dict[str, object], key: str, value: object, said: str) -> None:
    """Set a dotted key; text becomes the type that the key has."""
    section, _, name = key.rpartition(".")
    if key == "hosts" and value == "":
        tree[key] = {}  # `hosts=` takes those of the file away
        return
    if key.startswith("hosts.") and key.count(".") > 1:
        value = hosts.spoken(key.split(".")[2:], value, said)
    elif section == "memory":
        pass  # any device
    elif section.endswith(".options") and section.removesuffix(".options") in SECTIONS:
        value = _guessed(value) if isinstance(value, str) else value
    elif key in KEYS and not key.endswith(".options"):
        kind = type(next(f.default for f in fields(SECTIONS[section]) if f.name == name))
        value = _parsed(value, kind, said) if isinstance(value, str) else value
    elif key in KEYS:
        raise Misconfigured(f"{said}: a table: set its keys one by one, as in --set {key}.slots=2")
    else:
        raise Misconfigured(f"{said}: no such key{checks.nearest(key, KEYS)}")
    for part in section.split("."):
        inner = tree.setdefault(part, {})
        if not isinstance(inner, dict):
            raise Misconfigured(f"{part}: {inner!r}: a table, [{section}]")
        tree = inner
    tree[name] = value


def _parsed(text: str, kind: type, said: str) -> object:
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise Misconfigured(f"{said}: {text!r}: {wanted}") from None


def _guessed(text: str) -> Scalar:
    """The value of an option, whose type nobody declared: as TOML would read it, else the text itself."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _sections(tree: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """The tables by dotted name, all of them; an unknown table is an error."""
    tables: dict[str, object] = {}
    for name, table in tree.items():
        if name == "services" and isinstance(table, dict):
            tables |= {f"services.{stage}": inner for stage, inner in table.items()}
        else:
            tables[name] = table
    found: dict[str, dict[str, object]] = {name: {} for name in SECTIONS}
    for name, table in tables.items():
        if name not in found:
            raise Misconfigured(f"{name}: no such section{checks.nearest(name, SECTIONS)}")
        if not isinstance(table, dict):
            raise Misconfigured(f"{name}: {table!r}: a table, [{name}]")
        found[name] = dict(table)
    return found


def _mesh(table: dict[str, object], environ: Mapping[str, str]) -> Mesh:
    folders = {name: table.pop(name, "") for name in ("state", "keep_bags", "identity")}
    for name, folder in folders.items():
        if not isinstance(folder, str | Path):
            raise Misconfigured(f"mesh.{name}: {folder!r}: the name of a file or folder")
    mesh = checks.built(Mesh, table, "mesh")
    checks.url("mesh.listen", mesh.listen, listens=True, loopback=not mesh.curve)
    if mesh.coordinator:
        checks.url("mesh.coordinator", mesh.coordinator)
    checks.bounded("mesh.max_jobs", mesh.max_jobs, 1, 1_000_000)
    checks.bounded("mesh.drain", mesh.drain, 0, 86400)
    for name in ("silence", "grace", "transfer"):
        checks.bounded(f"mesh.{name}", getattr(mesh, name), 0.1, 3600)
    checks.bounded("mesh.slowest_link", mesh.slowest_link, 1e3, 1e12)
    if mesh.durability not in DURABILITY:
        raise Misconfigured(f"mesh.durability: {mesh.durability!r}: {', '.join(DURABILITY)}{checks.nearest(mesh.durability, DURABILITY)}")
    checks.bounded("mesh.keep_results", mesh.keep_results, 1, 10 * 365 * 86400)
    checks.bounded("mesh.results_bytes", mesh.results_bytes, 1 << 24, 1 << 50)
    checks.bounded("mesh.reserve_bytes", mesh.reserve_bytes, 0, 1 << 50)
    checks.bounded("mesh.checkpoint_bytes", mesh.checkpoint_bytes, 0, 1 << 40)
    checks.bounded("mesh.max_phase", mesh.max_phase, 0.1, 86400)
    state = Path(str(folders["state"])).expanduser().absolute() if folders["state"] else state_folder(environ)
    keep = Path(str(folders["keep_bags"])).expanduser().absolute() if folders["keep_bags"] else None
    identity = Path(str(folders["identity"])).expanduser().absolute() if folders["identity"] else None
    return replace(mesh, state=state, keep_bags=keep, identity=identity)


def _memory(table: object) -> dict[str, int]:
    """[memory]: bytes by device."""
    if not isinstance(table, dict):
        raise Misconfigured(f"memory: {table!r}: a table, [memory]")
    for device in table:
        checks.device(f"memory.{device}", device, named=True)
    return {device: checks.size(f"memory.{device}", said) for device, said in table.items()}


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where a mesh keeps its things unless another folder is named."""
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    above = environ.get("XDG_STATE_HOME", "")
    return (Path(above) if above.startswith("/") else home / ".local" / "state") / "ifmesh"


def _weights(table: dict[str, object]) -> Weights:
    weights = checks.built(Weights, table, "cascade")
    if not weights.path or weights.path in PUBLISHED:
        return weights
    return replace(weights, path=str(Path(weights.path).expanduser().absolute()))


def _service(stage: str, table: dict[str, object]) -> Service:
    where = f"services.{stage}"
    service = checks.built(Service, table, where)
    if service.run and not all(part.replace(".", "_").isidentifier() for part in service.run.partition(":")[::2]):
        raise Misconfigured(f"{where}.run: {service.run!r}: module:Class, as in ifmesh.toy:{CLASSES[stage]}")
    checks.device(f"{where}.device", service.device)
    if service.dtype not in DTYPES:
        near = checks.nearest(service.dtype, DTYPES)
        raise Misconfigured(f"{where}.dtype: {service.dtype!r}: fp32, bf16, fp16, or leave it out{near}")
    if service.residency not in RESIDENCY:
        raise Misconfigured(
            f"{where}.residency: {service.residency!r}: {', '.join(RESIDENCY)}{checks.nearest(service.residency, RESIDENCY)}"
        )
    if service.needs:
        checks.size(f"{where}.needs", service.needs)
    checks.bounded(f"{where}.copies", service.copies, 0, 256)
    checks.bounded(f"{where}.threads", service.threads, 1, 1024)
    checks.bounded(f"{where}.patience", service.patience, 0, 86400)
    checks.bounded(f"{where}.checkpoint_steps", service.checkpoint_steps, 0, 1000)
    checks.bounded(f"{where}.outbox_bytes", service.outbox_bytes, 1 << 24, 1 << 40)  # below 16 MiB three large pictures would not fit
    return service
