"""Repositories that are not here: fetched if the service may, and a hub that refuses is answered with what to do.

The hub is a server of this machine that speaks its API (tests/services/hub.py); its client is the real one, in a process of its own
where it is about the host's environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ifmesh_services.encoder import Encoder
from ifmesh_services.guard import Guard

from ifmesh.errors import Misconfigured
from ifmesh.stage import Setup, Stage

GATED, OPEN = "DeepFloyd/IF-I-XL-v1.0", "stabilityai/stable-diffusion-x4-upscaler"
TOKEN = "hf_accepted"
ASKS = """
import sys
from ifmesh.errors import Misconfigured
from ifmesh_services import hub
for asked in sys.argv[1:]:
    repo, part, variant = asked.split()
    try:
        found = hub.where(repo) if variant == "not" else hub.fetched(repo, part, ("", variant.removeprefix("plain")))
        print("found", len(list((found / part).glob("*.safetensors"))))
    except Misconfigured as error:
        print("refused", error)
"""


@dataclass(slots=True)
class Hub:
    """folder: of the repositories.  home: of the client that asks."""

    folder: Path
    home: Path
    url: str
    process: subprocess.Popen[str]

    def asked(self, *what: str, **environ: str) -> list[str]:
        """What the code of a worker on a fresh host says to each: "REPO PART VARIANT" (plain: without a name), or "... not" to fetch it."""
        alone = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        alone |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        alone |= {"HF_HUB_DISABLE_XET": "1"} | environ
        ended = subprocess.run([sys.executable, "-c", ASKS, *what], env=alone, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.splitlines()

    def handed_out(self) -> list[str]:
        """The files, when it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.stdout is not None
        return sorted(self.process.stdout.read().split())


@pytest.fixture
def hub(nano16: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "hub"
    shutil.copytree(nano16 / "IF-I-nano", folder / GATED)
    (folder / GATED / "GATED").write_text(TOKEN)
    (folder / GATED / "text_encoder/pytorch_model.bin").write_bytes(b"a pickle")
    shutil.copytree(nano16 / "x4-nano", folder / OPEN)
    program = [sys.executable, "-m", "tests.services.hub", str(folder)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            yield Hub(folder, tmp_path / "home", url, process)
        finally:
            process.kill()


CLIP, T5 = f"{OPEN} text_encoder", f"{GATED} text_encoder"


def test_what_the_service_loads_is_fetched_and_no_more(hub: Hub) -> None:
    """And once: afterwards it is found without the hub."""
    assert hub.asked(f"{CLIP} plain", f"{CLIP} fp16") == ["found 1", "found 2"]
    assert hub.asked(f"{CLIP} not", f"{CLIP} plain", HF_HUB_OFFLINE="1") == ["found 2"] * 2
    assert hub.handed_out() == [f"{OPEN}/text_encoder/{name}" for name in ("config.json", "model.fp16.safetensors", "model.safetensors")]


@pytest.mark.parametrize("how", ["stored", "environment"])
def test_a_login_that_has_accepted_the_licence_gets_gated_weights(hub: Hub, how: str) -> None:
    """Stored by `hf auth login`, or HF_TOKEN.  No pickle is fetched."""
    environ = {"HF_TOKEN": TOKEN}
    if how == "stored":
        hub.home.mkdir()
        (hub.home / "token").write_text(TOKEN)
        environ = {}
    assert hub.asked(f"{T5} plain", f"{GATED} tokenizer plain", **environ) == ["found 1", "found 0"]
    files = hub.handed_out()
    assert f"{GATED}/tokenizer/spiece.model" in files
    assert not any("bin" in name or "unet" in name for name in files)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", ("wants a login (HTTP 401), and this host has none", "hf auth login", "HF_TOKEN")),
        ("hf_somebody", ("login has no access (HTTP 403)", "with the account of that login")),
        ("unknown", ("does not know this host's login (HTTP 401)", "anew")),
    ],
)
def test_gated_weights_are_answered_with_what_to_do(hub: Hub, token: str, words: tuple[str, ...]) -> None:
    [said] = hub.asked(f"{T5} plain", **({"HF_TOKEN": token} if token else {}))
    assert said.startswith(f"refused {GATED}: ")
    for word in (*words, "accept the licence at https://huggingface.co/DeepFloyd/IF-I-XL-v1.0 once"):
        assert word in said
    assert hub.handed_out() == []


def test_other_refusals_are_told_apart(hub: Hub) -> None:
    unknown, not_asked = hub.asked("nobody/nothing text_encoder plain", f"{CLIP} not")
    assert "the hub knows no such repository, or keeps it private" in unknown
    fetch = f"ifmesh pull {OPEN}"
    assert not_asked == f"refused {OPEN} is not on this host; download it: {fetch}"
    [offline] = hub.asked(f"{CLIP} plain", HF_HUB_OFFLINE="1")
    assert "cannot be fetched" in offline
    assert fetch in offline
    assert hub.handed_out() == []


def test_a_stage_fetches_its_parts_when_it_may(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder and the guard of a cascade with the hub's names: refused, allowed without a login, and with one."""
    repos = {"stage_one": {"repo": GATED}, "stage_two": {"repo": GATED}, "upscaler": {"repo": OPEN}}
    (tmp_path / "cascade.json").write_text(json.dumps(repos))
    files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    host = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": files,
        "HF_HUB_CACHE": str(hub.home),
        "HF_TOKEN_PATH": str(hub.home / "token"),
    }
    for name, value in host.items():  # what its client makes of the environment when it is imported
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    made: list[Stage] = [Encoder(), Guard()]
    for stage in made:
        with pytest.raises(Misconfigured, match=f"{GATED} is not on this host; accept the licence"):
            stage.load(Setup(cascade=str(tmp_path)))
        with pytest.raises(Misconfigured, match="the hub wants a login"):
            stage.load(Setup(cascade=str(tmp_path), options={"download": True}))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for stage in made:
        stage.load(Setup(cascade=str(tmp_path), options={"download": True}))
    parts = {name.removeprefix(f"{GATED}/").partition("/")[0] for name in hub.handed_out()}
    assert parts == {"feature_extractor", "safety_checker", "text_encoder", "tokenizer", "watermarker"}
    for stage in made:
        stage.load(Setup(cascade=str(tmp_path)))
