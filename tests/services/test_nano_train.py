"""Training: each part learns, goes on where it was, and ends in a cascade that loads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from ifmesh_services import loading, recipes
from ifmesh_services.nano import builder, folder, losses, state, widths
from ifmesh_services.nano.batches import Batch
from ifmesh_services.nano.part import trained
from ifmesh_services.nano.stage_one import STILL, Sketch, StageOne
from ifmesh_services.nano.stage_two import StageTwo
from ifmesh_services.nano.train import PARTS, main
from ifmesh_services.nano.training import Plan, Training
from ifmesh_services.nano.vae import SCALING, Vae
from ifmesh_services.nano.wording import SIZES, TINTS
from safetensors.torch import load_file
from transformers import CLIPTextModel, T5EncoderModel

FEW = Plan(batch=2, sheets=float("inf"))
ORDER = ("text", "sketch", "stage_one", "stage_two", "vae", "upscaler")  # each after what it needs


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Any:
    """Narrow networks: what is tested is not in their widths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(widths.WIDTHS, "one", widths.WIDTHS["one"] | {"block_out_channels": [8, 8, 8, 32, 32], "cross_attention_dim": 32})
        patch.setitem(widths.WIDTHS, "two", widths.WIDTHS["two"] | {"block_out_channels": [8, 8, 8, 32, 32], "cross_attention_dim": 32})
        patch.setitem(widths.WIDTHS, "x4", {"block_out_channels": [8, 8, 16, 16]})
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every part, two steps."""
    where = tmp_path_factory.mktemp("trained")
    for name in ORDER:
        Training(PARTS[name](where, 32), where / name, replace(FEW, steps=2, told=0.5)).run()
    return where


@pytest.mark.parametrize("name", ORDER)
def test_going_on_gives_the_same_bits(out: Path, tmp_path: Path, name: str) -> None:
    """One step, and another from the checkpoint; against two at once."""
    Training(PARTS[name](out, 32), tmp_path, replace(FEW, steps=1, told=0.5)).run()
    first = state.read(tmp_path / state.FILE)
    most = 8 if name == "stage_one" else 2  # of the whole Stage I the inner levels are still
    assert Training(PARTS[name](out, 32), tmp_path, replace(FEW, steps=2, told=0.5)).run() == 2
    one, other = (state.read(folder / state.FILE) for folder in (tmp_path, out / name))
    for kind in ("models", "averaged"):
        for model, weights in one[kind].items():
            assert all(torch.equal(tensor, other[kind][model][key]) for key, tensor in weights.items())
            assert sum(not torch.equal(tensor, first[kind][model][key]) for key, tensor in weights.items()) > len(weights) / most
    assert (one["step"], [each["from"] for each in one["history"]]) == (2, [0])


def test_another_seed_and_another_rate_are_other_weights_and_are_told(tmp_path: Path) -> None:
    Training(Vae(tmp_path, 16), tmp_path / "one", replace(FEW, steps=1)).run()
    Training(Vae(tmp_path, 16), tmp_path / "other", replace(FEW, steps=1, seed=1)).run()
    one, other = (trained(tmp_path, name)["vae"]["encoder.conv_in.weight"] for name in ("one", "other"))
    assert not torch.equal(one, other)
    Training(Vae(tmp_path, 32), tmp_path / "one", replace(FEW, steps=2, rate=1e-4)).run()
    history = state.read(tmp_path / "one" / state.FILE)["history"]
    assert [(each["from"], each["side"], each["rate"]) for each in history] == [(0, 16, 1e-3), (1, 32, 1e-4)]


def test_it_learns_and_tells_of_it(tmp_path: Path) -> None:
    main([*["vae", "--steps", "60", "--batch", "8", "--side", "16", "--rate", "2e-3", "--out"], str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "vae/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60]
    assert lines[-1]["error"] < 0.9 * lines[0]["error"]
    assert {path.name for path in (tmp_path / "vae").rglob("*")} == {state.FILE, "log.jsonl", "samples", "000060.png"}


@pytest.mark.parametrize("of", ["sketch", "stage_one"])
def test_captions_are_drawn_and_judged(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str) -> None:
    """By weights of two steps nothing is right, and that is told."""
    main(["exam", "--out", str(out), "--of", of, "--captions", "2", "--to", str(tmp_path / "sheet.png")])
    found = json.loads(capsys.readouterr().out)
    assert (found["captions"], found["shape"], found["wrong"]) == (2, 0.0, [0, 1])
    assert (tmp_path / "sheet.png").exists()


def test_the_sketch_becomes_the_inner_levels(out: Path) -> None:
    """At first they stay as they are; the outer level learns around them."""
    sketch, whole = (trained(out, name)["unet"] for name in ("sketch", "stage_one"))
    for inner, grown in (("mid_block", "mid_block"), ("down_blocks.0", "down_blocks.1"), ("up_blocks.3.resnets", "up_blocks.3.resnets")):
        names = [name.removeprefix(inner) for name in sketch if name.startswith(inner)]
        assert names
        assert all(torch.equal(sketch[inner + name], whole[grown + name]) for name in names)
    assert sketch["conv_in.weight"].shape == whole["conv_in.weight"].shape
    assert not torch.equal(sketch["conv_in.weight"], whole["conv_in.weight"])
    kind: Any = UNet2DConditionModel
    made = kind(**builder.settled(widths.WIDTHS)["one"])
    StageOne(out)._still(made, 0)
    still = {name.split(".")[0] for name, weight in made.named_parameters() if not weight.requires_grad}
    assert {"time_embedding", "mid_block", "add_embedding"} <= still
    StageOne(out)._still(made, STILL)
    assert all(weight.requires_grad for weight in made.parameters())


def test_the_sketch_sees_what_the_whole_sees_from_farther_away(out: Path) -> None:
    """The mean of four noised pixels, and of a whole sketch the signal's share."""
    sketch, whole = Sketch(out), StageOne(out)
    kept = whole._alphas
    assert torch.allclose(sketch._scale**2, kept + (1 - kept) / 4, atol=1e-6)
    assert torch.allclose(sketch._alphas * sketch._scale**2, kept, atol=1e-6)
    assert whole._scale.eq(1).all()


def test_crops_are_of_pictures_of_every_size() -> None:
    """Whole ones, too, or what normalises over all it sees would be at a loss with them."""
    seen = {Batch("any", 0, step, 1).whole(32, 256) for step in range(40)}
    assert seen == {32, 64, 128, 256}
    assert Batch("any", 0, 0, 2).boxes(1.0, 32) == [(0.0, 0.0, 1.0, 1.0)] * 2


def test_captions_may_leave_nothing_out(out: Path) -> None:
    batch = Batch("any", 0, 0, 64, told=1.0)
    told = [text for text in batch.texts if text]
    assert len(told) > 48
    assert all(any(colour in text for colour in {w for t in TINTS.values() for w in t}) for text in told)
    assert sum(any(size in text for size in {w for t in SIZES.values() for w in t}) for text in told) == len(told)


def test_so_many_timesteps_lie_in_the_band() -> None:
    t = Batch("any", 0, 0, 40, focus=0.75, band=(600, 700)).timesteps()
    assert int(((t >= 600) & (t < 700)).sum()) in range(30, 36)  # and a tenth of the ten others, more or less
    assert {int(t) // 100 for t in Batch("any", 0, 0, 40).timesteps()} == set(range(10))


def test_stage_two_cannot_read_colours_off_the_noise(out: Path) -> None:
    """Where there is next to nothing but noise, its mean is far from that of white noise, 1 / 32."""
    seen = []

    def unet(x: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor]:
        seen.append(x[:, :3].mean(dim=(2, 3)))
        return (torch.zeros(len(x), 6, *x.shape[2:]),)

    StageTwo(out, 32).loss({"unet": unet}, Batch("stage_two", 0, 0, 16, focus=1.0, band=(990, 1000)), torch.device("cpu"))
    assert 0.2 < float(seen[0].std()) < 0.4


def test_the_loss_is_least_where_it_should_be() -> None:
    """The true noise, and of a variance's place the one whose distribution is the posterior's."""
    schedule: Any = DDPMScheduler
    alphas = schedule(beta_schedule="squaredcos_cap_v2").alphas_cumprod
    source = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 64, 3, 4, 4, generator=source)
    t = torch.arange(64) * 15 + 3
    kept, lost = losses.tables(alphas, t)
    x = kept.sqrt() * clean + lost.sqrt() * noise

    def loss(eps: torch.Tensor, place: float) -> float:
        return float(losses.hybrid(alphas, t, x, clean, noise, torch.cat([eps, torch.full_like(eps, place)], dim=1))[0])

    assert loss(noise, -1.0) == pytest.approx(0, abs=1e-6)
    assert loss(noise, 0.0) > 1e-4
    assert loss(noise + 0.1, -1.0) > 1e-2
    weight = losses.weights(alphas, t).flatten()
    assert (float(weight.min()), float(weight.max())) == (1.0, losses.MOST)
    assert weight[0] == 1.0
    assert weight[-1] == losses.MOST
    assert float(losses.weights(alphas, t, 8.0).max()) == 8.0


def test_what_is_trained_becomes_a_cascade(out: Path, tmp_path: Path) -> None:
    main(["folder", "--out", str(out), "--to", str(tmp_path / "made")])
    made = recipes.read(str(tmp_path / "made"))
    assert made.defaults["generate"]["stage_two"].guidance == 1.0
    for repo, part, kind, of, model in (
        ("stage_one", "text_encoder", T5EncoderModel, "text", "text_encoder"),
        ("stage_one", "unet", UNet2DConditionModel, "stage_one", "unet"),
        ("stage_two", "text_encoder", T5EncoderModel, "text", "text_encoder"),
        ("stage_two", "unet", UNet2DConditionModel, "stage_two", "unet"),
        ("upscaler", "text_encoder", CLIPTextModel, "upscaler", "text_encoder"),
        ("upscaler", "unet", UNet2DConditionModel, "upscaler", "unet"),
    ):
        loaded: Any = loading.component(made.repos[repo], part, kind)
        kept = trained(out, of)[model]
        assert all(torch.equal(tensor, kept[name].half().float()) for name, tensor in loaded.state_dict().items())
        [stored] = (Path(made.repos[repo]) / part).glob("*.safetensors")
        assert {tensor.dtype for tensor in load_file(stored).values()} == {torch.float16}
    vae: Any = loading.component(made.repos["upscaler"], "vae", AutoencoderKL)
    batch = Batch("any", 0, 0, 4)
    crops = batch.painted(64, batch.boxes(1 / 16, 1024))
    with torch.no_grad():
        latents = vae.encode(crops).latent_dist.mode() * SCALING
    assert 0.3 < float(latents.std()) < 3  # what the upscaler's noise is made for


def test_a_packed_state_is_small_and_goes_on(out: Path, tmp_path: Path) -> None:
    """Without the sketch, too, which has grown into Stage I."""
    main(["pack", "--out", str(out), "--to", str(tmp_path / "small")])
    whole, small = (where / "stage_one" / state.FILE for where in (out, tmp_path / "small"))
    assert small.stat().st_size < whole.stat().st_size / 2
    kept, first = (trained(where, "stage_one")["unet"] for where in (out, tmp_path / "small"))
    assert all(torch.equal(tensor.half(), first[name]) for name, tensor in kept.items())
    shutil.rmtree(tmp_path / "small/sketch")
    part = StageOne(tmp_path / "small", 32)
    assert Training(part, tmp_path / "small/stage_one", replace(FEW, steps=3)).run() == 3
    after = trained(tmp_path / "small", "stage_one")["unet"]
    assert after["conv_in.weight"].dtype == torch.float32
    assert torch.equal(
        after["mid_block.resnets.0.conv1.weight"], first["mid_block.resnets.0.conv1.weight"].float()
    )  # still, and not drawn anew


def test_what_is_not_trained_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert folder.write(tmp_path, tmp_path / "made") == [name for name in ORDER if name != "sketch"]
    with pytest.raises(SystemExit):
        main(["folder", "--out", str(tmp_path), "--to", str(tmp_path / "made")])
    assert "does not exist yet" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="train text first"):
        PARTS["stage_two"](tmp_path)
