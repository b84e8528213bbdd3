"""Configuration: read once, strictly; an error names the key and the nearest valid one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ifmesh.config import KEYS, Config, locate, read, setting
from ifmesh.errors import Misconfigured
from ifmesh.request import STAGES

ROOT = Path(__file__).parents[2]
Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ifmesh.toml of somebody else's lies here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return written


def plain(path: Path | None = None, environ: dict[str, str] | None = None, **overrides: object) -> Config:
    return read(path, {"HOME": "/users/anna"} | (environ or {}), {key.replace("__", "."): value for key, value in overrides.items()})


def test_the_defaults_shown_are_the_defaults() -> None:
    shown = ROOT / "deploy" / "ifmesh.toml"
    assert plain(shown) == plain()
    tables = tomllib.loads(shown.read_text())
    flat = {f"{s}.{k}" for s in ("mesh", "cascade") for k in tables[s]} | {
        f"services.{s}.{k}" for s in STAGES for k in tables["services"][s]
    }
    assert flat == set(KEYS)
    assert list(tables["services"]) == list(STAGES)


def test_weaker_and_stronger(write: Write) -> None:
    path = write('[mesh]\nlisten = "tcp://127.0.0.1:1"\nmax_jobs = 5\n[services.stage_one]\ncopies = 2\nthreads = 3\n')
    environ = {"IFMESH_MESH_MAX_JOBS": "6", "IFMESH_SERVICES_STAGE_ONE_COPIES": "4"}
    config = plain(path, environ, services__stage_one__copies="7")
    assert config.mesh.listen == "tcp://127.0.0.1:1"
    assert config.mesh.max_jobs == 6
    assert config.services["stage_one"].copies == 7
    assert config.services["stage_one"].threads == 3
    assert config.services["stage_two"].copies == 1


def test_short_forms_are_weaker_than_long_ones() -> None:
    environ = {"IFMESH_COORDINATOR": "tcp://127.0.0.1:1", "IFMESH_STATE": "here", "IFMESH_CASCADE": "if-l", "IFMESH_IDENTITY": "anna.key"}
    config = plain(None, environ)
    assert config.mesh.identity == Path("anna.key").absolute()
    assert (config.mesh.coordinator, config.mesh.state, config.cascade.path) == ("tcp://127.0.0.1:1", Path("here").absolute(), "if-l")
    assert plain(None, environ | {"IFMESH_CASCADE_PATH": "if-m"}).cascade.path == "if-m"


def test_the_state_folder_follows_the_desktop_rules() -> None:
    assert plain().mesh.state == Path("/users/anna/.local/state/ifmesh")
    assert plain(None, {"XDG_STATE_HOME": "/var/x"}).mesh.state == Path("/var/x/ifmesh")
    assert plain(None, {"XDG_STATE_HOME": "relative"}).mesh.state == Path("/users/anna/.local/state/ifmesh")  # the rules: ignore it


def test_the_file_in_the_current_folder_is_read(tmp_path: Path) -> None:
    assert locate(None, {}) is None
    (tmp_path / "ifmesh.toml").write_text("[mesh]\nmax_jobs = 9\n")
    assert plain().mesh.max_jobs == 9
    (tmp_path / "other.toml").write_text("[mesh]\nmax_jobs = 8\n")
    assert plain(None, {"IFMESH_CONFIG": "other.toml"}).mesh.max_jobs == 8
    assert plain(Path("other.toml")).mesh.max_jobs == 8


def test_options_keep_their_types(write: Write) -> None:
    path = write('[services.stage_one.options]\nsteps = 3\nname = "x"\n')
    environ = {"IFMESH_SERVICES_STAGE_ONE_OPTIONS_STEP_MS": "2.5"}
    config = plain(path, environ, services__stage_one__options__deep="true", services__stage_one__options__word="a b")
    assert config.services["stage_one"].options == {"steps": 3, "name": "x", "step_ms": 2.5, "deep": True, "word": "a b"}


def test_a_table_of_options_is_not_said_at_once() -> None:
    with pytest.raises(Misconfigured, match=r"options: a table: set its keys one by one, as in --set services.guard.options.slots=2"):
        plain(services__guard__options="{slots = 2}")


WRONG = {
    "[mesh]\nlitsen = 'x'": ("mesh.litsen", "did you mean", "listen"),
    "[mehs]\nlisten = 'x'": ("mehs", "did you mean mesh"),
    "[services.stage_on]\ncopies = 1": ("services.stage_on", "did you mean services.stage_one"),
    "[services.stage_one]\ncopis = 1": ("services.stage_one.copis", "copies"),
    "mesh = 3": ("mesh", "a table"),
    "services = 3": ("services", "no such section"),
    "[mesh]\nmax_jobs = 'many'": ("mesh.max_jobs", "many"),
    "[mesh]\nmax_jobs = 0": ("mesh.max_jobs", "from 1"),
    "[mesh]\ndrain = nan": ("mesh.drain", "finite"),
    "[mesh]\nstate = 3": ("mesh.state", "folder"),
    "[mesh]\ncurve = false\nlisten = 'tcp://0.0.0.0:7640'": ("mesh.listen", "loopback"),
    "[mesh]\nlisten = 'tcp://127.0.0.1:port'": ("mesh.listen", "tcp://HOST:PORT"),
    "[mesh]\nlisten = 'http://127.0.0.1:7640'": ("mesh.listen", "tcp://HOST:PORT"),
    "[mesh]\ncoordinator = 'somewhere'": ("mesh.coordinator", "tcp://HOST:PORT"),
    "[services.guard]\ndevice = 'gpu'": ("services.guard.device", "cuda:N"),
    "[services.guard]\ndevice = 'cpu:1'": ("services.guard.device", "cuda:N"),
    "[services.guard]\ndtype = 'fp61'": ("services.guard.dtype", "did you mean fp16"),
    "[services.guard]\ncopies = true": ("services.guard.copies", "True"),
    "[services.guard]\ncopies = -1": ("services.guard.copies", "from 0"),
    "[services.guard]\nthreads = 0": ("services.guard.threads", "from 1"),
    "[services.guard]\noutbox_bytes = 1": ("services.guard.outbox_bytes", "from 16777216"),
    "[services.guard]\nrun = 'no class'": ("services.guard.run", "module:Class"),
    "[services.guard]\noptions = {a = [1]}": ("services.guard.options", "[1]"),
    "[cascade]\ntoy = 'yes'": ("cascade.toy", "yes"),
    "[mesh\n": ("mine.toml", "not TOML"),
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_an_error_that_says_what_to_do(write: Write, text: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        plain(write(text))
    for part in WRONG[text]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("IFMESH_MESH_LITSEN", "x", "did you mean IFMESH_MESH_LISTEN"),
        ("IFMESH_COORDINATER", "x", "did you mean IFMESH_COORDINATOR"),
        ("IFMESH_SERVICES_STAGE_ONE_COPIES", "two", "IFMESH_SERVICES_STAGE_ONE_COPIES: 'two': a whole number"),
        ("IFMESH_MESH_DRAIN", "long", "a number"),
        ("IFMESH_CASCADE_TOY", "perhaps", "true or false"),
    ],
)
def test_a_wrong_variable_is_an_error(name: str, value: str, said: str) -> None:
    with pytest.raises(Misconfigured, match=said) as caught:
        plain(None, {name: value})
    assert name in str(caught.value)


def test_a_wrong_flag_is_an_error() -> None:
    with pytest.raises(Misconfigured, match=r"--set mesh.litsen: no such key; did you mean mesh\.listen"):
        plain(mesh__litsen="x")
    with pytest.raises(Misconfigured, match="write KEY=VALUE"):
        setting("mesh.listen")
    assert setting("services.guard.options.a = b=c") == ("services.guard.options.a", "b=c")


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(Misconfigured, match=r"gone\.toml: No such file"):
        plain(Path("gone.toml"))


def test_stages_are_named_by_a_string() -> None:
    assert plain().factory("stage_one") == "ifmesh_services.stage_one:StageOne"
    assert plain(cascade__toy=True).factory("upscaler") == "ifmesh.toy:Upscaler"
    assert plain(cascade__toy="true", services__guard__run="mine:Guard").factory("guard") == "mine:Guard"


def test_where_the_coordinator_is(tmp_path: Path) -> None:
    config = plain(mesh__state=tmp_path, mesh__listen="tcp://127.0.0.1:0")
    assert config.control() == "tcp://127.0.0.1:0"
    for torn in ("", "{", "[]", '{"control": 3}', '{"pid": 1}'):
        (tmp_path / "endpoint.json").write_text(torn)
        assert config.control() == "tcp://127.0.0.1:0"
    (tmp_path / "endpoint.json").write_text('{"control": "tcp://127.0.0.1:7777", "pid": 1}')
    assert config.control() == "tcp://127.0.0.1:7777"
    assert plain(mesh__state=tmp_path, mesh__coordinator="tcp://10.0.0.1:1").control() == "tcp://10.0.0.1:1"


def test_weights_are_looked_for_only_where_they_are_needed(tmp_path: Path) -> None:
    for path in ("", "if-xl", "if-l", "if-m"):
        plain(cascade__path=path).check_weights()
    config = plain(cascade__path=str(tmp_path / "if-xk"))
    with pytest.raises(Misconfigured, match=r"cascade\.path: .*did you mean if-xl"):
        config.check_weights()
    plain(cascade__path="nowhere", cascade__toy=True).check_weights()
    (tmp_path / "cascade.json").write_text("{}")
    plain(cascade__path=str(tmp_path)).check_weights()


@pytest.mark.parametrize(
    ("said", "bytes_"), [("14GB", 14_000_000_000), ("13.5GiB", int(13.5 * 2**30)), ("900 MB", 900_000_000), (4096, 4096), ("1k", 1000)]
)
def test_sizes_are_said_as_people_say_them(write: Write, said: str | int, bytes_: int) -> None:
    assert plain(write(f'[memory]\n"cuda:0" = {said!r}\n')).memory == {"cuda:0": bytes_}
    assert plain(None, None, **{"memory.cuda:0": str(said)}).memory == {"cuda:0": bytes_}
    assert plain(None, None, services__encoder__needs=str(said)).services["encoder"].needed == bytes_


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[memory]\ncpu = "much"\n', ("memory.cpu: 'much'", "14GB")),
        ("[memory]\ncpu = true\n", ("memory.cpu: True",)),
        ("[memory]\ncpu = 0\n", ("memory.cpu: 0",)),
        ('[memory]\ncuda = "14GB"\n', ("memory.cuda", '"cuda:0" = "14GB"')),
        ('[memory]\ngpu = "14GB"\n', ("memory.gpu", "cpu or cuda:N")),
        ("memory = 3\n", ("memory: 3", "a table")),
        ('[services.guard]\nresidency = "swapped"\n', ("services.guard.residency", "did you mean swap?")),
        ('[services.guard]\nneeds = "-1GB"\n', ("services.guard.needs: '-1GB'",)),
        ("[mesh]\nmax_phase = 0\n", ("mesh.max_phase: 0",)),
    ],
)
def test_what_is_wrong_about_memory_is_named(write: Write, text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(Misconfigured) as error:
        plain(write(text))
    for word in words:
        assert word in str(error.value)
