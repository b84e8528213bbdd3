"""`ifmesh pull` against a hub on this machine: what it fetches, what it says to each refusal, and what an interruption costs.

The hub's client is the real one; where a pull is killed, it is a process of its own.  Nothing here needs torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.file_download import repo_folder_name
from ifmesh_services import hub as found

from ifmesh import exits
from ifmesh.cli import run
from ifmesh.devices import GB, KNOWN

ONE, TWO, UP = "DeepFloyd/IF-I-M-v1.0", "DeepFloyd/IF-II-M-v1.0", "stabilityai/stable-diffusion-x4-upscaler"
TOKEN = "hf_accepted"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
T5 = ("model.8bit.safetensors", "model.fp16.safetensors", "model.safetensors", "pytorch_model.bin", "model.fp16.index.json")
MODEL = ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
REPOS: dict[str, dict[str, tuple[str, ...]]] = {
    ONE: {
        "text_encoder": T5,
        "tokenizer": ("spiece.model", "tokenizer_config.json"),
        "unet": MODEL,
        "scheduler": ("scheduler_config.json",),
        "feature_extractor": ("preprocessor_config.json",),
        "safety_checker": ("model.safetensors", "model.fp16.safetensors"),
        "watermarker": ("diffusion_pytorch_model.safetensors",),
    },
    TWO: {
        "unet": MODEL,
        "scheduler": ("scheduler_config.json",),
        "image_noising_scheduler": ("scheduler_config.json",),
        "text_encoder": T5,
    },
    UP: {
        "text_encoder": ("model.safetensors", "model.fp16.safetensors"),
        "tokenizer": ("vocab.json", "merges.txt"),
        "unet": MODEL,
        "vae": MODEL,
        "scheduler": ("scheduler_config.json",),
        "low_res_scheduler": ("scheduler_config.json",),
    },
}
SIZE = 300_000  # bytes of a file of weights


@dataclass(slots=True)
class Hub:
    """folder: of the repositories.  home: what this host has of them, its configuration and its state."""

    folder: Path
    home: Path
    url: str
    process: subprocess.Popen[str]
    host: pytest.MonkeyPatch
    printed: pytest.CaptureFixture[str]

    def pull(self, *what: str, code: int = 0, token: str = TOKEN, **constants: object) -> str:
        """What it says and prints when it ends with this code.  constants: of the hub's client, which it makes of the environment."""
        usual = {"ENDPOINT": self.url, "HF_HUB_CACHE": str(self.home / "hf" / "hub"), "HF_TOKEN_PATH": str(self.home / "none")}
        host = {**usual, "HF_HUB_DOWNLOAD_TIMEOUT": 1, **constants}
        host["HUGGINGFACE_CO_URL_TEMPLATE"] = f"{host['ENDPOINT']}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        with self.host.context() as patched:
            for name, value in host.items():
                patched.setattr(f"huggingface_hub.constants.{name}", value)
            patched.chdir(self.home)
            for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "IFMESH_"))]:
                patched.delenv(name)
            patched.setenv("HF_TOKEN", token)
            patched.setenv("IFMESH_STATE", str(self.home / "state"))
            ended = run(["pull", *what])
        said = "".join(self.printed.readouterr())
        assert ended == code, said
        return said

    def start(self, *what: str) -> subprocess.Popen[str]:
        """The command in a process of its own, as the environment has it."""
        alone = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "IFMESH_"))}
        alone |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": self.url, "HF_HOME": str(self.home / "hf"), "HF_TOKEN": TOKEN}
        alone |= {"IFMESH_STATE": str(self.home / "state"), "NO_PROXY": "*"}
        command = [sys.executable, "-m", "ifmesh", "pull", *what]
        return subprocess.Popen(command, env=alone, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def moods(self, **by: dict[str, Any]) -> None:
        """What is wrong with which file: a keyword is its part."""
        names = {"unet": UNET, "text_encoder": "text_encoder/model.fp16.safetensors"}
        (self.folder / "moods.json").write_text(json.dumps({names[part]: mood for part, mood in by.items()}))

    def cached(self, repo: str) -> Path:
        return self.home / "hf" / "hub" / repo_folder_name(repo_id=repo, repo_type="model")

    def files(self, repo: str) -> list[str]:
        """What is found there by the code that loads."""
        [snapshot] = (self.cached(repo) / "snapshots").iterdir()
        assert (self.cached(repo) / "refs" / "main").read_text() == snapshot.name
        return sorted(str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file())

    def handed_out(self) -> list[str]:
        """Every file that has left it, in order, when it has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        return self.process.stdout.read().split()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    for repo, parts in REPOS.items():
        for part, names in parts.items():
            (folder / repo / part).mkdir(parents=True)
            (folder / repo / part / "config.json").write_text(json.dumps({"of": part}))  # equal files are one in the cache
            for name in names:
                seed = f"{repo} {part} {name} ".encode()
                size = SIZE if name.endswith("safetensors") else 100
                (folder / repo / part / name).write_bytes((seed * (size // len(seed) + 1))[:size])
        (folder / repo / "README.md").write_text("read me")
        (folder / repo / "LICENCE").write_text("openrail++" if repo == UP else "deepfloyd-if-license")
    for repo in (ONE, TWO):
        (folder / repo / "GATED").write_text(TOKEN)
    (tmp_path / "home").mkdir()
    program = [sys.executable, "-m", "tests.services.hub", str(folder)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            yield Hub(folder, tmp_path / "home", process.stdout.readline().strip(), process, monkeypatch, capfd)
        finally:
            process.kill()


def test_a_cascade_comes_in_one_variant_without_pickles_and_once(hub: Hub) -> None:
    """Afterwards it is here without the hub, where the loading code looks."""
    said = hub.pull("if-m", "--variant", "fp16", "--accept-license")
    assert f"{ONE}: 1.2 MB in 16 files, 1.2 MB in 16 to fetch; licence deepfloyd-if-license; gated" in said
    assert hub.files(ONE) == sorted(
        [f"{part}/config.json" for part in REPOS[ONE]]
        + [f"text_encoder/{name}" for name in ("model.fp16.safetensors", "model.fp16.index.json")]
        + [UNET, "tokenizer/spiece.model", "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"]
        + ["feature_extractor/preprocessor_config.json", "safety_checker/model.fp16.safetensors"]
        + ["watermarker/diffusion_pytorch_model.safetensors"]
    )
    assert not [file for file in hub.files(TWO) if file.startswith("text_encoder")], "Stage II loads none"
    for repo, path in ((ONE, UNET), (UP, "vae/diffusion_pytorch_model.fp16.safetensors"), (ONE, "tokenizer/spiece.model")):
        [snapshot] = (hub.cached(repo) / "snapshots").iterdir()
        assert (snapshot / path).read_bytes() == (hub.folder / repo / path).read_bytes()
    assert found.weights(snapshot / "unet", "fp16", ONE) == [snapshot / UNET]
    assert "all is here\n" in hub.pull("if-m", "--variant", "fp16"), "and the licence was accepted for good"
    assert "is here" in hub.pull("if-m", "--variant", "fp16", HF_HUB_OFFLINE=True)
    handed = hub.handed_out()
    assert len(handed) == len(set(handed)) == sum(len(hub.files(repo)) for repo in REPOS)


def test_the_configured_services_say_what_is_fetched(hub: Hub) -> None:
    (hub.home / "ifmesh.toml").write_text(
        '[services.encoder.options]\nvariant = "8bit"\n[services.stage_one]\ndtype = "fp16"\n[services.guard]\ndtype = "fp32"\n'
    )
    said = hub.pull(ONE, "--dry-run")
    wanted = {"text_encoder/model.8bit.safetensors", UNET, "safety_checker/model.safetensors"}
    listed = {line.rpartition(f"{ONE}/")[2] for line in said.splitlines() if line.endswith(".safetensors")}
    assert listed == wanted | {"watermarker/diffusion_pytorch_model.safetensors"}
    assert hub.handed_out() == []
    assert not (hub.home / "hf").exists(), "a dry run writes nothing"


def test_where_memory_is_short_t5_comes_in_8_bits(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ifmesh.found.cards", lambda: (KNOWN["t4"],))
    for ram, variant in ((13, "8bit"), (30, "fp16")):
        monkeypatch.setattr("ifmesh.found.ram", lambda ram=ram: ram * GB)
        said = hub.pull("if-m", "--dry-run")
        assert f"{ONE}/text_encoder/model.{variant}.safetensors" in said
        assert ('[services.encoder.options] variant = "8bit"' in said) == (variant == "8bit")
        assert [line.rpartition("/")[2] for line in said.splitlines() if f"{ONE}/unet/diff" in line] == [Path(UNET).name]


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", ("wants a login (HTTP 401), and this host has none", "hf auth login")),
        ("hf_somebody", ("login has no access (HTTP 403)", "with the account of that login", "/DeepFloyd/IF-I-XL-v1.0 once")),
        ("unknown", ("does not know this host's login (HTTP 401)", "anew")),
    ],
)
def test_who_may_not_is_told_where_to_go(hub: Hub, token: str, words: tuple[str, ...]) -> None:
    said = hub.pull("if-m", "--variant", "fp16", "--accept-license", code=exits.CONFIGURATION, token=token)
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    assert hub.handed_out() == []


def test_a_licence_is_to_be_accepted_once(hub: Hub) -> None:
    said = hub.pull(UP, "--variant", "fp16", code=exits.CONFIGURATION)
    assert f"licence openrail++: {hub.url}/{UP}" in said
    assert "--accept-license" in said
    hub.pull(UP, "--variant", "fp16", "--stage", "upscaler", "--accept-license")
    hub.pull(UP, "--variant", "")
    assert json.loads((hub.home / "state" / "licences.json").read_text()) == {"openrail++": f"{hub.url}/{UP}"}


def test_what_is_not_there_is_named(hub: Hub) -> None:
    assert "the hub knows no such repository" in hub.pull("nobody/nothing", code=exits.CONFIGURATION)
    assert "did you mean 'if-xl'" in hub.pull("if-xk", code=exits.CONFIGURATION)
    said = hub.pull(UP, "--variant", "bf16", code=exits.CONFIGURATION)
    assert "unet: no safetensors of variant 'bf16'; there are: the one without a name, 'fp16'" in said.replace("'fp16', the one", "the one")
    offline = hub.pull(UP, code=exits.CONFIGURATION, HF_HUB_OFFLINE=True)
    assert f"{UP} is not on this host" in offline


def test_without_a_hub_it_says_that_asking_again_helps(hub: Hub) -> None:
    said = hub.pull(UP, code=exits.UNREACHABLE, ENDPOINT="http://127.0.0.1:1")
    assert "no (whole) answer from http://127.0.0.1:1" in said
    assert "Traceback" not in said


def test_a_hub_in_trouble_is_not_your_fault(hub: Hub) -> None:
    hub.moods(unet={"status": 503})
    said = hub.pull(UP, "--variant", "fp16", "--accept-license", code=exits.UNREACHABLE)
    assert "HTTP 503" in said
    assert "Traceback" not in said


def test_the_disk_is_looked_at_first(hub: Hub) -> None:
    hub.moods(unet={"size": 10**16})
    said = hub.pull(UP, "--variant", "fp16", "--accept-license", code=exits.CONFIGURATION)
    assert "10000000.0 GB are to come" in said
    assert "HF_HOME" in said
    assert hub.handed_out() == []


def begun(blobs: Path) -> list[int]:
    """Bytes of the files that are not whole yet; one of them may become so meanwhile."""
    sizes = []
    for part in blobs.glob("*.incomplete"):
        with suppress(FileNotFoundError):
            sizes.append(part.stat().st_size)
    return sizes


def test_an_interrupted_pull_goes_on_where_it_was(hub: Hub) -> None:
    """Killed in the middle of a file: finished files are not fetched again, and the file from where it was."""
    hub.moods(unet={"cut": 120_000, "pause": 60.0})
    process = hub.start(UP, "--variant", "fp16", "--accept-license")
    until = time.monotonic() + 60
    while 120_000 not in begun(hub.cached(UP) / "blobs"):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.moods()
    said = hub.pull(UP, "--variant", "fp16")
    assert f"{UNET}: 300.0 kB, goes on at 120.0 kB" in said
    [snapshot] = (hub.cached(UP) / "snapshots").iterdir()
    assert (snapshot / UNET).read_bytes() == (hub.folder / UP / UNET).read_bytes()
    handed = hub.handed_out()
    assert [name for name in handed if UNET in name] == [f"{UP}/{UNET}", f"{UP}/{UNET}@120000"]
    assert len({*handed}) == len(handed), "nothing else twice"


@pytest.mark.parametrize("mood", [{"cut": 120_000}, {"cut": 120_000, "pause": 30.0}], ids=["cut", "stalled"])
def test_a_connection_that_breaks_off_is_taken_up_again(hub: Hub, mood: dict[str, Any]) -> None:
    """Every one of them brings 120 kB of the 300, and then ends or says no more."""
    hub.moods(unet=mood)
    said = hub.pull(UP, "--variant", "fp16", "--accept-license")
    assert "Error" not in said
    assert [name for name in hub.handed_out() if UNET in name] == [f"{UP}/{UNET}{at}" for at in ("", "@120000", "@240000")]


def half(hub: Hub) -> Path:
    """Something of the UNet is here."""
    data = (hub.folder / UP / UNET).read_bytes()
    blobs = hub.cached(UP) / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(data).hexdigest()}.incomplete"
    part.write_bytes(data[:100_000])
    return part


def test_a_hub_that_cannot_go_on_begins_again(hub: Hub) -> None:
    """HTTP 416, then a server that knows no Range; and what is longer than the file is none of it."""
    part = half(hub)
    hub.moods(unet={"refuses": True})
    hub.pull(UP, "--variant", "fp16", "--accept-license")
    blob = part.with_suffix("")
    whole = blob.read_bytes()
    for mood, begun in (({"forgets": True}, whole[:100_000]), ({}, whole + b"more")):
        blob.unlink()
        part.write_bytes(begun)
        hub.moods(unet=mood)
        hub.pull(UP, "--variant", "fp16")
        assert blob.read_bytes() == whole
    assert [name for name in hub.handed_out() if UNET in name] == [f"{UP}/{UNET}{at}" for at in ("@100000", "", "", "")]


def test_damaged_bytes_are_not_kept(hub: Hub) -> None:
    """A damaged beginning is fetched anew; a hub that gives other bytes than it promises is told apart."""
    part = half(hub)
    part.write_bytes(b"?" * 100_000)
    hub.pull(UP, "--variant", "fp16", "--accept-license")
    assert part.with_suffix("").read_bytes() == (hub.folder / UP / UNET).read_bytes()
    part.with_suffix("").unlink()
    hub.moods(unet={"wrong": True})
    said = hub.pull(UP, "--variant", "fp16", code=exits.FAILURE)
    assert "twice not the bytes that the hub promises" in said
    assert not part.with_suffix("").exists()
