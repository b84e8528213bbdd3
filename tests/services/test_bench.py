"""The benchmarks run, tell all that they promise, and compute their ratios from what they measured.  No time is judged here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services.bench import crowd, published, rivals, stages, tolerance
from ifmesh_services.bench.meter import Meter, Taken, Timed, median
from ifmesh_services.bench.workbench import Wanted, setup
from ifmesh_services.tensors import to_torch

from ifmesh import cli, exits
from ifmesh.errors import Misconfigured
from ifmesh.request import Settings
from ifmesh.stage import Setup
from tests.services.together import ONE, TWO, UP

WAYS = (stages.EXACT, stages.POOLED, stages.FIXED, stages.LOOP, stages.BATCH)
TEXTS = (stages.EXACT, stages.POOLED, stages.CACHED, stages.LOOP, stages.BATCH)


def few(cascade: Path, **more: Any) -> Wanted:
    return Wanted(str(cascade), **{"requests": (1, 2), "steps": 1, "rounds": 1, "device": "cpu", **more})


@pytest.fixture(scope="module")
def report(nano16: Path) -> dict[str, Any]:
    return stages.measured(few(nano16), lambda line: None)


def test_the_report_is_complete(report: dict[str, Any], nano16: Path) -> None:
    assert json.loads(json.dumps(report)) == report, "as JSON has it"
    assert (report["cascade"], report["steps"]) == (str(nano16), 1)
    assert report["machine"].keys() >= {"device", "torch", "threads", "clock", "processors"}
    assert list(report["numeric"]) == ["encoder", ONE, TWO, UP]
    assert [(row["stage"], row["requests"], row["way"]) for row in report["rows"]] == [
        (stage, number, way) for stage in report["numeric"] for number in (1, 2) for way in (TEXTS if stage == "encoder" else WAYS)
    ]
    assert {(row["stage"], row["requests"]) for row in report["share"]} == {(stage, n) for stage in (ONE, TWO, UP) for n in (1, 2)}
    assert all(0.2 < row[way] < 1 for row in report["share"] for way in (stages.EXACT, stages.POOLED))
    assert report["first_picture"]["steps"] == 1
    assert report["first_picture"]["seconds"].keys() == {stages.EXACT, stages.POOLED, stages.LOOP}
    assert [row["side"] for row in report["overlapping"]] == [16]


def test_every_number_follows_from_what_was_measured(report: dict[str, Any]) -> None:
    seconds = {(row["stage"], row["requests"], row["way"]): row["rounds"][0] for row in report["rows"]}
    for row in report["rows"]:
        of, number = (row["stage"], row["requests"]), row["requests"]
        mine = seconds[*of, row["way"]]
        assert row["seconds"] == mine > 0
        assert row["images_per_s"] == pytest.approx(number / mine)
        assert row["of_one_by_one"] == pytest.approx(seconds[*of, stages.LOOP] / mine)
        assert row["of_one_batch"] == pytest.approx(seconds[*of, stages.BATCH] / mine)
        assert row["peak"] is None or row["peak"] > 1e7
    cost, over = report["overhead"], report["overlapping"][0]
    assert cost["share"] == pytest.approx(cost["pooled_s"] / cost["diffusers_s"] - 1)
    assert over["ratio"] == pytest.approx(over["diffusers_s"] / over["pooled_s"])


def test_rows_by_hand() -> None:
    """Four requests of five steps; the median of three rounds."""
    taken = {
        stages.EXACT: [Taken(4.0, 7), Taken(9.0, 9), Taken(2.0, None)],
        stages.POOLED: [Taken(1.0, None)] * 3,
        stages.LOOP: [Taken(8.0, 1)] * 3,
        stages.BATCH: [Taken(2.0, 1)] * 3,
    }
    exact, pooled, loop, batch = stages.compared(ONE, 4, 5, taken)
    assert (exact["seconds"], exact["steps_per_s"], exact["images_per_s"]) == (4.0, 5.0, 1.0)
    assert (exact["ms_per_step"], pooled["ms_per_step"], batch["ms_per_step"]) == (200.0, 200.0, 400.0), "of all that take it together"
    assert (exact["of_one_by_one"], pooled["of_one_by_one"], loop["of_one_by_one"]) == (2.0, 8.0, 1.0)
    assert (exact["of_one_batch"], pooled["of_one_batch"]) == (0.5, 2.0)
    assert (exact["peak"], pooled["peak"]) == (9, None)


def test_rounds_take_turns() -> None:
    made: list[str] = []
    ways = {name: lambda name=name: made.append(name) for name in "abc"}
    taken = Meter("cpu").in_turn(ways, 4, 60)
    assert "".join(made) == "abc" "bca" "cab" "abc"  # fmt: skip
    assert all(len(rounds) == 4 for rounds in taken.values())
    made.clear()
    Meter("cpu").in_turn(ways, 4, 0, warm=True)
    assert "".join(made) == "abc" "abc" "bca", "one that does not count, and the least of rounds when the time is over"  # fmt: skip


def test_time_and_memory(nano16: Path) -> None:
    meter = Meter("cpu")
    before = meter.take(lambda: None)
    big = meter.take(lambda: torch.ones(50_000_000))
    if before.peak is not None and big.peak is not None:
        assert 150e6 < big.peak - before.peak < 300e6
        after = meter.take(lambda: None).peak
        assert after is not None
        assert after < before.peak + 50e6, "each way's own peak"
    assert median([Taken(1.0, None), Taken(5.0, None), Taken(2.0, None)]) == 2.0


def test_models_are_timed_and_nothing_else() -> None:
    meter = Meter("cpu")
    ticks: Iterator[float] = iter(range(100))
    meter.now = lambda: next(ticks)  # every look at the clock is a second
    model = Timed(torch.nn.Linear(2, 2), meter)
    for _ in range(3):
        assert model(torch.zeros(1, 2)).shape == (1, 2)
        next(ticks)
    assert model.in_features == 2
    assert model.seconds == 3.0


@pytest.mark.parametrize("stage", [ONE, TWO, UP])
def test_the_rivals_draw_the_same_pictures(nano16: Path, stage: str) -> None:
    """What is compared is the same work, to the bit."""
    made, _ = crowd.loaded(stage, Setup(cascade=str(nano16)))
    jobs = crowd.requests(stage, made, 2, Settings(steps=2, guidance=7.0))
    pipe = rivals.pipeline(stage, made)
    ours = crowd.one_by_one(made, jobs)
    for job, asked in jobs.items():
        theirs = rivals.drawn(stage, made, pipe, [asked])[0]
        if stage == UP:
            theirs = (theirs * 255).round().to(torch.uint8)
        assert torch.equal(to_torch(ours[job][crowd.DRAWING[stage]]), theirs)
    both = crowd.overlapped(crowd.pooled(made), jobs)
    assert both == crowd.at_once(crowd.pooled(made), jobs) == ours
    assert rivals.drawn(stage, made, pipe, list(jobs.values())).shape[0] == 2


def test_the_tolerance_table(nano16: Path) -> None:
    rows = tolerance.measured(few(nano16, stages=("encoder", ONE), dtype="fp32"), lambda line: None)["rows"]
    far = {row["way"]: row for row in rows}
    assert list(far) == ["diffusers", "pooled", "pooled, fixed rows", "as on a card"]
    assert [far["diffusers"][kind]["most"] for kind in tolerance.KINDS] == [0, 0, 0]
    assert [far["pooled"][kind]["most"] for kind in ("guided", "from 999")] == [0, 0]
    assert 0 < far["as on a card"]["guided"]["mean"] < far["as on a card"]["guided"]["most"] < 2e-4


def test_published_sizes() -> None:
    """As published, where they are: see the module's docstring."""
    assert published.parameters("if-xl", ONE) == 4_304_695_110
    assert published.parameters("if-l", ONE) == 935_365_830
    assert published.parameters("if-m", ONE) == 371_605_830
    assert published.parameters("if-l", TWO) == 1_243_277_190
    assert published.parameters("if-l", UP) == 473_398_020 + 55_325_927 + 340_387_840
    assert published.parameters("if-l", "encoder") == 4_762_310_656


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_random_weights_of_a_published_shape(tmp_path: Path, dtype: str) -> None:
    """Those of if-m, but narrower: they load as any cascade's, and draw numbers."""
    narrow: dict[tuple[str, str], dict[str, Any]] = {part: dict(config) for part, config in published.CASCADES["if-m"].items()}
    narrow["encoder", "text_encoder"] |= {"d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    slim = {"attention_head_dim": 8, "layers_per_block": 1, "addition_embed_type_num_heads": 4, "sample_size": 16}
    narrow[ONE, "unet"] |= {**slim, "block_out_channels": [32, 32, 32, 64], "cross_attention_dim": 64, "encoder_hid_dim": 64}
    narrow[UP, "unet"] |= {"block_out_channels": [32, 32, 32, 32], "cross_attention_dim": 64, "layers_per_block": 1, "sample_size": 16}
    narrow[UP, "vae"] |= {"block_out_channels": [32, 32, 32], "layers_per_block": 1}
    narrow[UP, "text_encoder"] |= {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    kinds = {"encoder": torch.float32, ONE: getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[dtype]), UP: torch.float32}
    published.build(tmp_path / "made", narrow, kinds)
    for stage in (ONE, UP):
        made, _ = crowd.loaded(stage, Setup(cascade=str(tmp_path / "made"), dtype=dtype if stage == ONE else ""))
        bags = crowd.at_once(made, crowd.requests(stage, made, 1, Settings(steps=2, guidance=7.0)))
        picture = to_torch(bags["0"][crowd.DRAWING[stage]]).float()
        assert picture.isfinite().all()
        assert picture.std() > 0.01
        assert made._defaults["generate"].steps == {ONE: 100, UP: 75}[stage], "the published pipelines' settings"
    crowd.loaded("encoder", Setup(cascade=str(tmp_path / "made")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_the_real_sizes_want_a_card() -> None:
    wanted = Wanted(real="if-l", stages=(ONE,))
    with (
        pytest.raises(Misconfigured, match=r"--real if-l: torch sees no card here.*--device cpu if that is meant \(3\.7 GB"),
        setup(wanted),
    ):
        pass
    assert wanted.taken == 3
    with pytest.raises(Misconfigured, match="device: 'cuda'"), setup(Wanted(device="cuda")):
        pass


def test_the_command(nano16: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = ["bench", "stages", "--cascade", str(nano16), "--stage", ONE, "--requests", "2,1", "--steps", "1", "--rounds", "1"]
    assert cli.run([*said, "--device", "cpu", "--json", str(tmp_path / "b.json")]) == exits.OK
    shown = capsys.readouterr()
    numbers = json.loads((tmp_path / "b.json").read_text())
    assert {row["requests"] for row in numbers["rows"]} == {1, 2}
    assert all(way in shown.out for way in WAYS)
    assert f"16 px: {numbers['overlapping'][0]['ratio']:.2f} x as fast as diffusers one by one" in shown.out
    assert f"against diffusers' pipeline: {numbers['overhead']['share']:+.1%} time" in shown.out
    assert f"time in the models: exact {numbers['share'][0]['exact']:.1%}" in shown.out
    assert "stage_one: 2 requests" in shown.err, "it says what it is at"


def test_the_command_as_json(nano16: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "tolerance", "--cascade", str(nano16), "--stage", ONE, "--dtype", "fp32", "--json", "-"]) == exits.OK
    assert {row["way"] for row in json.loads(capsys.readouterr().out)["rows"]} >= {"diffusers", "pooled"}
    assert cli.run(["bench", "tolerance", "--cascade", str(nano16), "--stage", ONE, "--dtype", "fp32"]) == exits.OK
    assert "stage_one: from exact, most (mean)" in capsys.readouterr().out


def test_wrong_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.run(["bench", "stages", "--requests", "1,x"]) == exits.USAGE
    assert "'1,x': whole numbers from 1 to 64, as in 1,2,4,8,16" in capsys.readouterr().err
    assert cli.run(["bench", "stages", "--cascade", "if-x"]) == exits.CONFIGURATION
    assert "did you mean 'if-xl'" in capsys.readouterr().err
    monkeypatch.setattr("ifmesh.cli_heavy.find_spec", lambda name: None)
    assert cli.run(["bench", "stages"]) == exits.CONFIGURATION
    assert "pip install 'ifmesh[services]'" in capsys.readouterr().err
