"""Repositories that are not here: fetched if the service may, and a hub that refuses is answered with what to do.

The hub is a server of this machine that speaks its API (tests/services/hub.py); its client is the real one, in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

GATED, OPEN = "DeepFloyd/IF-I-XL-v1.0", "stabilityai/stable-diffusion-x4-upscaler"
TOKEN = "hf_accepted"
LOADS = """
import sys, torch
torch.set_num_threads(1)
from ifmesh.errors import Misconfigured
from ifmesh_services import loading
from ifmesh_services.terms import Terms
from transformers import CLIPTextModel, T5EncoderModel, T5Tokenizer
kinds = {"t5": T5EncoderModel, "words": T5Tokenizer, "clip": CLIPTextModel}
for asked in sys.argv[1:]:
    repo, what, dtype, download = asked.split()
    terms = Terms.read("encoder", {"download": download == "may"})
    try:
        subfolder = "tokenizer" if what == "words" else "text_encoder"
        made = loading.component(repo, subfolder, kinds[what], getattr(torch, dtype), terms=terms)
        print("loaded", type(made).__name__)
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
        """What a worker on a fresh host says to each.  what: "REPO PART DTYPE may" (fetch it) or "... not"."""
        alone = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        alone |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": self.url, "HF_HOME": str(self.home), "NO_PROXY": "127.0.0.1"}
        alone |= {"HF_HUB_DISABLE_XET": "1"} | environ
        ended = subprocess.run([sys.executable, "-c", LOADS, *what], env=alone, capture_output=True, text=True, timeout=100)
        assert ended.returncode == 0, ended.stderr
        return [line for line in ended.stdout.splitlines() if line.startswith(("loaded", "refused"))]

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


CLIP, T5 = f"{OPEN} clip float32", f"{GATED} t5 float32"


def test_what_the_service_loads_is_fetched_and_no_more(hub: Hub) -> None:
    """And once: afterwards it is found without the hub."""
    loaded = ["loaded CLIPTextModel"]
    assert hub.asked(f"{CLIP} may", f"{OPEN} clip float16 may") == loaded * 2
    assert hub.asked(f"{CLIP} not", f"{CLIP} may", HF_HUB_OFFLINE="1") == loaded * 2
    assert hub.handed_out() == [f"{OPEN}/text_encoder/{name}" for name in ("config.json", "model.fp16.safetensors", "model.safetensors")]


@pytest.mark.parametrize("how", ["stored", "environment"])
def test_a_login_that_has_accepted_the_licence_loads_gated_weights(hub: Hub, how: str) -> None:
    """Stored by `hf auth login`, or HF_TOKEN.  No pickle is fetched."""
    environ = {"HF_TOKEN": TOKEN}
    if how == "stored":
        hub.home.mkdir()
        (hub.home / "token").write_text(TOKEN)
        environ = {}
    assert hub.asked(f"{T5} may", f"{GATED} words float32 may", **environ) == ["loaded T5EncoderModel", "loaded T5Tokenizer"]
    assert not any("bin" in name or "unet" in name for name in hub.handed_out())


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", ("wants a login (HTTP 401), and this host has none", "hf auth login", "HF_TOKEN")),
        ("hf_somebody", ("login has no access (HTTP 403)", "with the account of that login")),
        ("unknown", ("does not know this host's login (HTTP 401)", "anew")),
    ],
)
def test_gated_weights_are_answered_with_what_to_do(hub: Hub, token: str, words: tuple[str, ...]) -> None:
    [said] = hub.asked(f"{T5} may", **({"HF_TOKEN": token} if token else {}))
    assert said.startswith(f"refused {GATED}: ")
    for word in (*words, "accept the licence at https://huggingface.co/DeepFloyd/IF-I-XL-v1.0 once"):
        assert word in said
    assert hub.handed_out() == []


def test_other_refusals_are_told_apart(hub: Hub) -> None:
    unknown, not_asked = hub.asked("nobody/nothing t5 float32 may", f"{CLIP} not")
    assert "the hub knows no such repository, or keeps it private" in unknown
    fetch = f"hf download {OPEN} --include '*.json' '*.txt' '*.model' '*.safetensors'"
    assert not_asked == f"refused {OPEN} is not on this host; download it: {fetch}"
    [offline] = hub.asked(f"{CLIP} may", HF_HUB_OFFLINE="1")
    assert "cannot be fetched" in offline
    assert fetch in offline
    assert hub.handed_out() == []
