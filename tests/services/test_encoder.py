"""The encoder: what it remembers, many texts in one call, and T5 in fewer bits."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ifmesh_services import loading
from ifmesh_services.cache import Cache
from ifmesh_services.encoder import Encoder, Text
from ifmesh_services.tensors import to_torch
from ifmesh_services.terms import Terms
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from ifmesh.errors import Misconfigured
from ifmesh.request import Request
from ifmesh.stage import Setup
from tests.services.test_loading import rewritten

Options = Mapping[str, str | int | float | bool]
PROMPTS = ("a fox in the snow", "a corgi that reads a newspaper", "", "an owl", "a very long story " * 30, "three wooden blocks")


def encoder(cascade: Path | str, options: Options | None = None, dtype: str = "") -> Encoder:
    made = Encoder()
    made.load(Setup(cascade=str(cascade), dtype=dtype, options=options))
    return made


def encoded(stage: Encoder, *requests: Request) -> list[torch.Tensor]:
    """The embeddings of requests that step together."""
    for number, request in enumerate(requests):
        stage.admit(str(number), request, {})
    made = []
    for advance in stage.step():
        assert advance.output is not None
        made.append(to_torch(advance.output["embeds"]))
    return made


@contextmanager
def calls(stage: Encoder) -> Iterator[list[int]]:
    """The rows of each call of T5 within."""
    rows: list[int] = []
    model: Any = stage._model
    hook = model.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        hook.remove()


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, in the Frobenius norm."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def test_a_repeated_text_costs_no_call_and_gives_the_same_bytes(nano16: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = encoder(nano16)
    with calls(stage) as rows, caplog.at_level(logging.INFO, "ifmesh"):
        [first] = encoded(stage, Request("a fox", 1))
        assert rows == [1]  # the empty negative was encoded while loading
        [again] = encoded(stage, Request("  A Fox ", 2))  # as T5 is given it, it is the same
        [turned] = encoded(stage, Request("", 3, negative="a fox"))
        assert rows == [1]
    assert torch.equal(first, again)
    assert torch.equal(first.flip(0), turned)
    assert (stage.cache.hits, stage.cache.misses) == (5, 2)  # two misses: the empty one while loading, and the fox
    assert "2 of 2 texts were known; cache: 5 hits, 2 misses, 2 kept" in caplog.text
    with calls(stage) as rows:
        [other] = encoded(encoder(nano16, {"cache": 0}), Request("a fox", 1))
    assert torch.equal(first, other)


@pytest.mark.parametrize("mode", ["exact", "pooled"])
def test_the_empty_negative_is_never_encoded_twice(nano16: Path, mode: str) -> None:
    stage = encoder(nano16, {"cache": 0, "mode": mode})
    with calls(stage) as rows:
        for prompt in ("a fox", "an owl", "a fox"):
            encoded(stage, Request(prompt, 1))
            encoded(stage, Request(prompt, 1, negative=" "))
    assert rows == [1] * 6  # the prompts, each time


def test_the_least_used_texts_are_forgotten(nano16: Path) -> None:
    stage = encoder(nano16, {"cache": 1})
    fits = 1_000_000 // (77 * 64 * 4)
    for number in range(fits):
        encoded(stage, Request(f"fox {number}", 1))
    encoded(stage, Request("fox 0", 1))  # used again
    encoded(stage, Request("one more", 1))
    with calls(stage) as rows:
        encoded(stage, Request("fox 0", 1))
        encoded(stage, Request("one more", 1))
        assert rows == []
        encoded(stage, Request("fox 1", 1))
        assert rows == [1]
    assert stage.cache.nbytes <= 1_000_000


def test_a_cache_keeps_its_budget() -> None:
    """Beside what is pinned.  A value is replaced, not counted twice; one that is too large is not kept."""
    kept: Cache[Text] = Cache(100, frozenset({"pin"}))
    of = {size: Text(torch.zeros(size, dtype=torch.uint8), []) for size in (40, 60, 101, 1000)}
    kept.put("pin", of[1000])
    kept.put("a", of[60])
    kept.put("a", of[40])
    kept.put("b", of[60])
    assert (kept.nbytes, len(kept)) == (100, 3)
    assert kept.get("a") is of[40]
    kept.put("c", of[40])  # "b" goes, which nobody asked for
    assert [kept.get(key) is None for key in ("a", "b", "c", "pin")] == [False, True, False, False]
    kept.put("d", of[101])
    assert (kept.nbytes, len(kept)) == (0, 1)
    assert (kept.hits, kept.misses) == (4, 1)


def test_a_pool_reads_all_texts_in_one_call(nano16: Path) -> None:
    """And on a CPU in fp32, on one thread, to the same bits as exact: T5's layers see 77 rows or more of every text."""
    exact, pooled = encoder(nano16), encoder(nano16, {"mode": "pooled", "slots": 6})
    requests = [Request(prompt, 1, negative="blurry") for prompt in PROMPTS]
    assert (exact.slots, pooled.slots) == (1, 6)
    with calls(pooled) as rows:
        together = encoded(pooled, *requests)
    assert rows == [6]  # five prompts, for the empty one is known, and the negative once
    alone = [one for request in requests for one in encoded(exact, request)]
    assert max(error(one, other) for one, other in zip(together, alone, strict=True)) <= 1e-6


def test_fixed_rows_make_a_pools_bytes_independent_of_the_neighbours(nano16: Path) -> None:
    options: Options = {"mode": "pooled", "slots": 6, "rows": 4, "cache": 0}
    stage = encoder(nano16, options, "bf16")
    with calls(stage) as rows:
        together = encoded(stage, *[Request(prompt, 1, negative="blurry") for prompt in PROMPTS])
        assert rows == [4, 4]
        for prompt, one in reversed(list(zip(PROMPTS, together, strict=True))):
            [alone] = encoded(stage, Request(prompt, 1, negative="blurry"))
            assert torch.equal(one, alone)
        assert set(rows) == {4}


def test_modes_are_told_apart(nano16: Path) -> None:
    told: list[tuple[Options, str]] = [
        ({}, ""),
        ({}, "bf16"),
        ({"mode": "pooled"}, ""),
        ({"mode": "pooled", "rows": 4}, ""),
        ({"quantize": "int8"}, ""),
        ({"quantize": "nf4"}, ""),
    ]
    classes = [Encoder().load(Setup(cascade=str(nano16), options=options, dtype=dtype)) for options, dtype in told]
    assert len(set(classes)) == len(classes)
    assert Encoder().load(Setup(cascade=str(nano16), options={"cache": 1, "offload": "disk"})) == classes[0]  # they change no bits


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, nano16: Path) -> Path:
    """A cascade whose T5 is twice as wide, as `save_pretrained` writes it, beside it in int8 and nf4 as the hub has its 8-bit one.

    There is no quantization_config in config.json, which belongs to the variant that is not quantised.
    """
    folder = tmp_path_factory.mktemp("wide") / "cascade"
    shutil.copytree(nano16, folder)
    part = folder / "IF-I-nano/text_encoder"
    config = T5Config.from_pretrained(part)
    config.d_model, config.d_ff, config.num_heads = 128, 256, 8
    torch.manual_seed(5)
    model = T5EncoderModel(config)
    shutil.rmtree(part)
    model.save_pretrained(part)
    said = (part / "config.json").read_bytes()
    for variant, quantize in (("8bit", "int8"), ("4bit", "nf4")):
        terms = Terms("encoder", quantize=quantize)
        made: Any = loading.component(str(folder / "IF-I-nano"), "text_encoder", T5EncoderModel, terms=terms)
        made.save_pretrained(part.parent / variant)
        (part.parent / variant / "model.safetensors").rename(part / f"model.{variant}.safetensors")
    assert (part / "config.json").read_bytes() == said
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("quantize", "variant", "most", "share"), [("int8", "8bit", 0.04, 0.6), ("nf4", "4bit", 0.25, 0.45)])
def test_t5_in_fewer_bits(wide: Path, dtype: str, quantize: str, variant: str, most: float, share: float) -> None:
    """On the fly and from a file, which holds the same; close to fp32, and smaller.  most: relative error; share: of fp32's bytes."""
    whole = encoder(wide)
    flying = encoder(wide, {"quantize": quantize}, dtype)
    stored = encoder(wide, {"variant": variant}, dtype)
    requests = [Request(prompt, 1, negative="blurry") for prompt in PROMPTS]
    for request in requests:
        [plain], [one], [other] = (encoded(stage, request) for stage in (whole, flying, stored))
        assert one.isfinite().all()
        assert 1e-4 < error(one, plain) < most
        assert error(other, plain) < most
        if dtype == "fp32":
            assert torch.equal(one, other)
    sizes = [sum(p.nbytes for p in stage._model.parameters()) for stage in (whole, flying, stored)]
    assert max(sizes[1:]) < share * sizes[0]


def test_a_quantised_file_is_known_by_itself(wide: Path, nano16: Path) -> None:
    """transformers alone reads the hub's 8-bit file as ordinary weights: no error, and embeddings that mean nothing."""
    part = wide / "IF-I-nano/text_encoder"
    ids = torch.arange(4, 81)[None]
    with torch.no_grad():
        kind: Any = T5EncoderModel
        plain = kind.from_pretrained(part).eval()(ids)[0]
        trap = kind.from_pretrained(part, variant="8bit").eval()(ids)[0]
        ours: Any = loading.component(str(part.parent), "text_encoder", T5EncoderModel, terms=Terms("encoder", variant="8bit"))
        made = ours(ids)[0]
    assert not trap.isfinite().all() or error(trap, plain) > 0.5
    assert error(made, plain) < 0.04
    with pytest.raises(Misconfigured, match=r"services\.encoder\.options\.quantize: 'nf4': .* are int8 already; leave it out"):
        encoder(wide, {"variant": "8bit", "quantize": "nf4"})
    with pytest.raises(Misconfigured, match="no safetensors of variant '16bit'; there are: the one without a name, '4bit', '8bit'"):
        encoder(wide, {"variant": "16bit"})
    with pytest.raises(Misconfigured, match="offload: 'disk': not with int8 weights"):
        encoder(wide, {"variant": "8bit", "offload": "disk"})
    with pytest.raises(Misconfigured, match="there are: the one without a name, 'fp16'"):
        encoder(nano16, {"variant": "8bit"})


def test_weights_that_give_no_numbers_are_refused_while_loading(nano16: Path, tmp_path: Path) -> None:
    shutil.copytree(nano16, tmp_path / "cascade")
    path = tmp_path / "cascade/IF-I-nano/text_encoder/model.safetensors"
    weights = load_file(path)
    weights["encoder.final_layer_norm.weight"][3] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(
        Misconfigured, match=r"text_encoder: its embeddings in torch\.float32 are not finite; check the files, or use dtype"
    ):
        encoder(tmp_path / "cascade")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cash": 3}, "services.encoder.options: unknown key 'cash'; did you mean 'cache'?"),
        ({"attention_slicing": "auto"}, "unknown key 'attention_slicing'"),
        ({"vae_tiling": True}, "unknown key 'vae_tiling'"),
        ({"cache": -1}, "services.encoder.options.cache: -1: a whole number of MB from 0 to 1048576"),
        ({"cache": 1.5}, "options.cache: 1.5"),
        ({"cache": True}, "options.cache: True"),
        ({"cache": "64"}, "options.cache: '64'"),
        ({"quantize": "int4"}, "services.encoder.options.quantize: 'int4': int8 or nf4, or leave it out"),
        ({"quantize": 8}, "options.quantize: 8"),
        ({"variant": "../fp16"}, "options.variant: '../fp16'"),
        ({"download": "yes"}, "options.download: 'yes': true or false"),
        ({"compile": 1}, "options.compile: 1: true or false"),
        ({"compile": True, "quantize": "int8"}, "options.compile: not with quantize = 'int8'"),
        ({"compile": True, "mode": "pooled"}, "options.compile: only with mode = 'exact'"),
        ({"quantize": "nf4", "offload": "disk"}, "options.quantize: 'nf4': not with offload = 'disk'"),
        ({"mode": "fast"}, "options.mode: 'fast'"),
        ({"rows": 8}, "options.rows: 8"),
    ],
)
def test_a_wrong_option_is_named_with_what_to_do(nano16: Path, options: Options, said: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        encoder(nano16, options)
    assert said in str(caught.value)


@pytest.mark.slow
def test_a_compiled_encoder_compiles_nothing_while_it_works(nano16: Path) -> None:
    """The whole service, with torch told to fail rather than compile; what it gives is exact's but for the last bits."""
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++ here")
    code = f"""
import torch
from tests.services.test_encoder import encoded, encoder, error
from ifmesh.protocol import Request
stage = encoder({str(nano16)!r}, {{"compile": True, "cache": 0}})
torch.compiler.set_stance("fail_on_recompile")
made = [encoded(stage, Request(text, 1, negative="blurry"))[0] for text in ("a fox", "a very long story " * 30)]
torch.compiler.set_stance("force_eager")
plain = [encoded(stage, Request(text, 1, negative="blurry"))[0] for text in ("a fox", "a very long story " * 30)]
print("compiled" in stage._class, max(error(one, other) for one, other in zip(made, plain)), torch.equal(made[1], plain[1]))
"""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stderr
    named, off, same = ended.stdout.split()[-3:]
    assert named == "True"
    assert float(off) < 1e-5
    assert same == "False"  # or nothing was compiled


def test_an_encoder_from_disk_gives_the_same_bytes(nano16: Path, tmp_path: Path) -> None:
    whole, shelved = encoder(nano16), encoder(rewritten(nano16, tmp_path / "own"), {"offload": "disk"})
    assert {p.device.type for p in shelved._model.parameters()} == {"meta"}
    for prompt in PROMPTS:
        [one], [other] = encoded(whole, Request(prompt, 1)), encoded(shelved, Request(prompt, 1))
        assert torch.equal(one, other)
